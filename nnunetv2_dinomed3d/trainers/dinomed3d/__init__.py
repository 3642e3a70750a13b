"""The trainers of DINO-Med3D."""
