"""``dinomed3d reproduce``: the commands of a table of the paper, and the table from what is there."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_dinomed3d.commands.crossval import parse_gpus, run_or_print, write_slurm
from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.crossval import FoldJob
from nnunetv2_dinomed3d.nnunet_files import dataset_name, find_dataset_json, folder_of, preprocessed_folder
from nnunetv2_dinomed3d.settings import check_environment

HELP = "Print or run the commands of a table of the paper, or write the table from what is there."
EXAMPLES = """
dinomed3d reproduce table1 -d 501 502 --gpus 0 1
dinomed3d reproduce table1 -d aisd=501 acdc=505 --run
dinomed3d reproduce table3 -d 502 --report
"""

TABLES = ("table1", "table2", "table3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add table, data sets, and how the commands are run."""
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help=f"the paper's table: {', '.join(TABLES)}")
    parser.add_argument(
        "-d",
        nargs="+",
        required=True,
        metavar="[PAPER=]DATASET",
        help="data sets: number or name; before it, if dinomed3d dataset did not make it, the paper's data set it is",
    )
    parser.add_argument("-p", nargs="+", default=["nnUNetPlans"], metavar="PLANS", help="as in crossval")
    parser.add_argument("-c", nargs="+", default=[], metavar="CONFIG", help="as in crossval")
    parser.add_argument("--gpus", nargs="+", default=[], metavar="GPU", help="GPUs to use; each runs one job at a time")
    parser.add_argument("-o", type=Path, metavar="OUT", help="folder of the report (default: reproduce_TABLE)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="run the commands, then write the report")
    how.add_argument("--slurm", action="store_true", help="write Slurm array scripts instead of printing the commands")
    how.add_argument("--report", action="store_true", help="write the report from what is there; train nothing")


def run(args: argparse.Namespace) -> int:
    """Print the commands, run them, write them as scripts, or write the report.

    Returns:
        The exit code, as of `crossval`.

    Raises:
        ValueError: an argument is wrong, or a data set is not ready for it.
        Stopped: a signal came while jobs ran.
    """
    if args.gpus and (args.slurm or args.report):
        raise ValueError(f"--gpus does not go with {'--slurm' if args.slurm else '--report'}.")
    check_environment()
    gpus = parse_gpus(args.gpus)
    from nnunetv2_dinomed3d.evaluation.reproduction import Column, jobs_of

    columns = [Column(*words) for words in parse_datasets(args.d)]
    table = args.table.upper()
    if args.report:
        return _write_report(table, columns, args)
    jobs = jobs_of(table, columns, args.p, args.c)
    unfinished = [job for job in jobs if job.state != "finished"]
    for line in estimate([job for job in unfinished if job.words[0] == "nnUNetv2_train"]):
        print(f"# {line}", flush=True)
    if args.slurm:
        print("\n".join(write_slurm(f"reproduce_{args.table}", unfinished)))
        return 0
    code = run_or_print(jobs, gpus, run=args.run)
    if args.run:
        _write_report(table, columns, args)
    return code


def parse_datasets(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """nnU-Net's name of each data set, and the paper's, which a data set that we made says itself.

    Raises:
        ValueError: there is no such data set, the paper has none of that name, or one is named twice.
    """
    from nnunetv2_dinomed3d.evaluation.paper_tables import DATASETS

    found: list[tuple[str, str | None]] = []
    for word in words:
        paper, equals, name = word.rpartition("=")
        if equals and paper not in DATASETS:
            raise ValueError(f"-d {word!r}: the paper has no data set {paper!r}; it has {', '.join(DATASETS)}.")
        dataset = dataset_name(name)
        if dataset in dict(found):
            raise ValueError(f"-d {' '.join(words)}: {dataset} is there twice. Name it once.")
        found.append((dataset, paper if equals else _made_from(dataset)))
    return found


def _made_from(dataset: str) -> str | None:
    """The paper's data set that ``dinomed3d dataset --as-paper`` made this one from; None for others."""
    from nnunetv2_dinomed3d.evaluation.paper_tables import DATASETS

    file = folder_of("nnUNet_raw") / dataset / "manifest.json"
    content = read_json(file) if file.is_file() else {}
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or not settings.get("as in the paper"):
        return None
    name = settings.get("data set")
    return name if name in DATASETS else None


def estimate(jobs: Sequence[FoldJob]) -> list[str]:
    """GPU hours and disk of the trainings that are left, in words."""
    if not jobs:
        return ["Nothing is left to train."]
    from nnunetv2_dinomed3d.planning.training_cost import SUSTAINED_TFLOPS, TrainingCost, training_cost
    from nnunetv2_dinomed3d.trainers.registry import find_trainer

    costs: list[TrainingCost] = []
    lines = []
    for job in jobs:
        _, dataset, configuration, *_, trainer, _, plans = job.words
        plan = read_json(preprocessed_folder(dataset) / f"{plans}.json")
        cost = training_cost(find_trainer(trainer), plan, configuration, read_json(find_dataset_json(dataset)))
        costs.append(cost)
        lines.append(f"{job.name} of {dataset}: {cost.hours:.1f} GPU hours, {cost.disk / 1e9:.1f} GB")
    hours, disk = sum(cost.hours for cost in costs), sum(cost.disk for cost in costs)
    return [
        f"{len(jobs)} trainings take about {hours:.1f} GPU hours and leave {disk / 1e9:.0f} GB of checkpoints: an "
        f"estimate from the networks' operations at {SUSTAINED_TFLOPS:.0f} TFLOP/s, without validation and prediction",
        *lines,
    ]


def _write_report(table: str, columns: Sequence, args: argparse.Namespace) -> int:
    from nnunetv2_dinomed3d.evaluation.document import to_markdown
    from nnunetv2_dinomed3d.evaluation.parallel import process_count
    from nnunetv2_dinomed3d.evaluation.reproduction import rows_of
    from nnunetv2_dinomed3d.evaluation.reproduction_report import write_reproduction

    out = args.o or Path(f"reproduce_{args.table}")
    rows = rows_of(table, columns, args.p, args.c, process_count())
    try:
        blocks = write_reproduction(table, columns, rows, out)
    except OSError as error:
        raise ValueError(f"-o {out}: the report cannot be written there: {error.strerror or error}.") from error
    print(to_markdown(blocks, out), end="")
    print(f"{shlex.quote(str(out / 'report.html'))} has the same.", file=sys.stderr)
    return 0
