"""Where the module lies that nnU-Net finds our trainers through."""

from pathlib import Path

ENTRY_MODULE = "dinomed3d_trainers"
"""Its name, in nnU-Net's own folder of trainers and in ours."""


def trainer_folder() -> Path:
    """The folder to export as ``nnUNet_extTrainer``."""
    return Path(__file__).parents[1] / "nnunet_entry"
