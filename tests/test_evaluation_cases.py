"""Pairs of prediction and reference: each thing that is refused, through ``dinomed3d compare``."""

import json
from pathlib import Path

import pytest

from tests.evaluation_results import (
    LABELS,
    NAME,
    compare,
    draw_nothing,
    fold_folder,
    measure_here,
    reference_of,
    write_map,
    write_results,
)

pytestmark = pytest.mark.own


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of the trainers Stock and Ours; `Ours` lies nearer to the reference."""
    measure_here(monkeypatch)
    draw_nothing(monkeypatch)
    return write_results(tmp_path, monkeypatch, {"Stock": 2, "Ours": 1})


def refusal(*words: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the tests look at the text)
        compare(*words)
    assert not list(Path.cwd().glob("compare*")), "a refused comparison leaves no report"
    return str(error.value)


def test_a_case_that_its_fold_was_trained_on_is_refused(results: Path, tmp_path: Path) -> None:
    source = fold_folder(tmp_path, "Ours", 1) / "validation" / "case_4.nii.gz"
    source.rename(fold_folder(tmp_path, "Ours", 0) / "validation" / "case_4.nii.gz")
    text = refusal("777", "-tr", "Stock", "Ours")
    assert "fold 0 predicted case_4, which it was trained on" in text


def test_a_case_of_other_splits_is_refused(results: Path, tmp_path: Path) -> None:
    write_map(fold_folder(tmp_path, "Ours", 0) / "validation" / "case_9.nii.gz", reference_of(0))
    assert "fold 0 predicted case_9, which splits_final.json does not name" in refusal("777", "-tr", "Stock", "Ours")


@pytest.mark.parametrize("fold", ["all", "7"])
def test_a_fold_whose_training_cases_are_all_or_unknown_is_refused(results: Path, tmp_path: Path, fold: str) -> None:
    fold_folder(tmp_path, "Ours", 0).rename(fold_folder(tmp_path, "Ours", 0).with_name(f"fold_{fold}"))
    assert f"fold {fold}" in refusal("777", "-tr", "Stock", "Ours")
    assert f"fold {fold}" in refusal("777", "-tr", "Ours", "-f", fold)


def test_without_splits_nothing_is_compared(results: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").unlink()
    assert "splits_final.json does not exist" in refusal("777", "-tr", "Stock", "Ours")


def test_unequal_cases_are_refused_or_left_out_on_request(results: Path, tmp_path: Path) -> None:
    (fold_folder(tmp_path, "Ours", 0) / "validation" / "case_1.nii.gz").unlink()
    text = refusal("777", "-tr", "Stock", "Ours")
    assert "Ours lacks 1: case_1" in text
    assert "--common" in text
    assert compare("777", "-tr", "Stock", "Ours", "--common", "-o", "out") == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "5 cases, 2 models" in report
    assert "--common: 1 case(s) that some model did not predict are left out: case_1." in report


def test_a_case_that_no_model_predicted_is_missed(results: Path, tmp_path: Path) -> None:
    """Equal gaps are gaps all the same: the fold's validation cases are known."""
    for trainer in ("Stock", "Ours"):
        (fold_folder(tmp_path, trainer, 1) / "validation" / "case_3.nii.gz").unlink()
    assert "Stock lacks 1: case_3; Ours lacks 1: case_3" in refusal("777", "-tr", "Stock", "Ours")


def test_a_fold_that_only_one_trainer_has_is_refused(results: Path, tmp_path: Path) -> None:
    (fold_folder(tmp_path, "Ours", 1) / "validation" / "summary.json").unlink()
    assert "Ours lacks 3: case_3, case_4, case_5" in refusal("777", "-tr", "Stock", "Ours")
    assert "validation of fold 1 has not finished" in refusal("777", "-tr", "Stock", "Ours", "-f", "0", "1")
    assert compare("777", "-tr", "Stock", "Ours", "-f", "0", "-o", "out") == 0


def test_a_case_without_reference_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_preprocessed" / NAME / "gt_segmentations" / "case_2.nii.gz").unlink()
    assert "There is no reference segmentation of case_2" in refusal("777", "-tr", "Stock", "Ours")


def test_other_names_are_refused_with_what_there_is(results: Path) -> None:
    assert "there are: Ours__nnUNetPlans__3d_fullres, Stock__" in refusal("777", "-tr", "Stock", "Their")
    assert "No data set '778'" in refusal("778", "-tr", "Stock", "Ours")
    assert "the same training twice" in refusal("777", "-tr", "Ours", "Ours")
    assert "-p names 2 plans for 3 trainers" in refusal("777", "-tr", "Stock", "Ours", "Third", "-p", "A", "B")


def test_options_that_do_not_go_together_are_refused(results: Path, tmp_path: Path) -> None:
    truths = str(tmp_path / "nnUNet_preprocessed" / NAME / "gt_segmentations")
    assert "--gt FOLDER" in refusal("777", "--pred", "a=b")
    assert "--gt goes with --pred" in refusal("777", "-tr", "Stock", "--gt", truths)
    assert "-tr needs the data set" in refusal("-tr", "Stock")
    assert "choose trainings" in refusal("777", "--pred", f"a={truths}", "--gt", truths, "-f", "0")
    assert "is not NAME=FOLDER" in refusal("777", "--pred", truths, "--gt", truths)
    assert "the same name" in refusal("777", "--pred", f"a={truths}", f"a={truths}", "--gt", truths)
    assert "no file there ends with .nii.gz" in refusal("777", "--pred", f"a={tmp_path}", "--gt", truths)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["x"], "neither MM nor LABEL=MM"), (["-1"], "0 mm or more"), (["liver=2"], "no label 'liver'; there are organ")],
)
def test_tolerances_are_checked(results: Path, words: list[str], reason: str) -> None:
    parser_words = [f"--tolerance={words[0]}"]  # an argument that starts with - needs the equals sign
    assert reason in refusal("777", "-tr", "Stock", "Ours", *parser_words)


def test_files_without_a_spacing_are_refused(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "nnUNet_preprocessed" / NAME / "dataset.json"
    path.write_text(json.dumps({"labels": LABELS, "file_ending": ".png"}))
    assert "do not hold their spacing" in refusal("777", "-tr", "Stock", "Ours")


def test_a_bad_prediction_ends_the_comparison_and_is_named(results: Path, tmp_path: Path) -> None:
    path = fold_folder(tmp_path, "Ours", 0) / "validation" / "case_0.nii.gz"
    path.write_bytes(b"no image")
    assert f"{path} cannot be read" in refusal("777", "-tr", "Stock", "Ours")
