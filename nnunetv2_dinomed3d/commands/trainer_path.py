"""``dinomed3d trainer-path``: the folder through which nnU-Net finds our trainers in an editable install."""

import argparse
from pathlib import Path

HELP = "Print the folder to export as nnUNet_extTrainer, which an editable install needs."
EXAMPLES = "export nnUNet_extTrainer=$(dinomed3d trainer-path)"

ENTRY_MODULE = "dinomed3d_trainers"
"""Name of the module through which nnU-Net finds our trainers: in this folder, and in nnU-Net's own after a wheel."""


def trainer_folder() -> Path:
    """The folder to export as ``nnUNet_extTrainer``."""
    return Path(__file__).parents[1] / "nnunet_entry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no argument."""


def run(args: argparse.Namespace) -> int:
    """Print the folder and return 0."""
    print(trainer_folder())
    return 0
