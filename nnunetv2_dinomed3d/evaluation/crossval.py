"""Cross-validation: the trainings of all folds of all trainers, how far each got, and running what is left to do."""

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.trainings import Training
from nnunetv2_dinomed3d.folder_lock import LOCK, Owner, read_owner
from nnunetv2_dinomed3d.nnunet_files import is_validated, preprocessed_folder, read_splits, splits_file
from nnunetv2_dinomed3d.processes import PREEMPTED, Commands
from nnunetv2_dinomed3d.settings import STAGE1_VARIABLE
from nnunetv2_dinomed3d.trainer_names import BASELINE, DINOMED3D, STAGE1_ALONE, stage1_of

DEFAULT_FOLDS = 5
"""The number of folds that nnU-Net makes if there is no ``splits_final.json``."""

STOCK, STOCK_EPOCHS = "nnUNetTrainer", 1000
STOCK_LENGTHS = (5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
"""The numbers of epochs for which nnU-Net has a trainer, such as ``nnUNetTrainer_100epochs``."""

OUR_EPOCHS = 100

BEST, STAGE1_BEST = "checkpoint_best.pth", "checkpoint_best_stage1.pth"
"""Names of the best epoch's checkpoint: of a training, and of a stage 1 that stage 2 follows."""

BUSY_SECONDS = 600.0
"""A training whose log was written within this time may still run."""

State = Literal["finished", "validate", "resume", "new"]
FLAGS: dict[State, list[str]] = {"finished": [], "validate": ["--val"], "resume": ["--c"], "new": []}
"""The options of nnUNetv2_train that go on from each state."""


@dataclass(frozen=True)
class FoldJob:
    """The training of one fold with one trainer.

    Attributes:
        trainer: name of the trainer.
        fold: number of the fold, or "all".
        model: the training's folder in ``nnUNet_results``.
        words: the command line that begins the training.
        state: how far the training got.
        waits_for: the job whose stage 1 this one starts from; None if it trains its own, or has begun.
    """

    trainer: str
    fold: str
    model: Path
    words: list[str]
    state: State
    waits_for: "FoldJob | None" = None

    @property
    def name(self) -> str:
        """Trainer and fold, for messages."""
        return f"{self.trainer} fold {self.fold}"

    @property
    def command(self) -> list[str]:
        """The command line that goes on with the training."""
        return [*self.words, *FLAGS[self.state]]

    @property
    def environment(self) -> dict[str, str]:
        """Settings that the command needs besides those of this process."""
        first = self.waits_for
        if first is None or self.state != "new":
            return {}
        checkpoint = BEST if STAGE1_ALONE in first.trainer else STAGE1_BEST
        return {STAGE1_VARIABLE: str(first.model / f"fold_{first.fold}" / checkpoint)}

    def seconds_since_written(self) -> float | None:
        """The age of the training's log; None if there is none."""
        logs = [path.stat().st_mtime for path in (self.model / f"fold_{self.fold}").glob("training_log_*.txt")]
        return max(time.time() - max(logs), 0) if logs else None

    def refreshed(self) -> "FoldJob":
        """The same job in its present state: another process may have gone on with the training, or finished it."""
        return replace(self, state=fold_state(self.model, self.fold))

    def owner(self) -> Owner | None:
        """The process that trains in the fold's folder, if it runs one of our trainers on this machine."""
        owner = read_owner(self.model / f"fold_{self.fold}" / LOCK)
        return owner if owner and owner.is_alive() else None


@dataclass(frozen=True)
class Outcome:
    """The outcome of `run_jobs`.

    Attributes:
        failed: a sentence for each job that failed.
        left: a sentence for each job that was interrupted, or is being trained by another process.
    """

    failed: list[str]
    left: list[str]


def fold_state(model: Path, fold: str) -> State:
    """The state of a fold's training, by the files that nnU-Net leaves.

    Raises:
        ValueError: a training was begun over a finished one, so that nnU-Net would go on with the wrong one.
    """
    if is_validated(model, fold):
        return "finished"
    folder = model / f"fold_{fold}"
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    if final.is_file():
        if latest.is_file() and latest.stat().st_mtime > final.stat().st_mtime:
            raise ValueError(
                f"{folder}: a training was begun over a finished one, and nnU-Net would validate the finished one. "
                f"To go on with the newer {latest.name}, move {final.name} away. To keep the finished training, move "
                f"{latest.name} away."
            )
        return "validate"
    if any((folder / name).is_file() for name in ("checkpoint_latest.pth", "checkpoint_best.pth")):
        return "resume"
    return "new"


def plan_jobs(dataset: str, trainings: Sequence[Training], folds: Iterable[str]) -> list[FoldJob]:
    """The jobs of all trainings and folds, training by training.

    Args:
        dataset: name of the data set.
        trainings: trainer, plans and configuration of each.
        folds: of each training, in nnU-Net's spelling.

    Raises:
        ValueError: the data is not preprocessed with such plans, or a folder is in no clear state.
    """
    for plans, configuration in dict.fromkeys((training.plans, training.configuration) for training in trainings):
        _check_preprocessed(dataset, configuration, plans)
    jobs = []
    folds = list(folds)
    for training in trainings:
        trainer, plans, configuration = training
        model = training.folder(dataset)
        for fold in folds:
            words = ["nnUNetv2_train", dataset, configuration, fold, "-tr", trainer, "-p", plans]
            jobs.append(FoldJob(trainer, fold, model, words, fold_state(model, fold)))
    return jobs


def with_shared_stage1(jobs: Sequence[FoldJob]) -> list[FoldJob]:
    """The same jobs, where those of a fold with the same stage 1 (Table 3) train it once and the others start from it.

    The one that trains it is that of stage 1 alone, if it is there, else the first.
    """
    groups: dict[tuple[str, ...], list[FoldJob]] = {}
    for job in jobs:
        if (stage1 := stage1_of(job.trainer)) is not None:
            groups.setdefault((stage1, job.fold, *job.model.name.split("__")[1:]), []).append(job)
    result: dict[int, FoldJob] = {id(job): job for job in jobs}
    for group in groups.values():
        first = next((job for job in group if STAGE1_ALONE in job.trainer), group[0])
        for job in group:
            if job is not first and job.state == "new":
                result[id(job)] = replace(job, waits_for=first)
    return list(result.values())


def count_folds(dataset: str) -> tuple[int, bool]:
    """The number of the data set's folds, and whether ``splits_final.json`` states it.

    Raises:
        ValueError: the file is malformed or names no fold.
    """
    path = splits_file(dataset)
    if not path.exists():
        return DEFAULT_FOLDS, False
    count = len(read_splits(path))
    if not count:
        raise ValueError(f"{path} names no fold. Remove it, and nnU-Net makes {DEFAULT_FOLDS}.")
    return count, True


def _check_preprocessed(dataset: str, configuration: str, plans: str) -> None:
    number = int(dataset.removeprefix("Dataset").partition("_")[0])
    path = preprocessed_folder(dataset) / f"{plans}.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist. Run nnUNetv2_plan_and_preprocess -d {number} -c {shlex.quote(configuration)}, or "
            "name other plans with -p."
        )
    content = read_json(path)
    there = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(there, dict):
        raise ValueError(f"{path} holds no configurations, so it is no file of nnU-Net's plans.")
    if configuration not in there:
        raise ValueError(f"{path} has no configuration {configuration!r}; it has {', '.join(there)}")


def jobs_by_gpu(jobs: Sequence[FoldJob], gpus: Sequence[str]) -> dict[str, list[FoldJob]]:
    """The jobs dealt out to the GPUs in turn; without GPUs, all of them under the empty name.

    Jobs that share a stage 1 run on one GPU, one after the other.
    """
    chains: dict[str, list[FoldJob]] = {}
    for job in jobs:
        first = job
        while first.waits_for is not None:
            first = first.waits_for
        chains.setdefault(f"{first.model} {first.fold}", []).append(job)
    for chain in chains.values():
        chain.sort(key=lambda job: wave(job, chain))
    dealt = list(chains.values())
    names = list(gpus) or [""]
    return {gpu: [job for chain in dealt[i :: len(names)] for job in chain] for i, gpu in enumerate(names)}


def wave(job: FoldJob, jobs: Sequence[FoldJob]) -> int:
    """The number of jobs among these that have to be done one after the other before this one."""
    first = job.waits_for
    if first is None:
        return 0
    is_left = any((other.model, other.fold, other.words) == (first.model, first.fold, first.words) for other in jobs)
    return wave(first, jobs) + is_left


def command_line(job: FoldJob, gpu: str) -> str:
    """The line to type in a shell that goes on with the job; `gpu` may be empty."""
    settings = {**({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}), **job.environment}
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in settings.items()), shlex.join(job.command)])


def length_notes(trainers: Sequence[str]) -> list[str]:
    """Sentences about trainings of unequal length: in the paper, every method is trained for the same epochs."""
    if STOCK not in trainers:
        return []
    ours = [trainer for trainer in trainers if trainer.startswith((DINOMED3D, BASELINE))]
    lengths = [int(found[1]) if (found := re.search(r"_([0-9]+)epochs", name)) else OUR_EPOCHS for name in ours]
    return [
        f"{STOCK} trains for {STOCK_EPOCHS} epochs, {name} for {epochs}; of equal length, as in the paper, is "
        f"nnUNetTrainer_{epochs}epochs"
        for name, epochs in zip(ours, lengths, strict=True)
        if epochs in STOCK_LENGTHS
    ]


def run_jobs(jobs: Mapping[str, Sequence[FoldJob]]) -> Outcome:
    """Run the jobs of each GPU one after the other, the GPUs side by side. Each command is printed as it starts.

    A signal is passed on to the running commands, which are waited for; no other is started then.

    Args:
        jobs: by GPU, as `jobs_by_gpu` gives them.

    Raises:
        ValueError: nnU-Net's command is not found.
        Stopped: a signal came.
    """
    if not shutil.which("nnUNetv2_train"):
        raise ValueError("nnUNetv2_train is not on the PATH. Activate nnU-Net's environment.")
    outcome = Outcome([], [])

    def run_in_turn(gpu: str, run: Callable[..., int]) -> None:
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        for planned in jobs[gpu]:
            job = planned.refreshed()
            if job.state == "finished":
                print(f"# finished in the meantime: {job.name}", flush=True)
                continue
            if owner := job.owner():
                outcome.left.append(f"{job.name} is left out, as it is being trained: {owner}")
                continue
            if (first := job.waits_for) is not None and first.refreshed().state not in ("finished", "validate"):
                outcome.left.append(f"{job.name} is left out: it starts from {first.name}, which is not done")
                continue
            _warn_if_busy(job)
            print(command_line(job, gpu), flush=True)
            code = run(job.command, {**environment, **job.environment}, f"[GPU {gpu}] " if len(jobs) > 1 else "")
            if code == PREEMPTED:
                outcome.left.append(f"{job.name} was interrupted; to go on: {command_line(job.refreshed(), gpu)}")
            elif code:
                outcome.failed.append(f"{job.name} ended with {code}: {command_line(job, gpu)}")

    with Commands() as commands, ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(run_in_turn, gpu, commands.run) for gpu in jobs]:
            future.result()
    return outcome


def _warn_if_busy(job: FoldJob) -> None:
    """Warn of another training in the folder: nnU-Net's own trainers do not notice one another."""
    age = job.seconds_since_written()
    if age is not None and age < BUSY_SECONDS:
        print(
            f"dinomed3d: warning: {job.name}: its training log was written {age:.0f} s ago. If that training "
            "still runs, stop one of the two, as both write to one folder.",
            file=sys.stderr,
            flush=True,
        )
