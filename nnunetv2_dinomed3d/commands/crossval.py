"""``dinomed3d crossval``: the nnU-Net commands that train all folds of all trainers; prints, runs or submits them."""

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_dinomed3d.dataset_json import read_json
from nnunetv2_dinomed3d.evaluation.cases import is_validated, read_splits
from nnunetv2_dinomed3d.folder_lock import LOCK, Owner, read_owner
from nnunetv2_dinomed3d.nnunet_files import dataset_name, folder_of, model_name
from nnunetv2_dinomed3d.processes import PREEMPTED, Commands
from nnunetv2_dinomed3d.settings import VARIABLES, WEIGHTS_VARIABLE, check_environment

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")
NNUNETS_FOLDS = 5
"""That nnU-Net makes where there is no ``splits_final.json``."""

STOCK, STOCK_EPOCHS = "nnUNetTrainer", 1000
STOCK_LENGTHS = (5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)
"""For which nnU-Net has a trainer, such as ``nnUNetTrainer_100epochs``."""

OURS, OUR_EPOCHS = "nnUNetTrainerDINOMed3D", 100

BUSY_SECONDS = 600.0
"""A training log that was written in these last seconds may be that of a training that runs."""

WARNING_SECONDS = 300
"""How long before a job's time is over Slurm shall say so: time to finish a step and save."""

AGAIN = """\
again=""  # a task that Slurm starts once more goes on
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then again="--c"; fi""".splitlines()

RUN = f"""\
warned=""  # that the time is nearly over: DINO-Med3D's trainers save then, and end with {PREEMPTED}
trap 'warned=yes; kill -USR1 $training' USR1
trap 'kill -TERM $training' TERM
"${{command[@]}}" &
training=$!
while kill -0 $training 2> /dev/null; do wait $training; done  # a signal ends a wait, not the training
wait $training
code=$?
if [ "$warned" ] && [ $code -eq {PREEMPTED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code""".splitlines()
"""Of the script: Slurm's signals are passed on, and what its warning interrupted is put into the queue again."""

FLAGS = {"finished": [], "validate": ["--val"], "resume": ["--c"], "new": []}


@dataclass(frozen=True)
class Job:
    """A fold of a trainer.

    Attributes:
        model: nnU-Net's results folder of the training.
        words: what a person would type to begin it.
        state: "finished" (there is nothing to do), "validate", "resume" or "new".
    """

    trainer: str
    fold: str
    model: Path
    words: list[str]
    state: str

    @property
    def name(self) -> str:
        return f"{self.trainer} fold {self.fold}"

    @property
    def command(self) -> list[str]:
        """What a person would type to go on."""
        return [*self.words, *FLAGS[self.state]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of ``dinomed3d crossval``."""
    parser.add_argument("dataset", metavar="DATASET", help="number or name of nnU-Net's data set")
    parser.add_argument("configuration", nargs="?", default="3d_fullres", metavar="CONFIG", help="default: %(default)s")
    parser.add_argument("-tr", nargs="+", required=True, metavar="TRAINER", help="trainers")
    parser.add_argument("-p", nargs="+", default=["nnUNetPlans"], metavar="PLANS", help="one, or one for each trainer")
    parser.add_argument(
        "--folds",
        nargs="+",
        metavar="FOLD",
        help=f"numbers, or all (default: those of splits_final.json; 0 to {NNUNETS_FOLDS - 1} where it is not there)",
    )
    parser.add_argument("--gpus", nargs="+", default=[], metavar="GPU", help="one job at a time on each of these")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="run the commands instead of printing them")
    how.add_argument("--slurm", action="store_true", help="write them as a Slurm array script instead")


def fold_state(model: Path, fold: str) -> str:
    """How far nnU-Net got, by the files it leaves.

    Raises:
        ValueError: a training was begun over a finished one, and nnU-Net would go on with the wrong one.
    """
    if is_validated(model, fold):
        return "finished"
    folder = model / f"fold_{fold}"
    final, latest = folder / "checkpoint_final.pth", folder / "checkpoint_latest.pth"
    if final.is_file():
        if latest.is_file() and latest.stat().st_mtime > final.stat().st_mtime:
            raise ValueError(
                f"{folder}: a training was begun over a finished one, and nnU-Net would validate the finished one: "
                f"move {final.name} away to go on with the newer {latest.name}, or {latest.name} to keep what is "
                "finished"
            )
        return "validate"
    if any((folder / name).is_file() for name in ("checkpoint_latest.pth", "checkpoint_best.pth")):
        return "resume"
    return "new"


def plan_jobs(
    dataset: str, configuration: str, trainers: list[str], plans: list[str], folds: list[str] | None = None
) -> list[Job]:
    """A job for each trainer and fold, trainer by trainer.

    Args:
        plans: one for all trainers, or one for each.
        folds: None for all that there are.
    """
    for trainer in trainers:
        if not trainer.isidentifier():
            raise ValueError(f"-tr {trainer!r} is no name of a trainer (DATASET and CONFIG stand before the options)")
    if len(plans) not in (1, len(trainers)):
        raise ValueError(f"-p names {len(plans)} plans for {len(trainers)} trainers: give one, or one for each")
    pairs = list(zip(trainers, plans * len(trainers) if len(plans) == 1 else plans, strict=True))
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{' '.join(trainers)}: the same training twice would write to one folder; leave one out")
    for plan in dict.fromkeys(plans):
        _check_preprocessed(dataset, configuration, plan)
    jobs = []
    numbers = _folds(dataset, folds)
    for trainer, plan in pairs:
        model = folder_of("nnUNet_results") / dataset / model_name(trainer, plan, configuration)
        for fold in numbers:
            words = ["nnUNetv2_train", dataset, configuration, fold, "-tr", trainer, "-p", plan]
            jobs.append(Job(trainer, fold, model, words, fold_state(model, fold)))
    return jobs


def _folds(dataset: str, wanted: list[str] | None) -> list[str]:
    """The folds to train, each in nnU-Net's own spelling."""
    path = folder_of("nnUNet_preprocessed") / dataset / "splits_final.json"
    if path.exists():
        count, whose = len(read_splits(dataset)), "splits_final.json has"
        if not count:
            raise ValueError(f"{path} names no fold: remove it, and nnU-Net makes {NNUNETS_FOLDS}")
    else:
        count, whose = NNUNETS_FOLDS, "there is no splits_final.json yet, and nnU-Net will make"
    if wanted is None:
        return [str(fold) for fold in range(count)]
    folds = []
    for word in wanted:
        if word != "all" and not re.fullmatch("[0-9]{1,9}", word):
            raise ValueError(f"--folds {word!r} is no fold: numbers from 0 on, or all")
        fold = word if word == "all" else str(int(word))
        if fold != "all" and int(fold) >= count:
            raise ValueError(
                f"--folds {word}: {whose} {count} folds, 0 to {count - 1}; others would be split at random, and "
                "nobody could compare them"
            )
        if fold in folds:
            raise ValueError(f"--folds {' '.join(wanted)}: fold {fold} twice would write to one folder; name it once")
        folds.append(fold)
    return folds


def _check_preprocessed(dataset: str, configuration: str, plans: str) -> None:
    if Path(plans).name != plans or not plans.isprintable():
        raise ValueError(f"-p {plans!r} is no name of plans, such as nnUNetPlans")
    number = int(dataset.removeprefix("Dataset").partition("_")[0])
    path = folder_of("nnUNet_preprocessed") / dataset / f"{plans}.json"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: run nnUNetv2_plan_and_preprocess -d {number} -c {shlex.quote(configuration)}, "
            "or see -p"
        )
    content = read_json(path)
    there = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(there, dict):
        raise ValueError(f"{path} holds no configurations: it is no plans file of nnU-Net's")
    if configuration not in there:
        raise ValueError(f"{path} has no configuration {configuration!r}; it has {', '.join(there)}")


def check_gpus(gpus: list[str]) -> list[str]:
    """Each GPU as CUDA_VISIBLE_DEVICES takes it: a number, or a name that ``nvidia-smi -L`` prints."""
    for gpu in gpus:
        if not re.fullmatch(r"[0-9]{1,9}|(GPU|MIG)-[0-9A-Za-z/-]+", gpu):
            raise ValueError(f"--gpus {gpu!r} is no GPU: numbers such as 0 1, or GPU-... as nvidia-smi -L prints it")
    gpus = [str(int(gpu)) if gpu.isdigit() else gpu for gpu in gpus]
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {' '.join(gpus)}: one job at a time runs on each, name it once")
    return gpus


def by_gpu(jobs: list[Job], gpus: list[str]) -> dict[str, list[Job]]:
    """The jobs dealt out in turn; without GPUs, all in one row."""
    return {gpu: jobs[i :: len(gpus)] for i, gpu in enumerate(gpus)} if gpus else {"": jobs}


def command_line(job: Job, gpu: str) -> str:
    """As it is typed."""
    return (f"CUDA_VISIBLE_DEVICES={shlex.quote(gpu)} " if gpu else "") + shlex.join(job.command)


def like_for_like(trainers: list[str]) -> list[str]:
    """Comments on trainings of unequal length: in the paper every method is trained for as many epochs as the other."""
    if STOCK not in trainers:
        return []
    ours = [trainer for trainer in trainers if trainer.startswith(OURS)]
    lengths = [int(found[1]) if (found := re.search(r"_([0-9]+)epochs", name)) else OUR_EPOCHS for name in ours]
    return [
        f"# {STOCK} trains for {STOCK_EPOCHS} epochs, {name} for {epochs}; of equal length, as in the paper, is "
        f"nnUNetTrainer_{epochs}epochs"
        for name, epochs in zip(ours, lengths, strict=True)
        if epochs in STOCK_LENGTHS
    ]


def run_jobs(rows: dict[str, list[Job]]) -> int:
    """Run every row's jobs one after the other, the rows side by side.

    A signal is passed on to what runs, which is waited for; nothing more is started then.

    Returns:
        The exit code: 1 if a job failed, which stops no other; `PREEMPTED` if none failed, but one was interrupted
        and can go on, or is being trained by another process; else 0.
    """
    if not shutil.which("nnUNetv2_train"):
        raise ValueError("nnUNetv2_train is not on the PATH: activate nnU-Net's environment")
    failed: list[str] = []
    left: list[str] = []

    def run_row(gpu: str, jobs: list[Job], run: Callable[..., int]) -> None:
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
        for job in map(_as_it_is_now, jobs):
            if job.state == "finished":
                print(f"# finished in the meantime: {job.name}", flush=True)
                continue
            if owner := _owner(job):
                left.append(f"{job.name} is left out, as it is being trained: {owner}")
                continue
            _warn_if_busy(job)
            print(command_line(job, gpu), flush=True)
            code = run(job.command, environment, f"[GPU {gpu}] " if len(rows) > 1 else "")
            if code == PREEMPTED:
                left.append(f"{job.name} was interrupted; to go on: {command_line(_as_it_is_now(job), gpu)}")
            elif code:
                failed.append(f"{job.name} ended with {code}: {command_line(job, gpu)}")

    with Commands() as commands, ThreadPoolExecutor(len(rows)) as pool:
        for future in [pool.submit(run_row, gpu, jobs, commands.run) for gpu, jobs in rows.items()]:
            future.result()
    print("\n".join(failed + left) or "All jobs are done.")
    return 1 if failed else PREEMPTED if left else 0


def _as_it_is_now(job: Job) -> Job:
    """A job whose turn has come: another run may have gone on with it, or finished it."""
    return Job(job.trainer, job.fold, job.model, job.words, fold_state(job.model, job.fold))


def _owner(job: Job) -> Owner | None:
    """The process that trains in a job's folder, if it is one of our trainers on this machine."""
    owner = read_owner(job.model / f"fold_{job.fold}" / LOCK)
    return owner if owner and owner.is_alive() else None


def _warn_if_busy(job: Job) -> None:
    """nnU-Net's own trainers do not notice one another in a folder."""
    logs = [path.stat().st_mtime for path in (job.model / f"fold_{job.fold}").glob("training_log_*.txt")]
    if logs and (age := time.time() - max(logs)) < BUSY_SECONDS:
        print(
            f"dinomed3d: warning: {job.name}: its training log was written {max(age, 0):.0f} s ago. If that training "
            "still runs, stop one of the two: both write to one folder",
            file=sys.stderr,
            flush=True,
        )


def _settings() -> list[str]:
    """Lines that make what a training depends on the same in every shell; paths become absolute."""
    lines = []
    for name, value in sorted(os.environ.items()):
        if not re.fullmatch(r"(nnUNet|DINOMED3D)_\w+", name, re.ASCII) or not value.strip():
            continue
        if name in FOLDERS:
            value = os.pathsep.join(os.path.abspath(path) for path in value.split(os.pathsep) if path)
        elif name.endswith(("_WEIGHTS", "_STAGE1")) and (name, value.strip()) != (WEIGHTS_VARIABLE, "random"):
            value = os.path.abspath(os.path.expanduser(value.strip()))
        lines.append(f"export {name}={shlex.quote(value)}")
    unset = [name for name in VARIABLES if not os.environ.get(name, "").strip()]
    return [*lines, *([f"unset {' '.join(unset)}"] if unset else [])]


def slurm_script(dataset: str, jobs: list[Job]) -> str:
    """A job array, one GPU and one command each."""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=crossval_{re.sub('[^0-9A-Za-z_.-]', '_', dataset)}",
        f"#SBATCH --array=0-{len(jobs) - 1}",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --cpus-per-task=12",
        "#SBATCH --output=%x_%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{WARNING_SECONDS}",
        "# partition, time and memory are your cluster's: add them here, or give them to sbatch",
        "",
        *_settings(),
        "",
        *AGAIN,
        'case "$SLURM_ARRAY_TASK_ID" in',
        *(
            f"{i}) command=({shlex.join(job.command)}{' $again' if job.state == 'new' else ''}) ;;"
            for i, job in enumerate(jobs)
        ),
        "*) echo \"SLURM_ARRAY_TASK_ID is '$SLURM_ARRAY_TASK_ID', which is no task: use sbatch\" >&2; exit 1 ;;",
        "esac",
        "",
        *RUN,
    ]
    return "\n".join(lines) + "\n"


def write_script(path: Path, script: str) -> None:
    """Write the script, but over no other."""
    content = script.encode("utf-8", "surrogateescape")
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            raise ValueError(f"{path} exists and holds something else: remove it, or call this elsewhere") from None


def run_crossval(args: argparse.Namespace) -> int:
    """Print what is to be run, run it or write it as a script; the exit code of `run_jobs`, else 0."""
    if args.slurm and args.gpus:
        raise ValueError("--gpus does not go with --slurm: Slurm gives each job its GPU")
    check_environment()
    gpus = check_gpus(args.gpus)
    dataset = dataset_name(args.dataset)
    jobs = plan_jobs(dataset, args.configuration, args.tr, args.p, args.folds)
    for line in like_for_like(args.tr):
        print(line)
    for job in jobs:
        if job.state == "finished":
            print(f"# finished: {job.name}")
    todo = [job for job in jobs if job.state != "finished"]
    rows = by_gpu(todo, gpus)
    if not todo:
        return 0
    if args.slurm:
        path = Path(f"crossval_{dataset}.sh")
        write_script(path, slurm_script(dataset, todo))
        print(f"sbatch {shlex.quote(str(path))}")
        return 0
    if args.run:
        return run_jobs({gpu: row for gpu, row in rows.items() if row})
    for gpu, row in rows.items():
        if gpu:
            print(f"# GPU {gpu}, one after the other")
        for job in row:
            print(command_line(job, gpu))
    return 0
