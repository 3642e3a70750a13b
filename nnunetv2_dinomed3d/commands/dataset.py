"""``dinomed3d dataset``: one of the paper's data sets, from its publisher's download to nnU-Net's raw format."""

import argparse
import sys
from pathlib import Path

from nnunetv2_dinomed3d.text import printable

HELP = "Convert a download of one of the paper's data sets, or of MSD, to nnU-Net's raw format."
EXAMPLES = """
dinomed3d dataset acdc downloads/ACDC
dinomed3d dataset msd-pancreas downloads/Task07_Pancreas.tar --plain
dinomed3d dataset aisd downloads/AISD --leave-out 0073366 0226134
dinomed3d dataset msd downloads/Task04_Hippocampus --id 540
"""

NAMES = ("aisd", "msd-pancreas", "msd-colon", "brats2020", "acdc", "msd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data set, how it is converted, and choices where the paper is silent."""
    parser.add_argument(
        "name", choices=NAMES, metavar="NAME", help=f"{', '.join(NAMES[:-1])}, or msd for any task of that"
    )
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder or archive as it was downloaded, or a folder of archives"
    )
    parser.add_argument(
        "--id", type=int, metavar="N", help="number of the data set (default: 501 to 506, plain 511 to 516)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--as-paper",
        action="store_true",
        help="intensities, slices, 512 x 512 pixels and split 8:1:1 as in section 3.1 (the default)",
    )
    how.add_argument("--plain", action="store_true", help="images as they are, all in imagesTr")
    parser.add_argument(
        "--labels",
        metavar="WHICH",
        help="all; one: all are one label; or the name of the only one (default: all; as in the paper, one for aisd "
        "and brats2020)",
    )
    parser.add_argument(
        "--crop",
        choices=("labels", "centre"),
        help="slices that are kept: around the middle of the labelled ones, or of the image (default: labels)",
    )
    parser.add_argument("--slices", type=int, metavar="N", help="slices that are kept (default: the paper's)")
    parser.add_argument(
        "--window", nargs=2, type=float, metavar=("WW", "WL"), help="window of CT in HU (default: the paper's)"
    )
    parser.add_argument(
        "--percentiles",
        choices=("nonzero", "all"),
        help="voxels of an MRI whose percentiles clip it (default: nonzero)",
    )
    parser.add_argument(
        "--first-slice",
        choices=("feet", "head"),
        help="end where the first PNG of AISD's labels lies, for cases without image.zip (default: feet)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the split 8:1:1 (default: 0)")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="CASE", help="cases or patients to leave out")
    parser.add_argument("--incomplete", action="store_true", help="convert what is whole of a download that is not")


def run(args: argparse.Namespace) -> int:
    """Convert, and say what there is and what comes next; return 0.

    Raises:
        ValueError: an argument, a folder or the download is wrong.
    """
    check(args)
    # imported after the first checks, as SciPy and SimpleITK take a moment
    from nnunetv2_dinomed3d.datasets.catalogue import ENTRIES, Choices
    from nnunetv2_dinomed3d.datasets.conversion import Wish, convert
    from nnunetv2_dinomed3d.datasets.naming import dataset_title
    from nnunetv2_dinomed3d.datasets.target import require_outside, target_of

    entry = ENTRIES[args.name]
    choices = Choices(
        not args.plain,
        args.labels,
        args.crop or "labels",
        args.slices,
        tuple(args.window) if args.window else None,
        args.percentiles != "all",
        args.first_slice or "feet",
    )
    number = args.id if args.id is not None else entry.number + (10 if args.plain else 0)
    title = dataset_title(args.name, args.source, choices.paper)
    target = target_of(title, number, choices.paper or args.name == "acdc")
    require_outside(args.source, target)
    how = "as in section 3.1 of the paper" if choices.paper else "as it is"
    print(f"{printable(target.name)}: {args.name} {how}.", flush=True)
    wish = Wish(args.name, entry, args.source, choices, tuple(args.leave_out), args.incomplete, args.seed or 0)
    converted = convert(wish, target)
    for note in converted.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    cases = converted.manifest["cases"].values()
    counts = {part: sum(case["part"] == part for case in cases) for part in ("train", "val", "test", "unlabelled")}
    told = ", ".join(f"{count} {part}" for part, count in counts.items() if count)
    print(f"{'Written' if converted.anew else 'There already'}: {printable(target.raw)} ({told})")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {number} --verify_dataset_integrity")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together, and numbers that are none.

    Raises:
        ValueError: see above.
    """
    paper_only = {"--crop": args.crop, "--slices": args.slices, "--window": args.window, "--seed": args.seed}
    paper_only["--percentiles"] = args.percentiles
    if args.plain and (given := [option for option, value in paper_only.items() if value is not None]):
        raise ValueError(f"{given[0]} is for data as in the paper: leave out --plain or {given[0]}")
    if args.first_slice and args.name != "aisd":
        raise ValueError("--first-slice is for aisd, whose labels are PNG files: leave it out")
    if args.slices is not None and args.slices < 1:
        raise ValueError(f"--slices {args.slices}: 1 or more are kept")
    if args.window and not (0 < args.window[0] < 1e4 and abs(args.window[1]) < 1e4):
        raise ValueError(f"--window {args.window[0]:g} {args.window[1]:g}: give a width above 0 and a level, in HU")
