"""One case: labels, regions, the ignore label, empty structures, geometry; Dice equals nnU-Net's own."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_dinomed3d.evaluation.measure import Job, Measurement, Rules, measure_case
from nnunetv2_dinomed3d.nnunet_files import read_description
from tests.test_evaluation_cases import write_map

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}


def rules(folder: Path, labels: dict[str, object], exclude_empty: bool = False) -> Rules:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    description = read_description(path)
    return Rules(description, dict.fromkeys(description.labels, 1.0), exclude_empty)


def measured(
    folder: Path, truth: np.ndarray, prediction: np.ndarray, how: Rules, **kwargs: tuple[float, float, float]
) -> dict[str, Measurement]:
    """By label; `kwargs` are of the prediction's file."""
    write_map(folder / "truth.nii.gz", truth)
    write_map(folder / "prediction.nii.gz", prediction, **kwargs)
    job = Job("case", folder / "truth.nii.gz", {"model": folder / "prediction.nii.gz"}, how)
    return {m.label: m for m in measure_case(job).measurements}


@pytest.mark.parametrize("labels", [{"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 4}, REGIONS])
def test_dice_is_nnunets(tmp_path: Path, labels: dict[str, object]) -> None:
    """On noise with an ignore label, of labels and of regions."""
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 5, (6, 9, 8)).astype(np.uint8), rng.integers(0, 4, (6, 9, 8)).astype(np.uint8)
    found = measured(tmp_path, truth, prediction, rules(tmp_path, labels))
    keys = {name: tuple(v) if isinstance(v, list) else v for name, v in labels.items()}
    regions = [value for name, value in keys.items() if name not in ("background", "ignore")]
    files = [str(tmp_path / f"{name}.nii.gz") for name in ("truth", "prediction")]
    theirs = compute_metrics(*files, SimpleITKIO(), regions, 4)["metrics"]
    assert len(theirs) == 3
    for name, measurement in found.items():
        assert measurement.dice == pytest.approx(theirs[keys[name]]["Dice"], abs=1e-12)
        assert measurement.truth_ml == pytest.approx(theirs[keys[name]]["n_ref"] * 0.8 * 0.8 * 3 / 1000)
        assert measurement.prediction_ml == pytest.approx(theirs[keys[name]]["n_pred"] * 0.8 * 0.8 * 3 / 1000)


def test_what_is_predicted_on_ignored_voxels_counts_for_nothing(tmp_path: Path) -> None:
    truth = np.zeros((5, 8, 8), np.uint8)
    truth[1:3, 1:4, 1:4] = 1
    prediction = truth.copy()
    truth[:, :, 6:] = 2
    prediction[:, :, 7] = 1
    found = measured(tmp_path, truth, prediction, rules(tmp_path, {"background": 0, "a": 1, "ignore": 2}))["a"]
    assert (found.dice, found.hd95_mm, found.volume_difference_ml) == (1, 0, 0)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("state", ["both empty", "missed", "invented"])
def test_empty_structures(tmp_path: Path, state: str, exclude: bool) -> None:
    full = np.zeros((5, 8, 8), np.uint8)
    full[1:3, 1:4, 1:4] = 1
    truth = full if state == "missed" else 0 * full
    prediction = full if state == "invented" else 0 * full
    found = measured(tmp_path, truth, prediction, rules(tmp_path, {"background": 0, "a": 1}, exclude))["a"]
    assert found.state == state
    volume = 18 * 0.8 * 0.8 * 3 / 1000
    assert found.volume_difference_ml == pytest.approx({"both empty": 0, "missed": -volume, "invented": volume}[state])
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
    truth = np.zeros((6, 8, 8), np.uint8)
    truth[2:4, 2:5, 2:5] = 1
    assert measured(tmp_path, truth, np.roll(truth, 1, 2), how)["a"].hd95_mm == pytest.approx(0.8)
    assert measured(tmp_path, truth, np.roll(truth, 1, 0), how)["a"].hd95_mm == pytest.approx(3)


def test_maps_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    how = rules(tmp_path, {"background": 0, "a": 1})
    truth = np.ones((5, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"\(8, 8, 4\) voxels, its truth \(8, 8, 5\)"):
        measured(tmp_path, truth, truth[1:], how)
    with pytest.raises(ValueError, match="resample it"):
        measured(tmp_path, truth, truth, how, spacing=(0.8, 0.8, 2.5))
    with pytest.raises(ValueError, match=r"prediction.nii.gz holds \[7\], which dataset.json does not name"):
        measured(tmp_path, truth, truth * 7, how)
    with pytest.raises(ValueError, match="no integers"):
        measured(tmp_path, truth, truth * 0.5, how)


def test_a_flipped_map_is_warned_of(tmp_path: Path) -> None:
    import SimpleITK as sitk

    how = rules(tmp_path, {"background": 0, "a": 1})
    truth = np.ones((5, 8, 8), np.uint8)
    write_map(tmp_path / "truth.nii.gz", truth)
    image = sitk.ReadImage(str(tmp_path / "truth.nii.gz"))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "flipped.nii.gz"))
    warnings = measure_case(Job("case", tmp_path / "truth.nii.gz", {"m": tmp_path / "flipped.nii.gz"}, how)).warnings
    assert len(warnings) == 1
    assert "axes point elsewhere" in warnings[0]


def test_a_map_of_floats_is_read_if_it_holds_integers(tmp_path: Path) -> None:
    how = rules(tmp_path, {"background": 0, "a": 1})
    truth = np.ones((5, 8, 8), np.uint8)
    assert measured(tmp_path, truth, truth.astype(np.float32), how)["a"].dice == 1
