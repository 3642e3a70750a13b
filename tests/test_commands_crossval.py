"""``dinomed3d crossval``: the commands of what is not finished, printed, or run one at a time per GPU."""

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crossval_jobs import FAKE, FIVE_FOLDS, LONG, crossval, in_slurm, make_trainings, records, stand_in
from tests.evaluation_results import NAME
from tests.processes import await_end, running, wait_until

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
    assert crossval("777", "-tr", "FailsAt3", "New", "--folds", "1", "--run") == 1
    assert len(records(jobs)) == 2
    assert f"FailsAt3 fold 1 ended with 3: nnUNetv2_train {NAME} 3d_fullres 1" in capfd.readouterr().out


def test_what_was_interrupted_can_go_on(root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """75 is no failure: what to type is said, the rest is trained, and 75 says that crossval can be run again."""
    assert crossval("777", "-tr", "Interrupted", "New", "--folds", "1", "--run") == 75
    assert len(records(jobs)) == 2
    assert f"Interrupted fold 1 was interrupted; to go on: nnUNetv2_train {NAME}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("number", "whom", "code"),
    [
        (signal.SIGTERM, "process", 143),
        (signal.SIGTERM, "group", 143),
        (signal.SIGHUP, "process", 129),
        (signal.SIGINT, "group", 130),
        (signal.SIGKILL, "process", -9),
    ],
)
def test_however_it_ends_nothing_of_it_is_left(
    root: Path, long_jobs: Path, number: signal.Signals, whom: str, code: int
) -> None:
    """Its trainings save and end, with what they started, and are waited for; the next ones are not begun."""
    words = ["crossval", "777", "-tr", "New", "--run", "--gpus", "0", "1"]
    with (root / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nnunetv2_dinomed3d", *words],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        wait_until(lambda: len(list(long_jobs.glob("started_*"))) == 2)
        pids = [int(pid) for file in long_jobs.glob("started_*") for pid in file.read_text().split()]
        assert all(map(running, pids))
        os.kill(process.pid, number) if whom == "process" else os.killpg(process.pid, number)
        assert process.wait(60) == code
    if number == signal.SIGKILL:
        await_end(pids)
    assert not any(map(running, pids))
    assert (long_jobs / "saved").is_file()
    assert {file.name for file in long_jobs.glob("started_*")} == {"started_0", "started_1"}
    said = (root / "output").read_text()
    assert "Traceback" not in said
    assert (f"dinomed3d: ended by {number.name}" in said) == (number != signal.SIGKILL)


@pytest.mark.parametrize("name", ["Dataset776_$(touch pwned)", "Dataset776_'; touch pwned; '", "Dataset776_a b\\"])
def test_names_are_no_commands(
    root: Path, jobs: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed can be pasted, and the script's name too, whatever a folder is called."""
    folder = root / "nnUNet_preprocessed" / name
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"3d_fullres": {}, "a; b": {}}}))
    assert crossval("776", "a; b", "-tr", "New", "--folds", "0") == 0
    printed = capsys.readouterr().out
    subprocess.run(["bash", "-c", printed], check=True)
    assert crossval("776", "a; b", "-tr", "New", "--folds", "0", "--slurm") == 0
    sbatch = shlex.split(capsys.readouterr().out)
    script = root / sbatch[1]
    assert len(sbatch) == 2
    assert re.search(r"^#SBATCH --job-name=crossval_Dataset776_[\w.-]*$", script.read_text(), re.MULTILINE)
    assert in_slurm(script, 0).returncode == 0
    assert [record["words"][:3] for record in records(jobs)] == [[name, "a; b", "0"]] * 2
    assert not (root / "pwned").exists()


def test_a_name_with_a_newline_is_refused(root: Path) -> None:
    (root / "nnUNet_preprocessed" / "Dataset776_X\ntouch pwned").mkdir()
    for how in ((), ("--slurm",), ("--run",)):
        with pytest.raises(ValueError, match=r"Dataset776_X\\ntouch pwned' is no name"):
            crossval("776", "-tr", "A", *how)


def test_the_folds_are_those_of_the_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = root / "nnUNet_preprocessed" / NAME / "splits_final.json"

    def folds(*words: str) -> list[str]:
        assert crossval("777", "-tr", "New", *words) == 0
        return [line.split()[3] for line in capsys.readouterr().out.splitlines()]

    splits.write_text(json.dumps(FIVE_FOLDS[:3]))
    assert folds() == ["0", "1", "2"]
    assert folds("--folds", "02", "all", "0") == ["2", "all", "0"]
    with pytest.raises(ValueError, match=r"--folds 3: splits_final\.json has 3 folds, 0 to 2"):
        crossval("777", "-tr", "New", "--folds", "3")
    splits.unlink()
    assert folds() == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="nnU-Net will make 5 folds"):
        crossval("777", "-tr", "New", "--folds", "5")
    for content in ("[]", "{}", "[7]", '[{"train": []}]', "x"):
        splits.write_text(content)
        with pytest.raises(ValueError, match=r"splits_final\.json"):
            crossval("777", "-tr", "New")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["777", "3d_lowres", "-tr", "A"], "has no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        (["777", "-tr", "A", "-p", "Other"], "Other.json does not exist. Run nnUNetv2_plan_and_preprocess -d 777"),
        (["777", "-tr", "A", "--gpus", "0", "0"], "name it once"),
        (["777", "-tr", "A", "--gpus", "0", "--slurm"], "Slurm gives each job its GPU"),
        (["777", "-tr", "A", "A"], "the same training twice"),
        (["777", "-tr", "A", "--gpus", "0", "00"], "name it once"),
        (["777", "-tr", "A", "--gpus", "$(touch pwned)"], "is no GPU"),
        (["777", "-tr", "A", "--gpus", "0,1"], "is no GPU"),
        (["777", "-tr", "A", "--folds", "x"], "'x' is no fold"),
        (["777", "-tr", "A", "--folds=-1"], "'-1' is no fold"),
        (["777", "-tr", "A", "--folds", "²"], "'²' is no fold"),
        (["777", "-tr", "A", "--folds", "٣"], "'٣' is no fold"),
        (["777", "-tr", "A", "--folds", ""], "'' is no fold"),
        (["777", "-tr", "A", "--folds", "9" * 5000], "is no fold"),
        (["777", "-tr", "A", "--folds", "0", "1", "00"], "fold 0 twice"),
        (["777", "-tr", "A", "--folds", "all", "all"], "fold all twice"),
        (["777", "-tr", "../A"], "'../A' is no name of a trainer"),
        (["777", "-tr", "A", "3d_fullres"], "'3d_fullres' is no name of a trainer"),
        (["777", "-tr", "A", "-p", "../nnUNetPlans"], "is no name of plans"),
        (["778", "-tr", "A"], "No data set '778'"),
    ],
)
def test_refusals(root: Path, words: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        crossval(*words)
