"""The Slurm script of ``dinomed3d crossval --slurm``: what it runs, in which settings, and what signals do."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.crossval_jobs import FAKE, LONG, crossval, in_slurm, make_trainings, records, stand_in
from tests.evaluation_results import NAME
from tests.processes import wait_until

pytestmark = pytest.mark.own


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """See `make_trainings`."""
    return make_trainings(tmp_path, monkeypatch)


@pytest.fixture
def jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nnUNetv2_train on the PATH that records how it was called; the folder of its records."""
    return stand_in(root, monkeypatch, "nnUNetv2_train", FAKE)


@pytest.fixture
def long_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that trains until a signal comes."""
    return stand_in(root, monkeypatch, "nnUNetv2_train", LONG)


def test_slurm_script_runs_one_command_per_task(root: Path, jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crossval("777", "-tr", "Ours", "--slurm") == 0
    script = root / f"crossval_{NAME}.sh"
    assert capsys.readouterr().out.splitlines()[-1] == f"sbatch {script.name}"
    assert "#SBATCH --array=0-2\n" in script.read_text()
    for task in range(3):
        assert in_slurm(script, task).returncode == 0
    assert [record["words"][2:] for record in records(jobs)] == [
        ["2", "-tr", "Ours", "-p", "nnUNetPlans", "--c"],
        ["3", "-tr", "Ours", "-p", "nnUNetPlans", "--val"],
        ["4", "-tr", "Ours", "-p", "nnUNetPlans"],
    ]
    for task in range(3):
        assert in_slurm(script, task, SLURM_RESTART_COUNT="1").returncode == 0
    assert [record["words"][7:] for record in records(jobs)[3:]] == [["--c"], ["--val"], ["--c"]]
    assert in_slurm(script, 3).returncode == 1
    assert len(records(jobs)) == 6


def test_slurm_passes_on_how_a_job_ends(root: Path, jobs: Path) -> None:
    assert crossval("777", "-tr", "FailsAt3", "--folds", "1", "--slurm") == 0
    assert in_slurm(root / f"crossval_{NAME}.sh", 0).returncode == 3


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_slurms_warning_saves_and_requeues(
    root: Path, long_jobs: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, requeued: bool
) -> None:
    """Before the time is over the trainer saves, and the task is put into the queue again; not after scancel."""
    stand_in(root, monkeypatch, "scontrol", '#!/bin/sh\necho "$@" > {folder}/scontrol\n')
    assert crossval("777", "-tr", "New", "--folds", "0", "--slurm") == 0
    script = root / f"crossval_{NAME}.sh"
    assert "#SBATCH --signal=B:USR1@300\n" in script.read_text()
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "4711"}
    with subprocess.Popen(["bash", str(script)], env=environment) as process:
        wait_until(lambda: (long_jobs / "started_0").exists())
        process.send_signal(number)
        assert process.wait(60) == 75
    assert (long_jobs / "saved").read_text() == str(int(number))
    asked = (long_jobs / "scontrol").read_text() if (long_jobs / "scontrol").exists() else None
    assert asked == ("requeue 4711\n" if requeued else None)


def test_slurm_freezes_what_a_training_depends_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another shell, in another folder, with other settings, trains the same."""
    stand_in(root, monkeypatch, "nnUNetv2_train", "#!/bin/sh\nenv > {folder}/seen\n")
    for name in [name for name in os.environ if name.startswith("nnUNet_")]:
        monkeypatch.delenv(name)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, name)  # relative to the current folder
    monkeypatch.setenv("nnUNet_extTrainer", f"mine{os.pathsep}/others")
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "it's my; touch pwned.pth")
    assert crossval("777", "-tr", "New", "--folds", "0", "--slurm") == 0
    script = root / f"crossval_{NAME}.sh"
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = in_slurm(script, 0, DINOMED3D_STAGE1="/of/another/run", DINOMED3D_WEIGHTS="random")
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in (root / "jobs" / "seen").read_text().splitlines())
    assert {name: value for name, value in seen.items() if name.startswith(("nnUNet_", "DINOMED3D_"))} == {
        "nnUNet_raw": f"{root}/nnUNet_raw",
        "nnUNet_preprocessed": f"{root}/nnUNet_preprocessed",
        "nnUNet_results": f"{root}/nnUNet_results",
        "nnUNet_extTrainer": f"{root}/mine{os.pathsep}/others",
        "nnUNet_n_proc_DA": "3",
        "DINOMED3D_WEIGHTS": f"{root}/it's my; touch pwned.pth",
    }
    assert not list(Path.cwd().iterdir())


def test_slurm_leaves_the_word_random_as_it_is(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")
    assert crossval("777", "-tr", "New", "--folds", "0", "--slurm") == 0
    assert "export DINOMED3D_WEIGHTS=random\n" in (root / f"crossval_{NAME}.sh").read_text()


def test_slurm_writes_over_no_other_script(root: Path) -> None:
    script = root / f"crossval_{NAME}.sh"
    words = ("777", "-tr", "New", "--slurm", "--folds")
    assert crossval(*words, "0") == 0
    written = script.read_text()
    assert crossval(*words, "0") == 0  # the same again
    with pytest.raises(ValueError, match=r"exists and holds something else\. Remove it"):
        crossval(*words, "1")
    assert script.read_text() == written
    script.unlink()
    os.mkfifo(script)
    with pytest.raises(ValueError, match="exists and holds something else"):
        crossval(*words, "0")
