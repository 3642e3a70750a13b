"""The command ``dinomed3d``."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
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


def _weights(args: argparse.Namespace) -> int:
    from nnunetv2_dinomed3d.fetch import check_weights_file, fetch_weights
    from nnunetv2_dinomed3d.weights import WeightsUnavailableError

    if args.check:
        return check_weights_file(args.check)
    try:
        return fetch_weights(args.variant)
    except WeightsUnavailableError as error:
        raise ValueError(error) from error


def _convert(args: argparse.Namespace) -> int:
    from nnunetv2_dinomed3d.convert import Model, convert

    if (args.plans is None) != (args.dataset_json is None):
        raise ValueError("A model folder needs both --plans and --dataset-json; a file neither.")
    model = Model(args.plans, args.dataset_json, args.configuration) if args.plans else None
    return convert(args.checkpoint, args.out, model)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """For these words; the arguments of some commands stand with their code, which takes seconds to import."""
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

    command = commands.add_parser(
        "weights", help="download a variant's pretrained weights and check them, or say what a file is"
    )
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("variant", nargs="?", metavar="VARIANT", help="size of the network, such as base")
    what.add_argument("--check", type=Path, metavar="FILE", help="file or folder to look at instead")
    command.set_defaults(run=_weights)

    command = commands.add_parser(
        "convert", help="make this plugin's checkpoint of one of the released DINO-Med3D code"
    )
    command.add_argument("checkpoint", type=Path, metavar="IN", help="stage1_best.pth or stage2_best.pth")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file, or model folder, to write")
    command.add_argument("--plans", type=Path, metavar="FILE", help="nnU-Net's plans: makes a model folder")
    command.add_argument("--dataset-json", type=Path, metavar="FILE", help="dataset.json: makes a model folder")
    command.add_argument(
        "-c", "--configuration", default="3d_fullres", metavar="NAME", help="of the plans (default: %(default)s)"
    )
    command.set_defaults(run=_convert)

    command = commands.add_parser("plan", help="make plans with patch and batch for this network and a GPU's memory")
    if "plan" in words:
        from nnunetv2_dinomed3d.planning import plan

        plan.add_arguments(command)
        command.set_defaults(run=plan.run_plan)

    command = commands.add_parser("compare", help="compare trainings, or folders of predictions: numbers and pictures")
    if "compare" in words:
        from nnunetv2_dinomed3d.evaluation import compare

        compare.add_arguments(command)
        command.set_defaults(run=compare.run_compare)

    command = commands.add_parser("crossval", help="print or run nnU-Net's commands of all folds and trainers")
    if "crossval" in words:
        from nnunetv2_dinomed3d.evaluation import crossval

        crossval.add_arguments(command)
        command.set_defaults(run=crossval.run_crossval)

    command = commands.add_parser("look", help="pictures of what trained networks see of a case: features, gate")
    if "look" in words:
        from nnunetv2_dinomed3d.look import run as look

        look.add_arguments(command)
        command.set_defaults(run=look.run_look)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 for a user's error and 2 for one in the arguments."""
    words = sys.argv[1:] if argv is None else argv
    args = _parser(words).parse_args(words)
    try:
        return args.run(args)
    except (ValueError, subprocess.CalledProcessError) as error:
        print(f"dinomed3d: {error}", file=sys.stderr)
        return 1
