"""One case: labels, regions, the ignore label, empty structures, geometry; Dice equals nnU-Net's own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_dinomed3d.evaluation.dataset_labels import read_dataset_labels
from nnunetv2_dinomed3d.evaluation.measure import MeasureJob, Rules, Scores, measure_case
from tests.evaluation_results import write_map

pytestmark = pytest.mark.own

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def rules(folder: Path, labels: dict[str, object], exclude_empty: bool = False) -> Rules:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    found = read_dataset_labels(path)
    return Rules(found, dict.fromkeys(found.labels, 1.0), exclude_empty)


def measured(
    folder: Path, reference: np.ndarray, prediction: np.ndarray, how: Rules, **kwargs: tuple[float, float, float]
) -> dict[str, Scores]:
    """By label; `kwargs` are of the prediction's file."""
    write_map(folder / "reference.nii.gz", reference)
    write_map(folder / "prediction.nii.gz", prediction, **kwargs)
    job = MeasureJob("case", folder / "reference.nii.gz", {"model": folder / "prediction.nii.gz"}, how)
    return {m.label: m.scores for m in measure_case(job).measurements}


@pytest.mark.parametrize("labels", [{"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4}, REGIONS])
def test_dice_is_nnunets(tmp_path: Path, labels: dict[str, object]) -> None:
    """On noise with an ignore label, of labels and of regions."""
    rng = np.random.default_rng(0)
    reference, prediction = (
        rng.integers(0, 5, (6, 9, 8)).astype(np.uint8),
        rng.integers(0, 4, (6, 9, 8)).astype(np.uint8),
    )
    found = measured(tmp_path, reference, prediction, rules(tmp_path, labels))
    keys = {name: tuple(v) if isinstance(v, list) else v for name, v in labels.items()}
    regions = [value for name, value in keys.items() if name not in ("background", "ignore")]
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("reference", "prediction")]
    theirs = compute_metrics(*files, SimpleITKIO(), regions, 4)["metrics"]
    assert len(theirs) == 3
    for name, scores in found.items():
        assert scores.dice == pytest.approx(theirs[keys[name]]["Dice"], abs=1e-12)
        assert scores.reference_ml == pytest.approx(theirs[keys[name]]["n_ref"] * 0.8 * 0.8 * 3 / 1000)
        assert scores.prediction_ml == pytest.approx(theirs[keys[name]]["n_pred"] * 0.8 * 0.8 * 3 / 1000)


def test_what_is_predicted_on_ignored_voxels_counts_for_nothing(tmp_path: Path) -> None:
    reference = np.zeros((5, 8, 8), np.uint8)
    reference[1:3, 1:4, 1:4] = 1
    prediction = reference.copy()
    reference[:, :, 6:] = 2
    prediction[:, :, 7] = 1
    found = measured(tmp_path, reference, prediction, rules(tmp_path, {"background": 0, "a": 1, "ignore": 2}))["a"]
    assert (found.dice, found.hd95_mm, found.volume_difference_ml) == (1, 0, 0)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("state", ["both empty", "false negative", "false positive"])
def test_empty_structures(tmp_path: Path, state: str, exclude: bool) -> None:
    full = np.zeros((5, 8, 8), np.uint8)
    full[1:3, 1:4, 1:4] = 1
    reference = full if state == "false negative" else 0 * full
    prediction = full if state == "false positive" else 0 * full
    found = measured(tmp_path, reference, prediction, rules(tmp_path, {"background": 0, "a": 1}, exclude))["a"]
    assert found.state == state
    volume = 18 * 0.8 * 0.8 * 3 / 1000
    assert found.volume_difference_ml == pytest.approx(
        {"both empty": 0, "false negative": -volume, "false positive": volume}[state]
    )
    if state == "both empty":
        assert math.isnan(found.dice)
        assert math.isnan(found.surface_dice)
    else:
        assert (found.dice, found.surface_dice) == (0, 0)
    diagonal = math.hypot(5 * 3, 8 * 0.8, 8 * 0.8)
    expected = math.nan if exclude or state == "both empty" else diagonal
    assert found.hd95_mm == pytest.approx(expected, nan_ok=True)


def test_spacing_is_the_files(tmp_path: Path) -> None:
    """A voxel's shift along x is 0.8 mm, along z 3 mm."""
    how = rules(tmp_path, {"background": 0, "a": 1})
    reference = np.zeros((6, 8, 8), np.uint8)
    reference[2:4, 2:5, 2:5] = 1
    assert measured(tmp_path, reference, np.roll(reference, 1, 2), how)["a"].hd95_mm == pytest.approx(0.8)
    assert measured(tmp_path, reference, np.roll(reference, 1, 0), how)["a"].hd95_mm == pytest.approx(3)


def test_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    how = rules(tmp_path, {"background": 0, "a": 1})
    reference = np.ones((5, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\(8, 8, 4\) voxels, its reference \(8, 8, 5\)"):
        measured(tmp_path, reference, reference[1:], how)
    with pytest.raises(ValueError, match="resample it"):
        measured(tmp_path, reference, reference, how, spacing=(0.8, 0.8, 2.5))
    with pytest.raises(ValueError, match=r"prediction.nii.gz holds \[7\], which dataset.json does not name"):
        measured(tmp_path, reference, reference * 7, how)
    with pytest.raises(ValueError, match="a label map holds integers only"):
        measured(tmp_path, reference, reference * 0.5, how)


def test_a_flipped_map_is_warned_of(tmp_path: Path) -> None:
    import SimpleITK as sitk

    how = rules(tmp_path, {"background": 0, "a": 1})
    reference = np.ones((5, 8, 8), np.uint8)
    write_map(tmp_path / "reference.nii.gz", reference)
    image = sitk.ReadImage(str(tmp_path / "reference.nii.gz"))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "flipped.nii.gz"))
    warnings = measure_case(
        MeasureJob("case", tmp_path / "reference.nii.gz", {"m": tmp_path / "flipped.nii.gz"}, how)
    ).warnings
    assert len(warnings) == 1
    assert "axes point elsewhere" in warnings[0]


def test_a_map_of_floats_is_read_if_it_holds_integers(tmp_path: Path) -> None:
    how = rules(tmp_path, {"background": 0, "a": 1})
    reference = np.ones((5, 8, 8), np.uint8)
    assert measured(tmp_path, reference, reference.astype(np.float32), how)["a"].dice == 1
