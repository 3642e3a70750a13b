"""``dinomed3d demo``: nnU-Net's own commands, from generated images to Dice and a picture."""

import argparse
import time
from pathlib import Path

from nnunetv2_dinomed3d.commands.trainer_path import trainer_folder

HELP = "Generate a small data set, train the nano trainer on it, predict and measure."
EXAMPLES = "dinomed3d demo --out dinomed3d_demo"

REQUIRED_DICE = 0.80
"""The mean Dice that a working installation reaches."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder to fill."""
    parser.add_argument(
        "--out", type=Path, default=Path("dinomed3d_demo"), metavar="DIR", help="folder to fill (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its result.

    Returns:
        The exit code: 0, or 1 if the network did not learn (mean Dice under `REQUIRED_DICE`).

    Raises:
        ValueError: the folder holds something already, or cannot be written.
        subprocess.CalledProcessError: one of nnU-Net's commands failed.
    """
    from nnunetv2_dinomed3d.demo.pipeline import TEST_CASES, prepare_folder, run_demo  # imports SciPy and SimpleITK

    prepare_folder(args.out)
    start, out = time.monotonic(), args.out.resolve()
    result = run_demo(out, trainer_folder())
    print(f"\nDice on the {TEST_CASES} held-out cases:")
    for label, dice in result.dice.items():
        print(f"  {label:8s} {dice:.3f}")
    reached = result.mean_dice >= REQUIRED_DICE
    print(f"  {'mean':8s} {result.mean_dice:.3f}  ({'at least' if reached else 'NOT at least'} {REQUIRED_DICE:.2f})")
    print(f"\nThe demo took {time.monotonic() - start:.0f} s. Its files are in {out}:")
    print(f"  {result.picture.name:20s} image, reference and prediction")
    print("  nnUNet_raw           the generated data set")
    print("  nnUNet_preprocessed  plans and preprocessed data")
    print("  nnUNet_results       the trained model, its training log and progress.png")
    print("  predictions          segmentations of the held-out cases")
    print("The network is tiny and began with random weights. The demo shows that everything runs, not how good the")
    print("method is.")
    return 0 if reached else 1
