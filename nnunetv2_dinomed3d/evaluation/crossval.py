"""``dinomed3d crossval``: the nnU-Net commands that train all folds of all trainers; prints, runs or submits them."""

import argparse
import os
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.cases import is_validated
from nnunetv2_dinomed3d.evaluation.dataset import dataset_name, folder_of, model_name

EXPORTED = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")


@dataclass(frozen=True)
class Job:
    """A fold of a trainer.

    Attributes:
        command: what a person would type.
        state: "finished" (there is nothing to do), "validate", "resume" or "new".
    """

    name: str
    command: list[str]
    state: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``dinomed3d crossval``."""
    parser.add_argument("dataset", metavar="DATASET", help="number or name of nnU-Net's data set")
    parser.add_argument("configuration", nargs="?", default="3d_fullres", metavar="CONFIG", help="default: %(default)s")
    parser.add_argument("-tr", nargs="+", required=True, metavar="TRAINER", help="trainers")
    parser.add_argument("-p", nargs="+", default=["nnUNetPlans"], metavar="PLANS", help="one, or one for each trainer")
    parser.add_argument("--folds", nargs="+", default=list("01234"), metavar="FOLD", help="default: 0 1 2 3 4")
    parser.add_argument("--gpus", nargs="+", default=[], metavar="GPU", help="one job at a time on each of these")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    how.add_argument("--slurm", action="store_true", help="write them as a Slurm array script instead")


def fold_state(model: Path, fold: str) -> str:
    """How far nnU-Net got, by the files it leaves."""
    if is_validated(model, fold):
        return "finished"
    folder = model / f"fold_{fold}"
    if (folder / "checkpoint_final.pth").is_file():
        return "validate"
    if any((folder / name).is_file() for name in ("checkpoint_latest.pth", "checkpoint_best.pth")):
        return "resume"
    return "new"


def plan_jobs(
    dataset: str, configuration: str, trainers: list[str], plans: list[str], folds: Iterable[str]
) -> list[Job]:
    """A job for each trainer and fold, trainer by trainer.

    Args:
        plans: one for all trainers, or one for each.
    """
    if len(plans) not in (1, len(trainers)):
        raise ValueError(f"-p names {len(plans)} plans for {len(trainers)} trainers: give one, or one for each")
    pairs = list(zip(trainers, plans * len(trainers) if len(plans) == 1 else plans, strict=True))
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{' '.join(trainers)}: the same training twice would write to one folder; leave one out")
    for plan in dict.fromkeys(plans):
        _check_preprocessed(dataset, configuration, plan)
    flags = {"finished": [], "validate": ["--val"], "resume": ["--c"], "new": []}
    jobs = []
    for trainer, plan in pairs:
        folder = folder_of("nnUNet_results") / dataset / model_name(trainer, plan, configuration)
        for fold in folds:
            if fold != "all" and not fold.isdigit():
                raise ValueError(f"--folds {fold!r} is no fold: numbers from 0 on, or all")
            state = fold_state(folder, fold)
            command = ["nnUNetv2_train", dataset, configuration, fold, "-tr", trainer, "-p", plan, *flags[state]]
            jobs.append(Job(f"{trainer} fold {fold}", command, state))
    return jobs


def _check_preprocessed(dataset: str, configuration: str, plans: str) -> None:
    number = dataset.removeprefix("Dataset")[:3].lstrip("0")
    path = folder_of("nnUNet_preprocessed") / dataset / f"{plans}.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: run nnUNetv2_plan_and_preprocess -d {number} -c {configuration}, or see -p"
        )
    if configuration not in (there := read_json(path)["configurations"]):
        raise ValueError(f"{path} has no configuration {configuration!r}; it has {', '.join(there)}")


def by_gpu(jobs: list[Job], gpus: list[str]) -> dict[str, list[Job]]:
    """The jobs dealt out in turn; without GPUs, all in one row."""
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {' '.join(gpus)}: one job at a time runs on each, name it once")
    return {gpu: jobs[i :: len(gpus)] for i, gpu in enumerate(gpus)} if gpus else {"": jobs}


def command_line(job: Job, gpu: str) -> str:
    """As it is typed."""
    return (f"CUDA_VISIBLE_DEVICES={gpu} " if gpu else "") + shlex.join(job.command)


def run_jobs(rows: dict[str, list[Job]]) -> int:
    """Run every row's jobs one after the other, the rows side by side; 1 if any failed, which stops no other."""
    if not shutil.which("nnUNetv2_train"):
        raise ValueError("nnUNetv2_train is not on the PATH: activate nnU-Net's environment")
    stop, failed = threading.Event(), []

    def run_row(gpu: str, jobs: list[Job]) -> None:
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        for job in jobs:
            if stop.is_set():
                return
            print(command_line(job, gpu), flush=True)
            if code := _run(job.command, environment, f"[GPU {gpu}] " if len(rows) > 1 else ""):
                failed.append(f"{job.name} ended with {code}: {command_line(job, gpu)}")

    with ThreadPoolExecutor(len(rows)) as pool:
        futures = [pool.submit(run_row, gpu, jobs) for gpu, jobs in rows.items()]
        try:
            for future in futures:
                future.result()
        except KeyboardInterrupt:  # the terminal interrupts what is running, nothing more is started
            stop.set()
            raise
    print("\n".join(failed) if failed else "All jobs are done.")
    return 1 if failed else 0


def _run(command: list[str], environment: dict[str, str], prefix: str) -> int:
    """Run a command; with a prefix, it stands before each line of the output."""
    if not prefix:
        return subprocess.run(command, env=environment).returncode
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(prefix + line, end="", flush=True)
    return process.returncode


def slurm_script(dataset: str, jobs: list[Job]) -> str:
    """A job array, one GPU and one command each."""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=crossval_{dataset}",
        f"#SBATCH --array=0-{len(jobs) - 1}",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --output=%x_%A_%a.log",
        "# partition, time and memory are your cluster's: add them here, or give them to sbatch",
        "",
        *(f"export {name}={shlex.quote(os.environ[name])}" for name in EXPORTED if os.environ.get(name)),
        "",
        "commands=(",
        *(f"    {shlex.quote(shlex.join(job.command))}" for job in jobs),
        ")",
        'eval "${commands[$SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def run_crossval(args: argparse.Namespace) -> int:
    """Print what is to be run, run it or write it as a script; 1 if a job failed, else 0."""
    if args.slurm and args.gpus:
        raise ValueError("--gpus does not go with --slurm: Slurm gives each job its GPU")
    dataset = dataset_name(args.dataset)
    jobs = plan_jobs(dataset, args.configuration, args.tr, args.p, args.folds)
    for job in jobs:
        if job.state == "finished":
            print(f"# finished: {job.name}")
    todo = [job for job in jobs if job.state != "finished"]
    rows = by_gpu(todo, args.gpus)
    if not todo:
        return 0
    if args.slurm:
        path = Path(f"crossval_{dataset}.sh")
        path.write_text(slurm_script(dataset, todo), encoding="utf-8")
        print(f"sbatch {path}")
        return 0
    if args.run:
        return run_jobs({gpu: row for gpu, row in rows.items() if row})
    for gpu, row in rows.items():
        if gpu:
            print(f"# GPU {gpu}, one after the other")
        for job in row:
            print(command_line(job, gpu))
    return 0
