"""``dinomed3d reproduce``: the commands of a table's rows, and a table whose figures come from files alone."""

import argparse
import csv
import json
import shlex
from pathlib import Path

import pytest

from nnunetv2_dinomed3d.commands import reproduce
from nnunetv2_dinomed3d.evaluation.paper_tables import DATASETS, METHODS, paper_figure, paper_parameters
from nnunetv2_dinomed3d.trainer_names import DINOMED3D, TABLES
from tests.command_line import dinomed3d
from tests.crossval_jobs import FAKE, records, stand_in
from tests.evaluation_results import NAME, change_date, fold_folder, reference_of, write_map, write_results

pytestmark = pytest.mark.own

K1, K5 = f"{DINOMED3D}_K1", f"{DINOMED3D}_K5"


def run(*words: str) -> int:
    """The command in this process; errors are raised."""
    parser = argparse.ArgumentParser()
    reproduce.add_arguments(parser)
    return reproduce.run(parser.parse_args(words))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """K1 is trained and one voxel off, K5 two; there are two labelled test cases, which K1 predicted."""
    write_results(tmp_path, monkeypatch, {K1: 1, K5: 2})
    raw = tmp_path / "nnUNet_raw" / NAME
    for i in range(2):
        write_map(raw / "labelsTs" / f"test_{i}.nii.gz", reference_of(i))
        write_map(raw / "imagesTs" / f"test_{i}_0000.nii.gz", reference_of(i))
        write_map(fold_folder(tmp_path, K1, 0) / "predictions_imagesTs" / f"test_{i}.nii.gz", reference_of(i))
    monkeypatch.setattr(reproduce, "estimate", lambda jobs: [f"{len(jobs)} trainings"])
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]


def cells(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of cells.csv, by trainer."""
    with (folder / "cells.csv").open(newline="") as file:
        return {row["trainer"]: row for row in csv.DictReader(file)}


def test_prints_trainings_and_predictions_of_what_is_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("table2", "-d", "777") == 0
    lines = printed(capsys)
    trained = [line for line in lines if "nnUNetv2_train" in line]
    predicted = [shlex.split(line) for line in lines if "nnUNetv2_predict" in line]
    assert [shlex.split(line)[5] for line in trained] == [t for t in TABLES["TABLE2"] if t not in (K1, K5)]
    assert [line[line.index("-tr") + 1] for line in predicted] == [t for t in TABLES["TABLE2"] if t != K1]
    (of_k5,) = [line for line in predicted if K5 in line]
    assert of_k5[of_k5.index("-i") + 1] == str(root / "nnUNet_raw" / NAME / "imagesTs")
    assert of_k5[of_k5.index("-o") + 1] == str(fold_folder(root, K5, 0) / "predictions_imagesTs")
    assert len(lines) == len(trained) + len(predicted)


def test_a_training_comes_before_its_prediction(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("table2", "-d", "777", "--gpus", "0", "1")
    lines = printed(capsys)
    for trainer in (DINOMED3D, f"{DINOMED3D}_K2"):
        train, predict = (
            next(i for i, line in enumerate(lines) if f"{command} " in line and f"-tr {trainer} " in line)
            for command in ("nnUNetv2_train", "nnUNetv2_predict")
        )
        assert train < predict
        assert lines[train].split()[0] == lines[predict].split()[0], "both on one GPU"


def test_the_report_has_figures_of_files_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("table2", "-d", "msd-pancreas=777", "--report") == 0
    text = capsys.readouterr().out
    found = cells(root / "reproduce_table2")
    assert list(found) == TABLES["TABLE2"]
    assert (found[K1]["DSC"], found[K1]["DSC, paper"]) == ("100.00", "54.97")
    assert found[K1]["DSC, difference"] == "+45.03 [+45.03, +45.03]"
    assert found[K1]["cases"] == "2 test"
    for trainer in TABLES["TABLE2"][1:]:
        assert (found[trainer]["DSC"], found[trainer]["HD95"], found[trainer]["DSC, difference"]) == ("", "", "")
        assert found[trainer]["DSC, paper"]
    assert found[K5]["missing"] == "2 of 2 test cases not predicted"
    assert found[DINOMED3D]["missing"] == "not trained"
    assert f"{DINOMED3D} on {NAME}: not trained" in text
    assert (root / "reproduce_table2" / "report.html").is_file()


def test_predictions_of_an_earlier_training_are_none(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_date(fold_folder(root, K1, 0) / "predictions_imagesTs" / "test_0.nii.gz", -60)
    run("table2", "-d", "777", "--report")
    assert cells(root / "reproduce_table2")[K1]["missing"] == "1 of 2 test cases not predicted"
    capsys.readouterr()
    run("table2", "-d", "777")
    assert any("nnUNetv2_predict " in line and K1 in line for line in printed(capsys))


def test_without_test_cases_the_validation_is_measured(root: Path) -> None:
    for case in (root / "nnUNet_raw" / NAME / "labelsTs").iterdir():
        case.unlink()
    run("table2", "-d", "777", "--report")
    found = cells(root / "reproduce_table2")
    assert found[K1]["cases"] == "3 validation"
    assert 0 < float(found[K5]["DSC"]) < float(found[K1]["DSC"]) < 100
    assert found[K1]["DSC, paper"] == "", "nobody said which data set of the paper it is"


@pytest.mark.parametrize(("as_paper", "expected"), [(True, "acdc"), (False, None)])
def test_a_data_set_of_ours_says_which_it_is(root: Path, as_paper: bool, expected: str | None) -> None:
    settings = {"data set": "acdc", "as in the paper": as_paper}
    (root / "nnUNet_raw" / NAME / "manifest.json").write_text(json.dumps({"settings": settings}))
    assert reproduce.parse_datasets(["777"]) == [(NAME, expected)]
    assert reproduce.parse_datasets(["brats2020=777"]) == [(NAME, "brats2020")]


def test_runs_in_turn_and_then_reports(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stand_in(root, monkeypatch, "nnUNetv2_train", FAKE)
    stand_in(root, monkeypatch, "nnUNetv2_predict", FAKE)
    assert run("table2", "-d", "777", "--run") == 75
    out = capsys.readouterr().out
    assert "is left out: it starts from" in out, "a training that left no checkpoint is not predicted with"
    assert [record["words"][0] for record in records(folder)].count("-i") == 1
    assert (root / "reproduce_table2" / "report.md").is_file()


def test_slurm_in_waves(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("table3", "-d", "777", "--slurm")
    first, second, third = printed(capsys)
    assert first == "job1=$(sbatch --parsable reproduce_table3.sh)"
    assert second == "job2=$(sbatch --parsable --dependency=afterok:$job1 reproduce_table3_2.sh)"
    assert third == "sbatch --dependency=afterok:$job2 reproduce_table3_3.sh"
    assert f"-tr {DINOMED3D}_noDetail" in Path("reproduce_table3_2.sh").read_text()
    assert "nnUNetv2_predict" in Path("reproduce_table3_3.sh").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1", "-d", "liver=777"], "the paper has no data set 'liver'; it has aisd, msd-pancreas"),
        (["table1", "-d", "777", NAME], "is there twice"),
        (["table1", "-d", "778"], "778"),
        (["table1", "-d", "777", "--report", "--gpus", "0"], "--gpus does not go with --report"),
    ],
)
def test_mistakes(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(*words)


def test_figures_of_the_paper() -> None:
    """The text of Table 1 names the gap to nnFormer on MSD-Colon: 11.60."""
    ours, nnformer = (
        paper_figure("TABLE1", name, "msd-colon") for name in (f"{DINOMED3D}_L", "nnUNetTrainerBaseline_nnFormer")
    )
    assert ours is not None
    assert nnformer is not None
    assert ours.dsc - nnformer.dsc == pytest.approx(11.60)
    assert (ours.hd95, paper_parameters(f"{DINOMED3D}_L")) == (27.70, 334)
    assert set(METHODS) == set(TABLES["TABLE1"])
    for table in ("TABLE2", "TABLE3"):
        of_base = [paper_figure(table, DINOMED3D, name) for name in DATASETS]
        assert [figure and figure.dsc for figure in of_base] == [None, 59.50, 53.28, 90.44, None]


@pytest.mark.end_to_end
@pytest.mark.usefixtures("preprocessed")
def test_estimates_before_anything_starts(nnunet_environment: dict[str, str]) -> None:
    done = dinomed3d("reproduce", "table2", "-d", "901", **nnunet_environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("# 5 trainings take about ")
    assert all(" GPU hours, " in line for line in lines[1:6])
    assert sum("nnUNetv2_train" in line for line in lines) == 5
