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

from nnunetv2_dinomed3d.trainer_names import TABLES
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


def commands(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The printed command lines, without comments."""
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


def with_plans(root: Path, *configurations: str) -> None:
    """The data set's plans have these configurations."""
    plans = {"configurations": {name: dict[str, str]() for name in configurations}}
    (root / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(plans))


def test_a_table_is_its_rows_each_on_its_configuration(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_plans(root, "2d", "3d_fullres")
    assert crossval("777", "-tr", "TABLE1", "--folds", "0") == 0
    words = [shlex.split(line) for line in commands(capsys)]
    assert [line[5] for line in words] == TABLES["TABLE1"]
    assert len(words) == 10
    assert {line[5]: line[2] for line in words if line[2] != "3d_fullres"} == {"nnUNetTrainerBaseline_DinoUNet_L": "2d"}


def test_rows_of_two_tables_are_trained_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_plans(root, "2d", "3d_fullres")
    crossval("777", "-tr", "TABLE1", "TABLE2", "TABLE3", "--folds", "0")
    trainers = [shlex.split(line.partition("nnUNetv2_train")[2])[4] for line in commands(capsys)]
    assert sorted(trainers) == sorted({row for rows in TABLES.values() for row in rows})


def test_a_configuration_for_each_trainer(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_plans(root, "2d", "3d_fullres")
    crossval("777", "-tr", "New", "New", "-c", "2d", "3d_fullres", "--folds", "0")
    assert [line.split()[2] for line in commands(capsys)] == ["2d", "3d_fullres"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["777", "-tr", "A", "B", "C", "-c", "2d", "3d_fullres"], "-c names 2 configurations for 3 trainers"),
        (["777", "2d", "-tr", "A", "-c", "3d_fullres"], "The configuration is 2d and, by -c, 3d_fullres"),
        (["777", "-tr", "TABLE4"], "there is no such table; there are TABLE1, TABLE2, TABLE3"),
    ],
)
def test_configurations_that_do_not_go_together(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        crossval(*words)


BASE = "nnUNetTrainerDINOMed3D"


def test_rows_that_share_stage_1_train_it_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossval("777", "-tr", "TABLE3", "--folds", "0", "1", "--gpus", "0", "1")
    lines = commands(capsys)
    of_first = [line for line in lines if "CUDA_VISIBLE_DEVICES=0" in line]
    stage1 = root / "nnUNet_results" / NAME / f"{BASE}_stage1__nnUNetPlans__3d_fullres"
    for trainer in (BASE, f"{BASE}_noDetail"):
        for fold in "01":
            (line,) = [line for line in lines if f" {fold} -tr {trainer} " in line]
            assert f"DINOMED3D_STAGE1={stage1}/fold_{fold}/checkpoint_best.pth nnUNetv2_train" in line
    queue = of_first if any("_stage1 " in line and " 0 -tr" in line for line in of_first) else lines
    order = [line.partition("-tr ")[2].split()[0] for line in queue if " 0 -tr" in line]
    assert order.index(f"{BASE}_stage1") < min(order.index(BASE), order.index(f"{BASE}_noDetail"))
    alone = [line for line in lines if "DINOMED3D_STAGE1" not in line]
    assert {line.partition("-tr ")[2].split()[0] for line in alone} == {
        f"{BASE}_{suffix}" for suffix in ("frozen", "stage1", "noStage1", "UPerNetProxy")
    }


def test_without_a_row_of_stage_1_alone_the_first_trains_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossval("777", "-tr", BASE, f"{BASE}_noDetail", f"{BASE}_S", "--folds", "0")
    model = root / "nnUNet_results" / NAME / f"{BASE}__nnUNetPlans__3d_fullres"
    shared = [line for line in commands(capsys) if "DINOMED3D_STAGE1" in line]
    assert len(shared) == 1
    assert f"DINOMED3D_STAGE1={model}/fold_0/checkpoint_best_stage1.pth" in shared[0]
    assert f"-tr {BASE}_noDetail " in shared[0]


def test_ones_own_stage_1_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DINOMED3D_STAGE1", "mine.pth")
    crossval("777", "-tr", "TABLE3", "--folds", "0")
    assert not any("DINOMED3D_STAGE1" in line for line in commands(capsys))


def test_a_row_whose_stage_1_is_not_done_is_left_out(
    root: Path, jobs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crossval("777", "-tr", f"{BASE}_stage1", BASE, "--folds", "0", "--run") == 75
    assert f"{BASE} fold 0 is left out: it starts from {BASE}_stage1 fold 0" in capsys.readouterr().out
    assert [record["words"][4] for record in records(jobs)] == [f"{BASE}_stage1"]


def test_slurm_runs_them_after_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crossval("777", "-tr", f"{BASE}_stage1", BASE, "--folds", "0", "--slurm")
    first, second = commands(capsys)
    assert first == f"job1=$(sbatch --parsable crossval_{NAME}.sh)"
    assert second == f"sbatch --dependency=afterok:$job1 crossval_{NAME}_2.sh"
    script = Path(f"crossval_{NAME}_2.sh").read_text()
    assert "0) export DINOMED3D_STAGE1=" in script
    assert f"-tr {BASE} " in script
