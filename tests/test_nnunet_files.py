"""nnU-Net's folders: names, splits, and validations that are not to be believed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nnunetv2_dinomed3d import nnunet_files
from nnunetv2_dinomed3d.training_log import read_logs
from tests.evaluation_results import CASES, LOG, NAME, STAMP, change_date, compare, fold_folder, write_results

pytestmark = pytest.mark.own

COMMAND = f"nnUNetv2_train {NAME} 3d_fullres 1 -tr Ours -p nnUNetPlans"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of the trainers Stock and Ours."""
    return write_results(tmp_path, monkeypatch, {"Stock": 2, "Ours": 1})


def refusal(*words: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the tests look at the text)
        compare(*words)
    return str(error.value)


def test_folders_of_a_model(results: Path) -> None:
    model = nnunet_files.model_folder(NAME, "Ours", "nnUNetPlans", "3d_fullres")
    assert model.is_dir()
    assert nnunet_files.parse_model_name(model.name) == ("Ours", "nnUNetPlans", "3d_fullres")
    for fold in ("10", "all", "2"):
        (model / f"fold_{fold}").mkdir()
    (model / "fold_x").mkdir()
    assert nnunet_files.folds_in(model) == ["0", "1", "2", "10", "all"]
    assert nnunet_files.validated_models(NAME) == ["Ours__nnUNetPlans__3d_fullres", "Stock__nnUNetPlans__3d_fullres"]
    for name in ("Ours", "Ours__nnUNetPlans", "____"):
        with pytest.raises(ValueError, match="TRAINER__PLANS__CONFIGURATION"):
            nnunet_files.parse_model_name(name)


def test_files_of_a_data_set(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, preprocessed = tmp_path / "nnUNet_raw" / NAME, tmp_path / "nnUNet_preprocessed" / NAME
    assert nnunet_files.dataset_name("777") == nnunet_files.dataset_name("0777") == NAME
    assert nnunet_files.find_dataset_json(NAME) == preprocessed / "dataset.json"
    assert nnunet_files.reference_folder(NAME) == preprocessed / "gt_segmentations"
    assert nnunet_files.find_image(NAME, CASES[0], ".nii.gz") == raw / "imagesTr" / f"{CASES[0]}_0000.nii.gz"
    assert (
        nnunet_files.find_image(NAME, "case_9", ".nii.gz") is nnunet_files.find_image(None, CASES[0], ".nii.gz") is None
    )
    (preprocessed / "gt_segmentations").rename(preprocessed / "elsewhere")
    assert nnunet_files.reference_folder(NAME) == raw / "labelsTr"
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(ValueError, match="nnUNet_raw is not set: export nnUNet_raw="):
        nnunet_files.folder_of("nnUNet_raw")
    (preprocessed / "dataset.json").unlink()
    with pytest.raises(ValueError, match=rf"No dataset.json of {NAME} \(looked for"):
        nnunet_files.find_dataset_json(NAME)


def test_the_number_of_two_data_sets_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "nnUNet_raw" / "Dataset777_Other").mkdir()
    with pytest.raises(ValueError, match=r"'777' could be Dataset777_Made, Dataset777_Other .*: give the whole name"):
        nnunet_files.dataset_name("777")


@pytest.mark.parametrize("splits", [{}, [1], [{"train": []}], [{"train": [1], "val": []}], None, "x"])
def test_malformed_splits_are_refused(tmp_path: Path, splits: object) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=r"splits_final\.json is no list of folds"):
        nnunet_files.read_splits(path)


def test_a_validation_older_than_the_checkpoint_is_not_believed(results: Path, tmp_path: Path) -> None:
    """The fold was trained again, its old predictions lie there."""
    fold = fold_folder(tmp_path, "Ours", 1)
    change_date(fold / "validation" / "summary.json", -1.0)
    change_date(fold / "checkpoint_final.pth", 0.5)
    assert nnunet_files.is_validated(fold.parent, "1"), "some file systems keep dates of two seconds"
    change_date(fold / "checkpoint_final.pth", 3600)
    assert not nnunet_files.is_validated(fold.parent, "1")
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
    assert nnunet_files.is_validated(fold.parent, "1")
    change_date(fold / name, 3600)
    text = refusal("777", "-tr", "Stock", "Ours")
    assert f"older than {name}" in text
    assert f"{COMMAND} --c" in text


def test_a_validation_older_than_an_unfinished_log_is_not_believed(results: Path, tmp_path: Path) -> None:
    """A new training that was stopped before it saved anything; one that came to its end says so."""
    fold = fold_folder(tmp_path, "Ours", 1)
    log = fold / "training_log_2026_1_1_10_00_00.txt"
    log.write_text(LOG)
    change_date(log, 3600)
    assert f"older than {log.name}" in refusal("777", "-tr", "Stock", "Ours")
    log.write_text(f"{LOG}\n{STAMP} Training done.\n")
    change_date(log, 3600)
    assert nnunet_files.is_validated(fold.parent, "1")
    log.write_text(f"{STAMP} Using nnU-Net\n")  # --val has no epochs
    change_date(log, 3600)
    assert nnunet_files.is_validated(fold.parent, "1")


def test_what_was_moved_aside_is_no_part_of_a_training(results: Path, tmp_path: Path) -> None:
    aside = fold_folder(tmp_path, "Ours", 1) / "before_2026-01-01"
    (aside / "validation").mkdir(parents=True)
    for name in ("checkpoint_latest.pth", "training_log_2027_1_1_10_00_00.txt", "validation/case_9.nii.gz"):
        (aside / name).write_text(LOG)
        change_date(aside / name, 3600)
    assert nnunet_files.is_validated(aside.parent.parent, "1")
    assert not read_logs(aside.parent).epochs


def test_import_is_quick() -> None:
    """Every command imports this module before it has checked its arguments."""
    code = "import sys, nnunetv2_dinomed3d.nnunet_files; print({'torch', 'numpy', 'nnunetv2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
