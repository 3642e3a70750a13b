"""``dinomed3d crossval``: the commands of what is not finished, printed, run one at a time per GPU, or as a script."""

import argparse
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands.crossval import STOCK_LENGTHS, add_arguments, like_for_like, run_crossval
from nnunetv2_dinomed3d.folder_lock import LOCK, Owner
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

OWN = """
import dataclasses, json, sys
from pathlib import Path
from nnunetv2_dinomed3d.folder_lock import Owner
Path(sys.argv[1]).write_text(json.dumps(dataclasses.asdict(Owner.this_process())))
"""

FIVE_FOLDS = [{"train": [], "val": []}] * 5


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
    (tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps(FIVE_FOLDS))
    for name in ("CUDA_VISIBLE_DEVICES", "DINOMED3D_WEIGHTS", "DINOMED3D_STAGE1"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nnUNetv2_train on the PATH that records how it was called; the folder of its records."""
    return stand_in(root, monkeypatch, "nnUNetv2_train", FAKE)


@pytest.fixture
def long_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that trains until a signal comes."""
    return stand_in(root, monkeypatch, "nnUNetv2_train", LONG)


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
    assert crossval("777", "-tr", "FailsAt3", "New", "--folds", "1", "--run") == 1
    assert len(records(jobs)) == 2
    assert f"FailsAt3 fold 1 ended with 3: nnUNetv2_train {NAME} 3d_fullres 1" in capfd.readouterr().out


def test_what_was_interrupted_can_go_on(root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """75 is no failure: what to type is said, the rest is trained, and 75 says that crossval can be run again."""
    assert crossval("777", "-tr", "Interrupted", "New", "--folds", "1", "--run") == 75
    assert len(records(jobs)) == 2
    assert f"Interrupted fold 1 was interrupted; to go on: nnUNetv2_train {NAME}" in capfd.readouterr().out


def test_a_job_whose_turn_comes_is_looked_at_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another run has finished it, or left a checkpoint, while this one trained the fold before."""
    meanwhile = """#!/bin/sh
fold="$nnUNet_results/$1/New__nnUNetPlans__3d_fullres/fold_"
mkdir -p "$fold"1/validation "$fold"2
echo "{{}}" > "$fold"1/validation/summary.json
touch "$fold"1/checkpoint_final.pth "$fold"2/checkpoint_latest.pth "$fold"2/training_log_1.txt
touch "$fold"1/validation/summary.json
echo "trained $3 $8"
"""
    stand_in(root, monkeypatch, "nnUNetv2_train", meanwhile)
    assert crossval("777", "-tr", "New", "--folds", "0", "1", "2", "--run") == 0
    output, warning = capfd.readouterr()
    assert "# finished in the meantime: New fold 1" in output
    assert [line for line in output.splitlines() if line.startswith("trained")] == ["trained 0 ", "trained 2 --c"]
    assert re.search(r"^dinomed3d: warning: New fold 2: its training log was written \d+ s ago", warning)


def test_what_another_process_trains_is_left_to_it(root: Path, jobs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second `crossval --run` beside the first trains something else; 75 says that not all is done."""
    fold = fold_folder(root, "New", 0)
    fold.mkdir(parents=True)
    (fold / LOCK).write_text(json.dumps(asdict(Owner.this_process())))
    assert crossval("777", "-tr", "New", "--folds", "0", "1", "--run") == 75
    assert [record["words"][2] for record in records(jobs)] == ["1"]
    assert f"New fold 0 is left out, as it is being trained: process {os.getpid()} on" in capfd.readouterr().out
    with subprocess.Popen([sys.executable, "-c", OWN, str(fold / LOCK)]) as process:  # an owner that has died
        assert process.wait() == 0
    assert crossval("777", "-tr", "New", "--folds", "0", "--run") == 0
    assert [record["words"][2] for record in records(jobs)] == ["1", "0"]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
        wait_for(lambda: len(list(long_jobs.glob("started_*"))) == 2)
        pids = [int(pid) for file in long_jobs.glob("started_*") for pid in file.read_text().split()]
        assert all(map(alive, pids))
        os.kill(process.pid, number) if whom == "process" else os.killpg(process.pid, number)
        assert process.wait(60) == code
    if number == signal.SIGKILL:
        wait_for(lambda: not any(map(alive, pids)))
    assert not any(map(alive, pids))
    assert (long_jobs / "saved").is_file()
    assert {file.name for file in long_jobs.glob("started_*")} == {"started_0", "started_1"}
    said = (root / "output").read_text()
    assert "Traceback" not in said
    assert (f"dinomed3d: ended by {number.name}" in said) == (number != signal.SIGKILL)


def in_slurm(script: Path, task: int, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a task in a shell that has nothing of ours."""
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(task), **settings}
    return subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)


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
        wait_for(lambda: (long_jobs / "started_0").exists())
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
    with pytest.raises(ValueError, match="exists and holds something else: remove it"):
        crossval(*words, "1")
    assert script.read_text() == written
    script.unlink()
    os.mkfifo(script)
    with pytest.raises(ValueError, match="exists and holds something else"):
        crossval(*words, "0")


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


def test_a_training_over_a_finished_one_is_not_taken_for_it(root: Path) -> None:
    """nnU-Net would validate the old checkpoint_final.pth, and its results would count as the new training's."""
    fold = fold_folder(root, "Ours", 3)
    (fold / "checkpoint_latest.pth").touch()
    os.utime(fold / "checkpoint_final.pth", (1, 1))
    with pytest.raises(ValueError, match=r"fold_3: a training was begun over a finished one"):
        crossval("777", "-tr", "Ours")


def test_baselines_of_equal_length_are_named() -> None:
    """In the paper every method is trained for 100 epochs; nnU-Net's default are 1000."""
    ours = ["nnUNetTrainerDINOMed3D", "nnUNetTrainerDINOMed3D_S_250epochs", "nnUNetTrainerDINOMed3D_1000epochs"]
    lines = like_for_like(["nnUNetTrainer", *ours])
    assert [line.rpartition(" ")[2] for line in lines] == ["nnUNetTrainer_100epochs", "nnUNetTrainer_250epochs"]
    assert all(line.startswith("# nnUNetTrainer trains for 1000 epochs, ") for line in lines)
    assert not like_for_like(["nnUNetTrainer_100epochs", *ours])
    assert not like_for_like(["nnUNetTrainer"])
    from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs as stock

    assert all(hasattr(stock, f"nnUNetTrainer_{epochs}epochs") for epochs in STOCK_LENGTHS)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["777", "3d_lowres", "-tr", "A"], "has no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        (["777", "-tr", "A", "-p", "Other"], "Other.json does not exist: run nnUNetv2_plan_and_preprocess -d 777"),
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


def test_running_needs_nnunet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(ValueError, match="nnUNetv2_train is not on the PATH"):
        crossval("777", "-tr", "Ours", "--run")
