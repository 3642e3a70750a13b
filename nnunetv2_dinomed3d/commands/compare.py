"""``dinomed3d compare``: trained models, or folders of predictions, against the reference and against the first one."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.cases import (
    PairedCases,
    expected_cases,
    files_of,
    fold_names,
    given_models,
    pair_cases,
    trained_models,
)
from nnunetv2_dinomed3d.evaluation.dataset_labels import read_dataset_labels
from nnunetv2_dinomed3d.evaluation.output import output_folder
from nnunetv2_dinomed3d.evaluation.text import public_path
from nnunetv2_dinomed3d.evaluation.trainings import trainings_of
from nnunetv2_dinomed3d.nnunet_files import (
    dataset_name,
    find_dataset_json,
    names_dataset,
    read_splits,
    reference_folder,
    splits_file,
)
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.training_log import read_logs

HELP = "Compare trainings, or folders of predictions, in numbers and pictures."
EXAMPLES = """
dinomed3d compare 4 -tr nnUNetTrainer_100epochs nnUNetTrainerDINOMed3D
dinomed3d compare 4 --pred stock=predictions/stock ours=predictions/ours --gt labelsTs --tolerance 1 tumor=2
dinomed3d compare 4 -tr TABLE1 --rules paper
"""

DEFAULT_TOLERANCE_MM = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the data set, the models to compare and how they are measured."""
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="number or name of nnU-Net's data set")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument(
        "-tr",
        nargs="+",
        metavar="TRAINER",
        help="trainers, or TABLE1, TABLE2, TABLE3; differences are to the first one",
    )
    models.add_argument(
        "--pred",
        nargs="+",
        metavar="NAME=FOLDER",
        help="folders of predictions instead, with --gt; differences are to the first one",
    )
    parser.add_argument("--gt", type=Path, metavar="FOLDER", help="reference segmentations for --pred")
    parser.add_argument(
        "-p", nargs="+", metavar="PLANS", help="plans: one, or one for each trainer (default: nnUNetPlans)"
    )
    parser.add_argument(
        "-c",
        nargs="+",
        metavar="CONFIG",
        help="configuration: one, or one for each trainer (default: 3d_fullres, and 2d for a 2D network)",
    )
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all that have been validated)")
    parser.add_argument("-o", type=Path, metavar="OUT", help="folder to write (default: compare_DATASET)")
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="MM",
        help="tolerance of the surface Dice in mm, for all labels or as LABEL=MM (default: 1)",
    )
    parser.add_argument(
        "--common", action="store_true", help="compare the cases that all models predicted, leave out the others"
    )
    parser.add_argument(
        "--exclude-empty",
        action="store_true",
        help="leave HD95 out where reference or prediction is empty, instead of counting the image's diagonal",
    )
    parser.add_argument(
        "--rules",
        choices=("ours", "paper"),
        default="ours",
        help="paper: show Dice and HD95 (in voxels) by the rules of the paper's released code too, beside ours",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write the report, print its answer and where it is; return 0.

    Raises:
        ValueError: an argument is wrong, or a file cannot be compared.
    """
    _take_trailing_dataset(args)
    _check(args)
    dataset = dataset_name(args.dataset) if args.dataset else None
    dataset_json = _dataset_json(args, dataset)
    labels = read_dataset_labels(dataset_json)
    tolerances = parse_tolerances(args.tolerance, list(labels.labels))
    cases = _paired_cases(args, dataset, labels.ending)
    out = args.o or Path(f"compare_{dataset}" if dataset else "compare")
    # imported after the first checks, as SciPy and SimpleITK take seconds
    from nnunetv2_dinomed3d.evaluation.measure import Rules, measure
    from nnunetv2_dinomed3d.evaluation.provenance import provenance
    from nnunetv2_dinomed3d.evaluation.result import Result

    logs = {
        model.name: {fold: read_logs(model.folder / f"fold_{fold}") for fold in model.fold_names}
        for model in cases.models
    }
    rules = Rules(labels, tolerances, args.exclude_empty, paper=args.rules == "paper")
    with output_folder(out):
        measured = measure(cases, rules)
    from nnunetv2_dinomed3d.evaluation.report import write_report  # imports Matplotlib

    origin = provenance(sys.argv, dataset, dataset_json, cases)
    title = f"Comparison on {dataset or public_path(args.gt)}"
    report = write_report(Result(title, dataset, cases, rules, measured, logs, origin), out)
    for warning in report.warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    for answer in report.answers:
        print(answer)
    print(f"{printable(out / 'report.html')}: {report.counts}")
    return 0


def parse_tolerances(words: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """The tolerance of each label in mm.

    Args:
        words: ``MM`` for all labels, or ``LABEL=MM``.
        labels: names.

    Raises:
        ValueError: a word is neither, is below 0 or infinite, or names no label.
    """
    default, named = DEFAULT_TOLERANCE_MM, {}
    for word in words:
        name, equals, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError as error:
            raise ValueError(f"--tolerance {word!r} is neither MM nor LABEL=MM, such as 1 or tumor=2") from error
        if not 0 <= value < float("inf"):
            raise ValueError(f"--tolerance {word!r}: a tolerance is 0 mm or more")
        if not equals:
            default = value
        elif name not in labels:
            raise ValueError(f"--tolerance {word!r}: there is no label {name!r}; there are {', '.join(labels)}")
        else:
            named[name] = value
    return {label: named.get(label, default) for label in labels}


def _take_trailing_dataset(args: argparse.Namespace) -> None:
    """Take the data set from ``compare -tr A B 4``, where the option before it took it for one of its own words."""
    for words in (args.tr, args.pred, args.p, args.c):
        if not args.dataset and words and len(words) > 1 and names_dataset(words[-1]):
            args.dataset = words.pop()


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.pred and not args.gt:
        raise ValueError("--pred needs the reference segmentations: --gt FOLDER")
    if args.tr and args.gt:
        raise ValueError("--gt goes with --pred. The reference segmentations of trainings are nnU-Net's own.")
    if args.tr and not args.dataset:
        raise ValueError(
            "-tr needs the data set, before the options, such as: dinomed3d compare 4 -tr nnUNetTrainer "
            "nnUNetTrainerDINOMed3D"
        )
    if args.pred and (args.p or args.c or args.f):
        raise ValueError("-p, -c and -f choose trainings. With --pred, name the folders you mean.")


def _dataset_json(args: argparse.Namespace, dataset: str | None) -> Path:
    """The data set's ``dataset.json``, or one beside the predictions or references, where nnU-Net leaves a copy."""
    if dataset:
        return find_dataset_json(dataset)
    folders = [args.gt, args.gt.parent, *(Path(text.partition("=")[2]) for text in args.pred)]
    found = next((folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()), None)
    if found is None:
        raise ValueError(
            "No dataset.json, which names the labels, in the folders of --gt and --pred. Give DATASET, or put one "
            'beside the references, such as {"labels": {"background": 0, "tumor": 1}, "file_ending": ".nii.gz"}'
        )
    return found


def _paired_cases(args: argparse.Namespace, dataset: str | None, ending: str) -> PairedCases:
    if args.pred:
        models, references = given_models(args.pred, ending), files_of(args.gt, ending)
        return pair_cases(models, references, set(references), args.common)
    assert dataset, "_check lets no trainers pass without a data set"
    trainings = trainings_of(args.tr, args.p or ["nnUNetPlans"], args.c or [])
    folds = fold_names(args.f) if args.f else None
    models = trained_models(dataset, trainings, folds=folds, ending=ending)
    references = files_of(reference_folder(dataset), ending)
    return pair_cases(models, references, expected_cases(models, read_splits(splits_file(dataset))), args.common)
