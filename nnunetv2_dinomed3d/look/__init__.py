"""Pictures of what a trained network sees of a case."""
