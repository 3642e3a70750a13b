"""``dinomed3d crossval``: the commands of what is not finished, printed, run one at a time per GPU, or as a script."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.evaluation.crossval import add_arguments, run_crossval
from tests.test_evaluation_cases import NAME, fold_folder, write_results

FAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
start = time.time()
print("training", *sys.argv[1:])
time.sleep(0.3)
record = dict(words=sys.argv[1:], gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), start=start, end=time.time())
Path({folder!r}, f"job_{{os.getpid()}}.json").write_text(json.dumps(record))
sys.exit(3 if sys.argv[3] == "7" else 0)
"""


def crossval(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run_crossval(parser.parse_args(words))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folds 0 and 1 of Ours are finished, 2 has a checkpoint, 3 is trained but not validated, 4 has not begun."""
    write_results(tmp_path, monkeypatch, {"Ours": 1})
    for fold, checkpoint in (
        (2, "checkpoint_best.pth"),
        (3, "checkpoint_final.pth"),
        (4, "checkpoint_best_stage1.pth"),
    ):
        fold_folder(tmp_path, "Ours", fold).mkdir()
        (fold_folder(tmp_path, "Ours", fold) / checkpoint).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.fixture
def jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nnUNetv2_train on the PATH that records how it was called; the folder of its records."""
    folder = root / "jobs"
    folder.mkdir()
    program = root / "bin" / "nnUNetv2_train"
    program.parent.mkdir()
    program.write_text(FAKE.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return folder


def records(folder: Path) -> list[dict]:
    return sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda record: record["start"])


def test_prints_what_is_not_finished(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crossval("777", "-tr", "Ours") == 0
    command = f"nnUNetv2_train {NAME} 3d_fullres"
    assert capsys.readouterr().out.splitlines() == [
        "# finished: Ours fold 0",
        "# finished: Ours fold 1",
        f"{command} 2 -tr Ours -p nnUNetPlans --c",
        f"{command} 3 -tr Ours -p nnUNetPlans --val",
        f"{command} 4 -tr Ours -p nnUNetPlans",
    ]


def test_nothing_is_left_to_do(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for how in ((), ("--run",), ("--slurm",)):
        assert crossval("777", "-tr", "Ours", "--folds", "0", "1", *how) == 0
    assert "nnUNetv2_train" not in capsys.readouterr().out
    assert not list(root.glob("*.sh"))


def test_gpus_take_turns(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossval("777", "-tr", "New", "--folds", "0", "1", "2", "--gpus", "3", "5")
    lines = [line.split(" -tr")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert [(line[:22], line[-1]) for line in lines] == [
        ("CUDA_VISIBLE_DEVICES=3", "0"),
        ("CUDA_VISIBLE_DEVICES=3", "2"),
        ("CUDA_VISIBLE_DEVICES=5", "1"),
    ]


def test_runs_what_it_prints_one_at_a_time_on_each_gpu(
    root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("777", "-tr", "Ours", "New", "--gpus", "0", "1")
    crossval(*words)
    printed = {line for line in capfd.readouterr().out.splitlines() if not line.startswith("#")}
    assert crossval(*words, "--run") == 0
    output = capfd.readouterr().out
    done = records(jobs)
    ran = {f"CUDA_VISIBLE_DEVICES={r['gpu']} nnUNetv2_train {' '.join(r['words'])}" for r in done}
    assert ran == printed
    assert printed <= set(output.splitlines())
    assert f"[GPU 0] training {NAME}" in output
    for gpu in ("0", "1"):
        mine = [record for record in done if record["gpu"] == gpu]
        assert all(before["end"] <= after["start"] for before, after in itertools.pairwise(mine))
    assert len(done) == 8


def test_a_failed_job_stops_no_other_and_is_named(root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert crossval("777", "-tr", "New", "--folds", "7", "0", "--run") == 1
    assert len(records(jobs)) == 2
    assert f"New fold 7 ended with 3: nnUNetv2_train {NAME} 3d_fullres 7" in capfd.readouterr().out


def test_slurm_script_runs_one_command_per_task(root: Path, jobs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crossval("777", "-tr", "Ours", "--slurm") == 0
    script = root / f"crossval_{NAME}.sh"
    assert capsys.readouterr().out.splitlines()[-1] == f"sbatch {script.name}"
    assert "#SBATCH --array=0-2\n" in script.read_text()
    for task in range(3):
        subprocess.run(["bash", str(script)], check=True, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)})
    assert [record["words"][2:] for record in records(jobs)] == [
        ["2", "-tr", "Ours", "-p", "nnUNetPlans", "--c"],
        ["3", "-tr", "Ours", "-p", "nnUNetPlans", "--val"],
        ["4", "-tr", "Ours", "-p", "nnUNetPlans"],
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["777", "3d_lowres", "-tr", "A"], "has no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        (["777", "-tr", "A", "-p", "Other"], "Other.json does not exist: run nnUNetv2_plan_and_preprocess -d 777"),
        (["777", "-tr", "A", "--gpus", "0", "0"], "name it once"),
        (["777", "-tr", "A", "--gpus", "0", "--slurm"], "Slurm gives each job its GPU"),
        (["777", "-tr", "A", "A"], "the same training twice"),
        (["777", "-tr", "A", "--folds", "x"], "'x' is no fold"),
        (["778", "-tr", "A"], "No data set '778'"),
    ],
)
def test_refusals(root: Path, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        crossval(*words)


def test_running_needs_nnunet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ValueError, match="nnUNetv2_train is not on the PATH"):
        crossval("777", "-tr", "Ours", "--run")
