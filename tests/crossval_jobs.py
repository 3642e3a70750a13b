"""A cross-validation with stand-ins for nnU-Net's commands, for the tests of ``dinomed3d crossval``."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.crossval import add_arguments, run
from tests.evaluation_results import NAME, fold_folder, write_results

FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
start = time.time()
print("training", *sys.argv[1:])
time.sleep(0.3)
record = dict(words=sys.argv[1:], gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), start=start, end=time.time())
Path({folder!r}, f"job_{{os.getpid()}}.json").write_text(json.dumps(record))
sys.exit(dict(FailsAt3=3, Interrupted=75).get(sys.argv[5], 0))
"""

LONG = """#!{python}
import os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})

def save(number, frame):
    worker.kill()
    (folder / "saved").write_text(str(number))
    sys.exit(75)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, save)
worker = subprocess.Popen(["sleep", "600"])
partial = folder / f"{{sys.argv[3]}}.partial"
partial.write_text(f"{{os.getpid()}} {{worker.pid}}")
partial.rename(folder / f"started_{{sys.argv[3]}}")
time.sleep(600)
"""
"""A training with a loader worker. On a signal it saves and exits with 75."""

FIVE_FOLDS: list[dict] = [{"train": [], "val": []}] * 5


def crossval(*words: str) -> int:
    """The command in this process; errors are raised."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


def make_trainings(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folds 0 and 1 of Ours are finished, 2 has a checkpoint, 3 is trained but not validated, 4 has not begun."""
    write_results(root, monkeypatch, {"Ours": 1})
    for fold, checkpoint in (
        (2, "checkpoint_best.pth"),
        (3, "checkpoint_final.pth"),
        (4, "checkpoint_best_stage1.pth"),
    ):
        fold_folder(root, "Ours", fold).mkdir()
        (fold_folder(root, "Ours", fold) / checkpoint).touch()
    (root / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(FIVE_FOLDS))
    for name in ("CUDA_VISIBLE_DEVICES", "DINOMED3D_WEIGHTS", "DINOMED3D_STAGE1"):
        monkeypatch.delenv(name, raising=False)
    return root


def stand_in(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: str) -> Path:
    """Put a program on the PATH; the folder it may write to."""
    folder, file = root / "jobs", root / "bin" / name
    folder.mkdir(exist_ok=True)
    file.parent.mkdir(exist_ok=True)
    file.write_text(program.format(python=sys.executable, folder=str(folder)))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    return folder


def records(folder: Path) -> list[dict]:
    """The calls of the stand-in FAKE, in order."""
    return sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda record: record["start"])


def in_slurm(script: Path, task: int, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a task of the Slurm script in a shell that has no setting of ours."""
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(task), **settings}
    return subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
