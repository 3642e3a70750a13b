"""Where the module lies that nnU-Net finds our trainers through."""

from pathlib import Path


def trainer_folder() -> Path:
    """The folder to export as ``nnUNet_extTrainer``."""
    return Path(__file__).parent / "nnunet_entry"
