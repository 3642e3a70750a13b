"""Which files are compared, and each thing that is refused. Also writes the results folders of the other tests."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.commands.compare import add_arguments, run_compare
from nnunetv2_dinomed3d.evaluation.cases import is_validated
from nnunetv2_dinomed3d.training_log import read_logs

NAME = "Dataset777_Made"
CASES = [f"case_{i}" for i in range(6)]
LABELS = {"background": 0, "organ": 1, "lesion": 2}
LOG = """
2026-01-0{day} 10:00:00.000001: DINO-Med3D stage 1: 521,571 parameters are trained, 24 slabs a batch.
2026-01-0{day} 10:00:01.000001: Epoch 0
2026-01-0{day} 10:00:01.000001: train_loss 0.5
2026-01-0{day} 10:00:01.000001: val_loss 0.4
2026-01-0{day} 10:00:01.000001: Pseudo dice [np.float32(0.2), np.float32(nan)]
2026-01-0{day} 10:00:01.000001: Epoch time: 7.52 s
2026-01-0{day} 10:00:02.000001: DINO-Med3D stage 2: 1,724,955 of 2,100,000 parameters are trained, 2 patches a batch.
2026-01-0{day} 10:00:03.000001: Epoch 1
2026-01-0{day} 10:00:03.000001: train_loss -0.1
2026-01-0{day} 10:00:03.000001: val_loss -0.2
2026-01-0{day} 10:00:03.000001: Pseudo dice [0.6, 0.8]
2026-01-0{day} 10:00:03.000001: Epoch time: 46.0 s
2026-01-0{day} 10:00:04.000001: Epoch 2
2026-01-0{day} 10:00:04.000001: train_loss -0.3
"""


def write_map(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.8, 3.0)) -> None:
    """A (d, h, w) label map with a spacing in mm, (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def truth_of(i: int) -> np.ndarray:
    """An organ, and in even cases a lesion in it."""
    labels = np.zeros((8, 24, 20), np.uint8)
    labels[1:7, 4 : 14 + i, 3:13] = 1
    if i % 2 == 0:
        labels[3:5, 6:9, 5 : 8 + i // 2] = 2
    return labels


def predict(i: int, shift: int) -> np.ndarray:
    return np.roll(truth_of(i), shift, axis=2)


def write_results(root: Path, monkeypatch: pytest.MonkeyPatch, shifts: dict[str, int]) -> Path:
    """nnU-Net's folders with two folds of each trainer, whose predictions are so many voxels off; the results."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / variable / NAME).mkdir(parents=True)
        monkeypatch.setenv(variable, str(root / variable))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.chdir(root)
    preprocessed, raw = root / "nnUNet_preprocessed" / NAME, root / "nnUNet_raw" / NAME
    description = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (preprocessed / "dataset.json").write_text(json.dumps(description))
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {}, "3d_fullres": {}}}))
    splits = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    rng = np.random.default_rng(0)
    for i, case in enumerate(CASES):
        write_map(preprocessed / "gt_segmentations" / f"{case}.nii.gz", truth_of(i))
        write_map(raw / "imagesTr" / f"{case}_0000.nii.gz", rng.normal(size=(8, 24, 20)).astype(np.float32))
        for trainer, shift in shifts.items():
            fold = fold_folder(root, trainer, i // 3)
            write_map(fold / "validation" / f"{case}.nii.gz", predict(i, shift))
            (fold / "validation" / "summary.json").write_text("{}")
            (fold / "checkpoint_final.pth").write_bytes(b"weights")
    return root / "nnUNet_results" / NAME


def fold_folder(root: Path, trainer: str, fold: int) -> Path:
    return root / "nnUNet_results" / NAME / f"{trainer}__nnUNetPlans__3d_fullres" / f"fold_{fold}"


def compare(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run_compare(parser.parse_args(words))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of the trainers Stock and Ours; `Ours` lies nearer to the truth."""
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
    write_map(fold_folder(tmp_path, "Ours", 0) / "validation" / "case_9.nii.gz", truth_of(0))
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


def test_a_case_without_truth_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_preprocessed" / NAME / "gt_segmentations" / "case_2.nii.gz").unlink()
    assert "There is no truth for case_2" in refusal("777", "-tr", "Stock", "Ours")


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
    assert "do not say their spacing" in refusal("777", "-tr", "Stock", "Ours")


def test_a_bad_prediction_ends_the_comparison_and_is_named(results: Path, tmp_path: Path) -> None:
    path = fold_folder(tmp_path, "Ours", 0) / "validation" / "case_0.nii.gz"
    path.write_bytes(b"no image")
    assert f"{path} cannot be read" in refusal("777", "-tr", "Stock", "Ours")


COMMAND = f"nnUNetv2_train {NAME} 3d_fullres 1 -tr Ours -p nnUNetPlans"
UNFINISHED = "\n".join(LOG.format(day=1).splitlines()[:-4])


def date(path: Path, seconds: float) -> None:
    """Change a file's date by so many seconds."""
    written = path.stat().st_mtime + seconds
    os.utime(path, (written, written))


def test_a_validation_older_than_the_checkpoint_is_not_believed(results: Path, tmp_path: Path) -> None:
    """The fold was trained again, its old predictions lie there."""
    fold = fold_folder(tmp_path, "Ours", 1)
    date(fold / "validation" / "summary.json", -1.0)
    date(fold / "checkpoint_final.pth", 0.5)
    assert is_validated(fold.parent, "1"), "some file systems keep dates of two seconds"
    date(fold / "checkpoint_final.pth", 3600)
    assert not is_validated(fold.parent, "1")
    text = refusal("777", "-tr", "Stock", "Ours")
    assert "validation of fold 1 is older than checkpoint_final.pth" in text
    assert f"{COMMAND} --val" in text
    assert "validation of fold 1 is older" in refusal("777", "-tr", "Ours", "-f", "1")


@pytest.mark.parametrize("name", ["checkpoint_latest.pth", "checkpoint_best.pth"])
def test_a_validation_beside_a_newer_unfinished_training_is_not_believed(
    results: Path, tmp_path: Path, name: str
) -> None:
    fold = fold_folder(tmp_path, "Ours", 1)
    (fold / name).write_bytes(b"weights")
    assert is_validated(fold.parent, "1")
    date(fold / name, 3600)
    text = refusal("777", "-tr", "Stock", "Ours")
    assert f"older than {name}" in text
    assert f"{COMMAND} --c" in text


def test_a_validation_older_than_an_unfinished_log_is_not_believed(results: Path, tmp_path: Path) -> None:
    """A new training that was stopped before it saved anything; one that came to its end says so."""
    fold = fold_folder(tmp_path, "Ours", 1)
    log = fold / "training_log_2026_1_1_10_00_00.txt"
    log.write_text(UNFINISHED)
    date(log, 3600)
    assert f"older than {log.name}" in refusal("777", "-tr", "Stock", "Ours")
    log.write_text(f"{UNFINISHED}\n2026-01-01 10:00:04.000001: Training done.\n")
    date(log, 3600)
    assert is_validated(fold.parent, "1")
    log.write_text("2026-01-01 10:00:04.000001: Using nnU-Net\n")  # --val has no epochs
    date(log, 3600)
    assert is_validated(fold.parent, "1")


def test_what_was_moved_aside_is_no_part_of_a_training(results: Path, tmp_path: Path) -> None:
    aside = fold_folder(tmp_path, "Ours", 1) / "before_2026-01-01"
    (aside / "validation").mkdir(parents=True)
    for name in ("checkpoint_latest.pth", "training_log_2027_1_1_10_00_00.txt", "validation/case_9.nii.gz"):
        (aside / name).write_text(UNFINISHED)
        date(aside / name, 3600)
    assert is_validated(aside.parent.parent, "1")
    assert not read_logs(aside.parent).epochs


@pytest.mark.parametrize("splits", [{}, [1], [{"train": []}], [{"train": [1], "val": []}], None, "x"])
def test_splits_that_are_none_are_refused(results: Path, tmp_path: Path, splits: object) -> None:
    path = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    path.write_text(json.dumps(splits))
    assert f"{path} is no list of folds" in refusal("777", "-tr", "Stock", "Ours")
