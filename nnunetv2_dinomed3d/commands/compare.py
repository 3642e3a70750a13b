"""``dinomed3d compare``: trainings, or folders of predictions, against the truth and against the first of them."""

import argparse
import sys
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.cases import (
    Cases,
    expected_cases,
    files_of,
    fold_names,
    given_models,
    match,
    read_splits,
    trained_models,
    truth_folder,
)
from nnunetv2_dinomed3d.evaluation.output import output_folder
from nnunetv2_dinomed3d.evaluation.text import place
from nnunetv2_dinomed3d.nnunet_files import dataset_name, find_description, names_dataset, read_description
from nnunetv2_dinomed3d.text import printable
from nnunetv2_dinomed3d.training_log import read_logs

DEFAULT_TOLERANCE_MM = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``dinomed3d compare``."""
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help="number or name of nnU-Net's data set")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("-tr", nargs="+", metavar="TRAINER", help="trainers; differences are to the first one")
    models.add_argument(
        "--pred", nargs="+", metavar="NAME=FOLDER", help="folders of predictions instead, with --gt; the first likewise"
    )
    parser.add_argument("--gt", type=Path, metavar="FOLDER", help="the truth for --pred")
    parser.add_argument(
        "-p", nargs="+", metavar="PLANS", help="plans: one, or one for each trainer (default: nnUNetPlans)"
    )
    parser.add_argument("-c", metavar="CONFIG", help="configuration (default: 3d_fullres)")
    parser.add_argument("-f", nargs="+", metavar="FOLD", help="folds (default: all that have been validated)")
    parser.add_argument("-o", type=Path, metavar="OUT", help="folder to write (default: compare_DATASET)")
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="MM",
        help="of the surface Dice in mm, for all labels or as LABEL=MM; such as --tolerance 1 tumor=2 (default: 1)",
    )
    parser.add_argument("--common", action="store_true", help="compare the cases that all predicted, leave out others")
    parser.add_argument(
        "--exclude-empty",
        action="store_true",
        help="no HD95 where one of truth and prediction is empty, not the diagonal",
    )


def parse_tolerances(words: list[str], labels: list[str]) -> dict[str, float]:
    """Of each label, its tolerance in mm; words are ``MM`` or ``LABEL=MM``."""
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
    """``compare -tr A B 4``: the data set was given last, where the option before it took it for one of its own."""
    for words in (args.tr, args.pred, args.p):
        if not args.dataset and words and len(words) > 1 and names_dataset(words[-1]):
            args.dataset = words.pop()


def _check(args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.pred and not args.gt:
        raise ValueError("--pred needs the truth: --gt FOLDER")
    if args.tr and args.gt:
        raise ValueError("--gt goes with --pred; the truth of trainings is nnU-Net's")
    if args.tr and not args.dataset:
        raise ValueError(
            "-tr needs the data set, before the options, such as: dinomed3d compare 4 -tr nnUNetTrainer "
            "nnUNetTrainerDINOMed3D"
        )
    if args.pred and (args.p or args.c or args.f):
        raise ValueError("-p, -c and -f choose trainings; with --pred, name the folders you mean")


def _description_file(args: argparse.Namespace, dataset: str | None) -> Path:
    """The data set's ``dataset.json``; without a data set, one beside predictions or truth (nnU-Net leaves a copy)."""
    if dataset:
        return find_description(dataset)
    folders = [args.gt, args.gt.parent, *(Path(text.partition("=")[2]) for text in args.pred)]
    found = next((folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()), None)
    if found is None:
        raise ValueError(
            "No dataset.json, which names the labels, in the folders of --gt and --pred: give DATASET, or put one "
            'beside the truth, such as {"labels": {"background": 0, "tumor": 1}, "file_ending": ".nii.gz"}'
        )
    return found


def _cases(args: argparse.Namespace, dataset: str | None, ending: str) -> Cases:
    if args.pred:
        models, truths = given_models(args.pred, ending), files_of(args.gt, ending)
        return match(models, truths, set(truths), args.common)
    assert dataset, "_check lets no trainers pass without a data set"
    folds = fold_names(args.f) if args.f else None
    models = trained_models(dataset, args.tr, args.p or ["nnUNetPlans"], args.c or "3d_fullres", folds, ending)
    truths = files_of(truth_folder(dataset), ending)
    return match(models, truths, expected_cases(models, read_splits(dataset)), args.common)


def run_compare(args: argparse.Namespace) -> int:
    """Measure, write the report, say where it is; 0."""
    _take_trailing_dataset(args)
    _check(args)
    dataset = dataset_name(args.dataset) if args.dataset else None
    dataset_json = _description_file(args, dataset)
    description = read_description(dataset_json)
    tolerances = parse_tolerances(args.tolerance, list(description.labels))
    cases = _cases(args, dataset, description.ending)
    out = args.o or Path(f"compare_{dataset}" if dataset else "compare")
    # imported here, as SciPy and SimpleITK take seconds: neither --help nor an error need wait for them
    from nnunetv2_dinomed3d.evaluation.measure import Rules, measure
    from nnunetv2_dinomed3d.evaluation.provenance import provenance
    from nnunetv2_dinomed3d.evaluation.result import Result

    logs = {
        model.name: {fold: read_logs(model.folder / f"fold_{fold}") for fold in sorted(set(model.folds.values()))}
        for model in cases.models
    }
    rules = Rules(description, tolerances, args.exclude_empty)
    with output_folder(out):
        measured = measure(cases, rules)
    from nnunetv2_dinomed3d.evaluation.report import write_report  # Matplotlib may speak of its cache of fonts

    origin = provenance(sys.argv, dataset, dataset_json, cases)
    title = f"Comparison on {dataset or place(args.gt)}"
    warnings = write_report(Result(title, dataset, cases, rules, measured, logs, origin), out)
    for warning in warnings:
        print(f"warning: {printable(warning)}", file=sys.stderr)
    print(f"{printable(out / 'report.html')}: {len(cases.truths)} cases, {len(cases.models)} models")
    return 0
