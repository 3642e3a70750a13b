"""``dinomed3d crossval``: nnU-Net's commands that train all folds of all trainers; prints, runs or submits them."""

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.crossval import (
    DEFAULT_FOLDS,
    FoldJob,
    command_line,
    count_folds,
    jobs_by_gpu,
    length_notes,
    plan_jobs,
    run_jobs,
    wave,
    with_shared_stage1,
)
from nnunetv2_dinomed3d.evaluation.slurm import slurm_script, write_script
from nnunetv2_dinomed3d.evaluation.trainings import Training, trainings_of
from nnunetv2_dinomed3d.nnunet_files import dataset_name
from nnunetv2_dinomed3d.processes import PREEMPTED
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE, check_environment

HELP = "Print or run nnU-Net's commands that train all folds of all trainers."
EXAMPLES = """
dinomed3d crossval 4 3d_fullres -tr nnUNetTrainer_100epochs nnUNetTrainerDINOMed3D
dinomed3d crossval 4 -tr nnUNetTrainerDINOMed3D --gpus 0 1 --run
dinomed3d crossval 4 -tr nnUNetTrainerDINOMed3D --folds 0 1 --slurm
dinomed3d crossval 4 -tr TABLE1 --run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add data set, trainers and folds, and how their commands are run."""
    parser.add_argument("dataset", metavar="DATASET", help="number or name of nnU-Net's data set")
    parser.add_argument(
        "configuration",
        nargs="?",
        metavar="CONFIG",
        help="configuration of all trainers (default: 3d_fullres); a 2D network is trained on 2d",
    )
    parser.add_argument(
        "-tr",
        nargs="+",
        required=True,
        metavar="TRAINER",
        help="trainers, or the rows of the paper's tables: TABLE1, TABLE2, TABLE3",
    )
    parser.add_argument(
        "-p",
        nargs="+",
        default=["nnUNetPlans"],
        metavar="PLANS",
        help="plans: one, or one for each trainer (default: nnUNetPlans)",
    )
    parser.add_argument("-c", nargs="+", metavar="CONFIG", help="configurations, one for each trainer")
    parser.add_argument(
        "--folds",
        nargs="+",
        metavar="FOLD",
        help=f"numbers, or all (default: those of splits_final.json; without that file 0 to {DEFAULT_FOLDS - 1})",
    )
    parser.add_argument("--gpus", nargs="+", default=[], metavar="GPU", help="GPUs to use; each runs one job at a time")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    how.add_argument("--slurm", action="store_true", help="write a Slurm array script instead of printing the commands")


def run(args: argparse.Namespace) -> int:
    """Print the commands, run them, or write them as a script.

    Returns:
        The exit code. With ``--run`` it is 1 if a job failed (which stops no other), `PREEMPTED` if none failed, but
        one was interrupted or is being trained by another process. Else it is 0.

    Raises:
        ValueError: an argument is wrong, or the data set is not ready for it.
        Stopped: a signal came while jobs ran.
    """
    if args.slurm and args.gpus:
        raise ValueError("--gpus does not go with --slurm: Slurm gives each job its GPU.")
    check_environment()
    gpus = parse_gpus(args.gpus)
    trainings = parse_trainings(args)
    dataset = dataset_name(args.dataset)
    jobs = plan_jobs(dataset, trainings, parse_folds(args.folds, *count_folds(dataset)))
    if not os.environ.get(STAGE1_VARIABLE):
        jobs = with_shared_stage1(jobs)
    for note in length_notes([training.trainer for training in trainings]):
        print(f"# {note}")
    if args.slurm:
        unfinished = [job for job in jobs if job.state != "finished"]
        print("\n".join([*_finished(jobs), *(write_slurm(f"crossval_{dataset}", unfinished) if unfinished else [])]))
        return 0
    return run_or_print(jobs, gpus, run=args.run)


def _finished(jobs: Sequence[FoldJob]) -> list[str]:
    return [f"# finished: {job.name}" for job in jobs if job.state == "finished"]


def run_or_print(jobs: Sequence[FoldJob], gpus: Sequence[str], *, run: bool) -> int:
    """Run the jobs that are not finished, or print their commands.

    Returns:
        The exit code, see `run`.

    Raises:
        ValueError: a command of nnU-Net's is not found.
        Stopped: a signal came while jobs ran.
    """
    for line in _finished(jobs):
        print(line)
    unfinished = [job for job in jobs if job.state != "finished"]
    if not unfinished:
        return 0
    by_gpu = jobs_by_gpu(unfinished, gpus)
    if run:
        outcome = run_jobs({gpu: queue for gpu, queue in by_gpu.items() if queue})
        print("\n".join(outcome.failed + outcome.left) or "All jobs are done.")
        return 1 if outcome.failed else PREEMPTED if outcome.left else 0
    for gpu, queue in by_gpu.items():
        if gpu:
            print(f"# GPU {gpu}, one after the other")
        for job in queue:
            print(command_line(job, gpu))
    return 0


def write_slurm(name: str, jobs: Sequence[FoldJob]) -> list[str]:
    """Write a script for the jobs, and further ones for those that wait for jobs of the script before.

    Args:
        name: of the scripts, without ``.sh``.
        jobs: that are not finished.

    Returns:
        The commands that submit them.
    """
    waves: dict[int, list[FoldJob]] = {}
    for job in jobs:
        waves.setdefault(wave(job, jobs), []).append(job)
    commands: list[str] = []
    for number, (_, ready) in enumerate(sorted(waves.items()), 1):
        path = Path(f"{name}.sh" if number == 1 else f"{name}_{number}.sh")
        write_script(path, slurm_script(path.stem, ready))
        after = "" if number == 1 else f" --dependency=afterok:$job{number - 1}"
        submit = f"sbatch{after} {shlex.quote(str(path))}"
        is_last = number == len(waves)
        commands.append(submit if is_last else f"job{number}=$({submit.replace('sbatch', 'sbatch --parsable', 1)})")
    return commands


def parse_trainings(args: argparse.Namespace) -> list[Training]:
    """The trainings that the arguments name.

    Raises:
        ValueError: a name is none, the numbers differ, or a training is named twice.
    """
    for trainer in args.tr:
        if not trainer.isidentifier():
            raise ValueError(f"-tr {trainer!r} is no name of a trainer. DATASET and CONFIG stand before the options.")
    for name in args.p:
        if Path(name).name != name or not name.isprintable():
            raise ValueError(f"-p {name!r} is no name of plans, such as nnUNetPlans")
    if args.configuration and args.c:
        raise ValueError(f"The configuration is {args.configuration} and, by -c, {' '.join(args.c)}: give one of both.")
    return trainings_of(args.tr, args.p, args.c or ([args.configuration] if args.configuration else []))


def parse_folds(wanted: Sequence[str] | None, count: int, from_splits: bool) -> list[str]:
    """The folds to train, each in nnU-Net's spelling.

    Args:
        wanted: words of ``--folds``; None for all folds.
        count, from_splits: of `count_folds`.

    Raises:
        ValueError: there is no such fold, or one is named twice.
    """
    if wanted is None:
        return [str(fold) for fold in range(count)]
    folds: list[str] = []
    for word in wanted:
        if word != "all" and not re.fullmatch("[0-9]{1,9}", word):
            raise ValueError(f"--folds {word!r} is no fold: give numbers from 0 on, or all.")
        fold = word if word == "all" else str(int(word))
        if fold != "all" and int(fold) >= count:
            have = "splits_final.json has" if from_splits else "there is no splits_final.json yet; nnU-Net will make"
            raise ValueError(
                f"--folds {word}: {have} {count} folds, 0 to {count - 1}. nnU-Net would split any other at random, so "
                "that nobody could compare it."
            )
        if fold in folds:
            raise ValueError(f"--folds {' '.join(wanted)}: fold {fold} twice would write to one folder. Name it once.")
        folds.append(fold)
    return folds


def parse_gpus(words: Sequence[str]) -> list[str]:
    """Each GPU as CUDA_VISIBLE_DEVICES takes it: a number, or a name that ``nvidia-smi -L`` prints.

    Raises:
        ValueError: a word is neither, or a GPU is named twice.
    """
    for word in words:
        if not re.fullmatch(r"[0-9]{1,9}|(GPU|MIG)-[0-9A-Za-z/-]+", word):
            raise ValueError(
                f"--gpus {word!r} is no GPU: give numbers such as 0 1, or GPU-... as nvidia-smi -L prints it."
            )
    gpus = [str(int(word)) if word.isdigit() else word for word in words]
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {' '.join(gpus)}: one job at a time runs on each, so name it once.")
    return gpus
