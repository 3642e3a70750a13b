"""Generated volumes for the demo: an organ, a nodule in it, and unlabelled look-alikes of the nodule."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

SHAPE = (12, 40, 40)
"""Slices, rows, columns."""
SPACING = (1.0, 1.0, 3.0)
"""Millimetres in SimpleITK's order (x, y, z); the slices are thick."""
LABELS = {"background": 0, "organ": 1, "nodule": 2}
BACKGROUND_INTENSITY, ORGAN_INTENSITY, NODULE_INTENSITY = 60.0, 130.0, 210.0


def _ellipsoid(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The mask of an ellipsoid, ``(z, y, x)`` of `SHAPE`; centre and radii are in voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    return (((grid - centre) / radii) ** 2).sum(axis=-1) <= 1


def make_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make image (float32) and labels (uint8) of one case, both ``(z, y, x)`` of `SHAPE`.

    The organ has its own texture, and noise lies over everything. Two unlabelled blobs outside of the organ are as
    bright as the nodule, so that intensity alone does not identify it.
    """
    middle = np.array(SHAPE) / 2
    centre = middle + rng.uniform(-1, 1, 3) * (0.5, 3.0, 3.0)
    radii = rng.uniform((4.0, 9.0, 9.0), (5.0, 12.0, 12.0))
    organ = _ellipsoid(centre, radii)
    nodule = _ellipsoid(centre + rng.uniform(-0.4, 0.4, 3) * radii, rng.uniform((1.6, 3.8, 3.8), (2.2, 5.2, 5.2)))
    nodule &= organ

    image = np.full(SHAPE, BACKGROUND_INTENSITY)
    for corner in rng.choice([(-1, -1), (-1, 1), (1, -1), (1, 1)], size=2, replace=False):
        offset = np.array([rng.uniform(-2, 2), *(corner * rng.uniform(15, 17, 2))])
        image[_ellipsoid(middle + offset, rng.uniform((1.6, 2.8, 2.8), (2.2, 3.6, 3.6))) & ~organ] = NODULE_INTENSITY
    image[organ] = ORGAN_INTENSITY
    image[nodule] = NODULE_INTENSITY
    texture = gaussian_filter(rng.standard_normal(SHAPE), (0.5, 1.5, 1.5))
    image += np.where(organ, 20.0, 8.0) * texture / texture.std() + rng.normal(0, 12.0, SHAPE)

    labels = np.zeros(SHAPE, np.uint8)
    labels[organ] = LABELS["organ"]
    labels[nodule] = LABELS["nodule"]
    return image.astype(np.float32), labels


def _write(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    sitk.WriteImage(image, str(path))


def make_dataset(folder: Path, training_cases: int, test_cases: int, seed: int = 0) -> None:
    """Write a data set in nnU-Net's raw format. The reference of the test cases is in ``labelsTs``.

    Args:
        folder: ``.../nnUNet_raw/DatasetXXX_Name``, new or without images and labels.
        training_cases, test_cases: numbers of cases.
        seed: seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    for images, labels, prefix, count in (
        ("imagesTr", "labelsTr", "train", training_cases),
        ("imagesTs", "labelsTs", "test", test_cases),
    ):
        (folder / images).mkdir(parents=True)
        (folder / labels).mkdir()
        for i in range(count):
            image, segmentation = make_case(rng)
            _write(image, folder / images / f"{prefix}_{i:02d}_0000.nii.gz")
            _write(segmentation, folder / labels / f"{prefix}_{i:02d}.nii.gz")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": training_cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))
