"""The script that runs the jobs of a cross-validation as a Slurm array, one GPU for each."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_dinomed3d.evaluation.crossval import FoldJob
from nnunetv2_dinomed3d.processes import PREEMPTED
from nnunetv2_dinomed3d.settings import VARIABLES, WEIGHTS_VARIABLE

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer")

WARNING_SECONDS = 300
"""Seconds from Slurm's warning to the end of a job's time: enough to finish a step and save."""

RESTART = """\
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
"""Lines of the script that pass Slurm's signals on, and requeue a task that its warning interrupted."""


def slurm_script(name: str, jobs: Sequence[FoldJob]) -> str:
    """The text of the script: a job array of that name with one command for each task."""
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={re.sub('[^0-9A-Za-z_.-]', '_', name)}",
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
        *RESTART,
        'case "$SLURM_ARRAY_TASK_ID" in',
        *(f"{i}) {_exports(job)}command=({shlex.join(job.command)}{_again(job)}) ;;" for i, job in enumerate(jobs)),
        "*) echo \"SLURM_ARRAY_TASK_ID is '$SLURM_ARRAY_TASK_ID', which is no task: use sbatch\" >&2; exit 1 ;;",
        "esac",
        "",
        *RUN,
    ]
    return "\n".join(lines) + "\n"


def _again(job: FoldJob) -> str:
    """A training that has not begun goes on when Slurm starts its task once more."""
    return " $again" if job.state == "new" and job.words[0] == "nnUNetv2_train" else ""


def _exports(job: FoldJob) -> str:
    settings = {name: os.path.abspath(path) for name, path in job.environment.items()}
    return "".join(f"export {name}={shlex.quote(value)}; " for name, value in settings.items())


def _settings() -> list[str]:
    """Lines that give a training the same settings in every shell. Paths become absolute."""
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


def write_script(path: Path, script: str) -> None:
    """Write the script to a new file, or leave one that holds the same.

    Raises:
        ValueError: the file exists and holds something else.
    """
    content = script.encode("utf-8", "surrogateescape")
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
            raise ValueError(
                f"{path} exists and holds something else. Remove it, or run this in another folder."
            ) from None
