"""DINO-Med3D for nnU-Net v2."""

__version__ = "0.2.0"
