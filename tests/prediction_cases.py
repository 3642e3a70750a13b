"""Made-up images, and what nnU-Net's own predictor and ours make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_dinomed3d.prediction.cases import find_cases
from nnunetv2_dinomed3d.prediction.model import load_model, make_predictor
from nnunetv2_dinomed3d.prediction.pipeline import CasePredictor, Resources, predict_cases

ENDING = ".nii.gz"
HALF = 2.0**-10


def write_image(
    folder: Path,
    name: str,
    shape: Sequence[int],
    spacing: Sequence[float] = (1, 1, 1),
    *,
    channels: int = 1,
    border: int = 0,
    seed: int = 0,
) -> Path:
    """Write an image of blobs; the folder.

    Args:
        shape: ``(d, h, w)``.
        spacing: of these axes, in mm.
        border: zeros on all sides, which nnU-Net crops.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for channel in range(channels):
        image = np.zeros(shape, np.float32)
        inside = tuple(slice(border, side - border) for side in shape)
        image[inside] = 1 + np.abs(rng.normal(0, 1, image[inside].shape))
        volume = sitk.GetImageFromArray(image)
        volume.SetSpacing([float(side) for side in spacing[::-1]])
        volume.SetOrigin((3, -2, 7))
        sitk.WriteImage(volume, str(folder / f"{name}_{channel:04d}{ENDING}"))
    return folder


def nnunets(
    images: Path, model: Path, out: Path, folds: Sequence[str] = ("0",), previous: Path | None = None, **options: Any
) -> Path:
    """nnU-Net's own prediction, in this process; its folder."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(model), list(folds))
    out.mkdir(parents=True)
    predictor.predict_from_files_sequential(
        str(images), str(out), True, folder_with_segs_from_prev_stage=None if previous is None else str(previous)
    )
    return out


def ours(
    images: Path,
    model: Path,
    out: Path,
    folds: Sequence[str] = ("0",),
    previous: Path | None = None,
    *,
    memory: int = 10**9,
    save_probabilities: bool = False,
    mirror: bool = True,
    channels: int = 1,
    threads: int = 2,
) -> Path:
    """Our prediction, in this process; its folder."""
    predictor = make_predictor("cpu", mirror=mirror)
    load_model(predictor, model, folds, "checkpoint_final.pth")
    out.mkdir(parents=True)
    case_predictor = CasePredictor(
        predictor, out, Resources(memory, threads, threads), save_probabilities=save_probabilities
    )
    cases = find_cases(images, ENDING, channels, previous)
    assert list(predict_cases(cases, case_predictor)) == [out / case.name for case in cases]
    return out


def read(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def assert_equal_but_ties(nnunet: Path, own: Path, at_most: float = 0.0) -> None:
    """Segmentations and their headers are equal but where two probabilities are, as far as float16 can tell.

    Args:
        nnunet: folder with probabilities too.
        own: ours.
        at_most: share of voxels that may be such ties.
    """
    files = sorted(nnunet.glob(f"*{ENDING}"))
    assert files
    assert [file.name for file in sorted(own.glob(f"*{ENDING}"))] == [file.name for file in files]
    for file in files:
        expected, found = sitk.ReadImage(str(file)), sitk.ReadImage(str(own / file.name))
        for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(expected, get)() == getattr(found, get)()
        different = read(file) != read(own / file.name)
        assert different.mean() <= at_most, f"{different.sum()} of {different.size}"
        with np.load(nnunet / f"{file.name.removesuffix(ENDING)}.npz") as arrays:
            probabilities = np.log(arrays["probabilities"][:, different])
        largest = np.sort(probabilities, 0)[-2:]
        assert (largest[1] - largest[0] <= 8 * HALF * np.abs(largest).max(initial=1)).all()
