"""The demo's data set: nnU-Net's raw format, the same every time, and not solved by brightness alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.demo.phantom import LABELS, SHAPE, make_case, make_dataset

pytestmark = pytest.mark.own


def test_data_set_is_in_nnunets_raw_format(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset900_Demo"
    make_dataset(folder, training_cases=2, test_cases=1)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*")) == [
        "dataset.json",
        "imagesTr/train_00_0000.nii.gz",
        "imagesTr/train_01_0000.nii.gz",
        "imagesTs/test_00_0000.nii.gz",
        "labelsTr/train_00.nii.gz",
        "labelsTr/train_01.nii.gz",
        "labelsTs/test_00.nii.gz",
    ]
    assert json.loads((folder / "dataset.json").read_text())["labels"] == LABELS
    image = sitk.ReadImage(str(folder / "imagesTr/train_00_0000.nii.gz"))
    assert image.GetSpacing() == (1.0, 1.0, 3.0)
    assert image.GetSize() == SHAPE[::-1]


def test_every_case_has_both_structures_and_look_alikes() -> None:
    """A nodule that brightness alone could tell would not need a network."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        image, labels = make_case(rng)
        assert set(np.unique(labels)) == set(LABELS.values())
        assert (labels == LABELS["nodule"]).sum() > 60
        bright = image > image[labels == LABELS["nodule"]].mean() - 20
        assert (bright & (labels == 0)).sum() > 20


def test_same_seed_same_data() -> None:
    cases = [make_case(np.random.default_rng(3)) for _ in range(2)]
    assert all(np.array_equal(a, b) for a, b in zip(*cases, strict=True))
