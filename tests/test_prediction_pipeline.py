"""Predictions equal those of nnU-Net's own predictor, for each kind of data and model that nnU-Net has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.inference import predict_from_raw_data

from benchmarks.random_models import configuration, labels, plans, write_model
from nnunetv2_dinomed3d.trainers.registry import find_trainer
from tests.prediction_cases import assert_equal_but_ties, nnunets, ours, read, write_image

PATCH = (8, 16, 16)
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "tip": 3}


def model_of(folder: Path, made: dict[str, Any], transpose: tuple[int, ...] = (0, 1, 2), **options: Any) -> Path:
    options = {"labels": labels(4), **options}
    return write_model(folder, plans({"3d_fullres": made}, transpose), "3d_fullres", **options)


def compare(images: Path, model: Path, folder: Path, **options: Any) -> None:
    expected = nnunets(images, model, folder / "nnunet", **options)
    assert_equal_but_ties(expected, ours(images, model, folder / "ours", **options), at_most=2e-4)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (1.5, 0.8, 0.8), (0.7, 1.1, 1.3)], ids=str)
def test_isotropic_models(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    """Of the same spacing, which is not resampled, and of others."""
    images = write_image(tmp_path / "images", "a", (19, 27, 25), spacing)
    write_image(images, "b", (6, 12, 30), spacing, seed=1)  # smaller than a patch
    compare(images, model_of(tmp_path / "model", configuration((1, 1, 1), PATCH)), tmp_path)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_thick_slices_along_each_axis(tmp_path: Path, transpose: tuple[int, int, int]) -> None:
    """nnU-Net takes the nearest slice; its plans make the thick axis the first, but an image can have another."""
    made = configuration((4, 1, 1), (4, 16, 16))
    shape, spacing = (19, 24, 26), [1.2, 0.9, 1.1]
    spacing[transpose[0]] = 5
    images = write_image(tmp_path / "images", "a", shape, spacing)
    write_image(images, "b", shape, spacing[::-1], seed=1)
    compare(images, model_of(tmp_path / "model", made, transpose, mirror=(1, 2)), tmp_path)


def test_several_folds_and_channels(tmp_path: Path) -> None:
    made = configuration((1, 1, 1), PATCH, channels=2)
    names = {"0": "T1", "1": "T2"}
    model = model_of(tmp_path / "model", made, folds=(0, 1, 2), channel_names=names)
    images = write_image(tmp_path / "images", "a", (12, 20, 25), (1.2, 0.9, 0.9), channels=2)
    expected = nnunets(images, model, tmp_path / "nnunet", folds=("0", "2", "1"))
    own = ours(images, model, tmp_path / "ours", folds=("0", "2", "1"), channels=2)
    assert_equal_but_ties(expected, own, at_most=2e-4)


def test_regions(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", configuration((1, 1, 1), PATCH), labels=REGIONS, regions_class_order=[1, 2, 3])
    images = write_image(tmp_path / "images", "a", (19, 27, 25), (1.5, 0.8, 0.8))
    expected = nnunets(images, model, tmp_path / "nnunet")
    own = ours(images, model, tmp_path / "ours")
    different = read(expected / "a.nii.gz") != read(own / "a.nii.gz")
    with np.load(expected / "a.npz") as arrays:
        assert (np.abs(arrays["probabilities"][:, different] - 0.5).min(0) < 1e-3).all()
    assert different.mean() < 2e-4


def test_slices(tmp_path: Path) -> None:
    """Of a 2d configuration the spacing along the slices stays as it is."""
    model = model_of(tmp_path / "model", configuration((1, 1), (16, 16)), mirror=(0, 1))
    compare(write_image(tmp_path / "images", "a", (5, 27, 25), (6, 0.8, 1.2)), model, tmp_path)


def test_a_cascade(tmp_path: Path) -> None:
    made = configuration((1, 1, 1), PATCH) | {"previous_stage": "3d_lowres"}
    model = model_of(tmp_path / "model", made)
    images = write_image(tmp_path / "images", "a", (19, 27, 25), (1.5, 0.8, 0.8), border=3)
    lowres = model_of(tmp_path / "lowres", configuration((2, 2, 2), PATCH))
    previous = nnunets(images, lowres, tmp_path / "previous")
    compare(images, model, tmp_path, previous=previous)


def test_cropped_borders_are_background(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", configuration((1, 1, 1), PATCH), (1, 0, 2))
    images = write_image(tmp_path / "images", "a", (24, 29, 31), (1.5, 0.8, 0.8), border=4)
    compare(images, model, tmp_path)
    segmentation = read(tmp_path / "ours" / "a.nii.gz")
    assert not segmentation[:4].any()
    assert segmentation[4:-4, 4:-4, 4:-4].any()


@pytest.mark.parametrize("regions", [False, True])
def test_probabilities(tmp_path: Path, regions: bool) -> None:
    """Names, numbers and types are nnU-Net's; a value is off by what float16 rounds to, at most."""
    some = {"labels": REGIONS, "regions_class_order": [1, 2, 3]} if regions else {}
    model = model_of(tmp_path / "model", configuration((1, 1, 1), PATCH), (1, 0, 2), **some)
    images = write_image(tmp_path / "images", "a", (19, 29, 25), (1.5, 0.8, 0.8), border=2)
    expected = nnunets(images, model, tmp_path / "nnunet")
    own = ours(images, model, tmp_path / "ours", save_probabilities=True)
    with np.load(expected / "a.npz") as wanted, np.load(own / "a.npz") as found:
        assert list(wanted) == list(found) == ["probabilities"]
        assert wanted["probabilities"].dtype == found["probabilities"].dtype
        np.testing.assert_allclose(found["probabilities"], wanted["probabilities"], atol=1e-3)
    names = [sorted(file.name for file in folder.iterdir() if "json" not in file.name) for folder in (expected, own)]
    assert names[0] == names[1]
    wanted, found = (np.load(folder / "a.pkl", allow_pickle=True) for folder in (expected, own))
    assert wanted.keys() == found.keys()
    assert (read(expected / "a.nii.gz") != read(own / "a.nii.gz")).mean() < 2e-4


@pytest.mark.parametrize("function", ["resample_torch_fornnunet", "no_resampling_hack"])
def test_other_resampling(tmp_path: Path, function: str) -> None:
    options = {"is_seg": False, "force_separate_z": False} if "torch" in function else {}
    made = configuration((1, 1, 1), PATCH)
    made |= {"resampling_fn_probabilities": function, "resampling_fn_probabilities_kwargs": options}
    spacing = (1.5, 0.8, 0.8) if "torch" in function else (1, 1, 1)
    images = write_image(tmp_path / "images", "a", (19, 29, 25), spacing)
    compare(images, model_of(tmp_path / "model", made), tmp_path)


def test_our_network(tmp_path: Path) -> None:
    """Slabs are encoded once, and windows come in another order; without memory for it, in nnU-Net's."""
    made = configuration((1, 1, 1), (8, 32, 32))
    model = model_of(tmp_path / "model", made, trainer="nnUNetTrainerDINOMed3D_nano", folds=(0, 1), mirror=(1,))
    images = write_image(tmp_path / "images", "a", (16, 32, 40), (1.2, 1, 0.9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_from_raw_data, "recursive_find_trainer_class_by_name", find_trainer)
        expected = nnunets(images, model, tmp_path / "nnunet", folds=("0", "1"))
    for memory in (0, 10**9):
        own = ours(images, model, tmp_path / f"ours{memory}", folds=("0", "1"), memory=memory)
        assert_equal_but_ties(expected, own, at_most=1e-3)
