"""The command ``dinomed3d``."""

import argparse
import subprocess
import sys
from pathlib import Path

from nnunetv2_dinomed3d import __version__
from nnunetv2_dinomed3d.entry import trainer_folder


def _trainer_path(args: argparse.Namespace) -> int:
    print(trainer_folder())
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from nnunetv2_dinomed3d.doctor import run_doctor

    return run_doctor()


def _demo(args: argparse.Namespace) -> int:
    from nnunetv2_dinomed3d.demo.run import run_demo

    return run_demo(args.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dinomed3d", description="DINO-Med3D for nnU-Net v2")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)

    command = commands.add_parser(
        "trainer-path",
        help="print the folder to export as nnUNet_extTrainer (for an editable install)",
    )
    command.set_defaults(run=_trainer_path)

    command = commands.add_parser("doctor", help="check whether training could run here, and say what to do if not")
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "demo", help="make a small data set, train the nano trainer on it, predict and measure"
    )
    command.add_argument(
        "--out", type=Path, default=Path("dinomed3d_demo"), metavar="DIR", help="folder to fill (default: %(default)s)"
    )
    command.set_defaults(run=_demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 for a user's error and 2 for one in the arguments."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"dinomed3d: {error}", file=sys.stderr)
        return 1
