"""Small downloads as the publishers give them out: names, headers and quirks are theirs, the content is made up."""

import json
import locale
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_dinomed3d.commands.main import main

SIZE = (5, 14, 16)
"""Voxels (d, h, w) of most images."""
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def write_nifti(
    path: Path,
    array: np.ndarray,
    spacing: tuple[float, float, float] = (1.5, 1.5, 8.0),
    direction: tuple[float, ...] = IDENTITY,
) -> None:
    """Write an array (d, h, w), with an origin that is not 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin((-10.0, 20.0, 30.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(path))


def box_labels(values: tuple[int, ...], shape: tuple[int, ...] = SIZE) -> np.ndarray:
    """A box for each value, side by side in the slices 1 to 3."""
    labels = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        labels[1:4, 3:9, 2 + 3 * number : 5 + 3 * number] = value
    return labels


def acdc(root: Path, patients: tuple[int, ...] = (1, 2, 3), tests: tuple[int, ...] = (101,)) -> Path:
    """ACDC: a folder for each patient in ``training`` and ``testing``, with both phases and the film."""
    rng = np.random.default_rng(0)
    for number in patients + tests:
        folder = root / ("testing" if number in tests else "training") / f"patient{number:03d}"
        folder.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: DCM\nHeight: 180.0\nNbFrame: 12\nWeight: 80.0\n")
        film = nibabel.Nifti1Image(np.zeros((4, 4, 3, 12), np.int16), np.diag([1.5, 1.5, 8.0, 1.0]))
        nibabel.save(film, folder / f"patient{number:03d}_4d.nii.gz")
        for frame in (1, 9):
            name = f"patient{number:03d}_frame{frame:02d}"
            labels = box_labels((1, 2, 3))
            image = (rng.integers(1, 200, SIZE) + 100 * labels).astype(np.int16)
            write_nifti(folder / f"{name}.nii.gz", image)
            write_nifti(folder / f"{name}_gt.nii.gz", labels)
    return root


def brats(root: Path, patients: tuple[int, ...] = (1, 2, 355)) -> Path:
    """BraTS 2020: uncompressed files; patient 355's labels have another name; label 4 and no 3."""
    rng = np.random.default_rng(0)
    shape = (31, 20, 20)
    mirrored = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    for number in patients:
        name = f"BraTS20_Training_{number:03d}"
        folder = root / "MICCAI_BraTS2020_TrainingData" / name
        labels = box_labels((1, 2, 4), shape)
        labels[4:20] = labels[2]
        for kind in ("flair", "t1", "t1ce", "t2"):
            image = rng.integers(50, 400, shape).astype(np.int16) + 300 * (labels > 0)
            image[:, :3] = 0  # outside the head
            write_nifti(folder / f"{name}_{kind}.nii", image.astype(np.int16), (1.0, 1.0, 1.0), mirrored)
        seg = "W39_1998.09.19_Segm.nii" if number == 355 else f"{name}_seg.nii"
        write_nifti(folder / seg, labels.astype(np.int16), (1.0, 1.0, 1.0), mirrored)
    (root / "MICCAI_BraTS2020_TrainingData" / "survival_info.csv").write_text("Brats20ID,Age,Survival_days\n")
    return root


def msd(
    root: Path,
    task: str = "Task07_Pancreas",
    labels: tuple[str, ...] = ("pancreas", "cancer"),
    modality: tuple[str, ...] = ("CT",),
    cases: tuple[int, ...] = (1, 4, 5),
    shape: tuple[int, int, int] = SIZE,
) -> Path:
    """A task of MSD: cases are not numbered without gaps, macOS's files lie between them, labels are in JSON as names.

    Returns:
        The task's folder.
    """
    rng = np.random.default_rng(0)
    folder, word = root / task, task.partition("_")[2].lower()
    for number in cases:
        name = f"{word}_{number:03d}.nii.gz"
        drawn = box_labels(tuple(range(1, len(labels) + 1)), shape)
        channels = [(rng.integers(-300, 400, shape) + 50 * drawn).astype(np.int16) for _ in modality]
        write_msd_image(folder / "imagesTr" / name, channels)
        write_nifti(folder / "labelsTr" / name, drawn, (0.8, 0.8, 2.5))
        (folder / "imagesTr" / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
        (folder / "labelsTr" / f"._{name}").write_bytes(b"\x00\x05\x16\x07")
    write_msd_image(folder / "imagesTs" / f"{word}_002.nii.gz", channels)
    content = {
        "name": task.partition("_")[2],
        "description": "made up",
        "reference": "nobody",
        "licence": "CC-BY-SA 4.0",
        "release": "1.0",
        "tensorImageSize": "3D" if len(modality) == 1 else "4D",
        "modality": {str(number): name for number, name in enumerate(modality)},
        "labels": {"0": "background"} | {str(value): name for value, name in enumerate(labels, 1)},
        "numTraining": len(cases),
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{word}_{n:03d}.nii.gz", "label": f"./labelsTr/{word}_{n:03d}.nii.gz"} for n in cases
        ],
        "test": [f"./imagesTs/{word}_002.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def write_msd_image(path: Path, channels: list[np.ndarray]) -> None:
    """One file: three axes, or four if there are several channels."""
    if len(channels) == 1:
        write_nifti(path, channels[0], (0.8, 0.8, 2.5))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.stack([channel.T for channel in channels], axis=-1)
    affine = np.diag([-0.8, -0.8, 2.5, 1.0])
    affine[:3, 3] = 10, -20, 30
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


AISD_SIZE = (6, 24, 24)


def aisd(root: Path, cases: tuple[str, ...] = ("0091465", "0072723", "0226290"), from_head: bool = False) -> Path:
    """AISD: CT as DICOM beside MRI, labels and 8-bit pictures as PNG, the first at the feet unless `from_head`."""
    rng = np.random.default_rng(0)
    for number, case in enumerate(cases):
        ct = head(rng)
        labels = np.zeros(AISD_SIZE, np.uint8)
        labels[1:3, 8:12, 8:12] = 1 + number % 5
        labels[2, 12:14, 8:12] = 5
        write_series(root / f"dicom-{number % 2}" / case / "CT", ct, "CT", case)
        write_series(root / f"dicom-{number % 2}" / case / "DWI", ct[:3], "MR", case)
        order = slice(None, None, -1 if from_head else 1)
        pictures = (np.clip(ct, 0, 80) * 255.0 / 80).astype(np.uint8)
        for kind, volume in (("mask", labels), ("image", pictures)):
            for position, array in enumerate(volume[order]):
                path = root / kind / kind / case / f"{position:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    return root


def head(rng: np.random.Generator) -> np.ndarray:
    """HU (d, h, w) of a head: noise in a disc that becomes smaller towards its top, in air."""
    _, y, x = np.indices(AISD_SIZE)
    radius = np.linspace(11, 5, AISD_SIZE[0])[:, None, None]
    inside = (y - 12) ** 2 + (x - 12) ** 2 < radius**2
    return np.where(inside, rng.integers(10, 60, AISD_SIZE), -1000).astype(np.int16)


def write_series(folder: Path, volume: np.ndarray, modality: str, case: str) -> None:
    """A DICOM file for each slice, 5 mm apart. The files' names are in no order, as identifiers are."""
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
    for position, array in enumerate(volume):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.5, 0.5))
        uid = f"1.2.826.0.1.{int(case)}.{1 if modality == 'CT' else 2}"
        tags = {
            "0008|0060": modality,
            "0020|000d": f"1.2.826.0.1.{int(case)}",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{position + 1}",
            "0020|0013": str(len(volume) - position),
            "0020|0032": f"-6\\-6\\{100 + 5 * position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "5",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(position * 7) % 11:08d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM sets "C" where it writes


def nnunet_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnU-Net's folders, empty; the folder they lie in."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (root / name).mkdir()
        monkeypatch.setenv(name, str(root / name))
    return root


def dataset(*words: object) -> int:
    """Run ``dinomed3d dataset`` in this process; its exit code."""
    return main(["dataset", *map(str, words)])
