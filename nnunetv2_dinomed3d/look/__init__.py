"""What a trained network sees of a case, as pictures."""
