"""The cases of a folder: which there are, which are left, and reading them while the one before is predicted."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from torch import Tensor

from nnunetv2_dinomed3d.evaluation.volume import read_volume
from nnunetv2_dinomed3d.nnunet_files import ENDINGS
from nnunetv2_dinomed3d.text import printable

BYTES_PER_RAW_VOXEL = 32
"""About what preprocessing takes at most: an image in float32 and float64, before and after, and its mask."""


@dataclass(frozen=True)
class Case:
    """A case to predict.

    Attributes:
        name: its identifier.
        files: of its channels, in their order.
        previous: file of its segmentation by the previous stage of a cascade; None without one.
    """

    name: str
    files: tuple[Path, ...]
    previous: Path | None


@dataclass(frozen=True)
class Preprocessed:
    """A case as the network gets it.

    Attributes:
        case: which.
        image: ``(C, d, h, w)``, float32; of a cascade with the previous stage's labels, one channel for each.
        properties: nnU-Net's: shapes, spacing and bounding box before.
    """

    case: Case
    image: Tensor
    properties: dict[str, Any]


def find_cases(folder: Path, ending: str, channels: int, previous: Path | None = None) -> list[Case]:
    """The cases of a folder, in the order of their names.

    Args:
        folder: of images ``CASE_0000.nii.gz``.
        ending: such as ``.nii.gz``.
        channels: of a case.
        previous: folder of the previous stage's segmentations.

    Raises:
        ValueError: there is none, or a file of one is missing.
    """
    if not folder.is_dir():
        raise ValueError(f"-i {folder} is no folder: name the folder of the images.")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(ending) and path.is_file())
    stems = [name[: -len(ending)] for name in names]
    numbered = [stem for stem in stems if len(stem) > 5 and stem[-5] == "_" and stem[-4:].isdecimal()]
    if not numbered:
        raise ValueError(f"No image in {folder}: nnU-Net's have names such as case_0000{ending}.")
    cases = []
    for name in dict.fromkeys(stem[:-5] for stem in numbered):
        files = tuple(folder / f"{stem}{ending}" for stem in numbered if stem[:-5] == name)
        wanted = tuple(folder / f"{name}_{channel:04d}{ending}" for channel in range(channels))
        if files != wanted:
            missing = [file for file in wanted if file not in files]
            fault = f"{missing[0]} is missing" if missing else f"{files[channels]} is one too many"
            raise ValueError(f"{fault}: the model takes {channels} channel(s) a case.")
        of_previous = previous and previous / f"{name}{ending}"
        if of_previous and not of_previous.is_file():
            raise ValueError(f"{of_previous} is missing: the cascade needs the previous stage's segmentation.")
        cases.append(Case(name, files, of_previous))
    return cases


def is_predicted(case: Case, folder: Path, ending: str, save_probabilities: bool) -> bool:
    """Whether the case's files are in the folder and whole. Of volumes every voxel is read."""
    file = folder / f"{case.name}{ending}"
    others = [folder / f"{case.name}{kind}" for kind in (".npz", ".pkl")] if save_probabilities else []
    if not all(path.is_file() and path.stat().st_size for path in (file, *others)):
        return False
    try:
        if ending in ENDINGS:
            read_volume(file)
        if save_probabilities:
            with np.load(others[0]) as content:
                _ = content["probabilities"]
    except Exception:  # of a damaged file, of any class
        return False
    return True


def read_case(case: Case, predictor: nnUNetPredictor) -> Preprocessed:
    """Preprocess a case as nnU-Net does.

    Raises:
        ValueError: it cannot be; the message names its file.
    """
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=predictor.verbose_preprocessing)
    previous = None if case.previous is None else str(case.previous)
    try:
        image, labels, properties = preprocessor.run_case(
            [str(file) for file in case.files],
            previous,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json,
        )
        if previous is not None:
            foreground = predictor.label_manager.foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(labels[0], foreground, image.dtype)))
    except Exception as error:  # of readers and nnU-Net, of any class
        files = " and ".join(map(str, filter(None, [case.files[0], case.previous])))
        raise ValueError(f"{files} cannot be read: {printable(f'{type(error).__name__}: {error}')}") from error
    tensor = torch.from_numpy(image).to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return Preprocessed(case, tensor, properties)


def read_ahead(cases: Sequence[Case], predictor: nnUNetPredictor, threads: int, memory: int) -> Iterator[Preprocessed]:
    """Preprocess cases in order, in threads while those before are predicted.

    Args:
        cases: all.
        predictor: nnU-Net's.
        threads: how many cases are read at a time; 0 reads each when it is asked for.
        memory: most bytes that reading ahead may take, as judged by the size of the last case that was read.

    Raises:
        ValueError: a case cannot be read.
    """
    waiting = deque(cases)
    reading: deque[Future[Preprocessed]] = deque()
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="read") as pool:
        try:
            ahead = 0  # nothing is known of a case's size before the first
            while waiting or reading:
                while waiting and len(reading) <= ahead:
                    reading.append(pool.submit(read_case, waiting.popleft(), predictor))
                preprocessed = reading.popleft().result()
                raw = prod(preprocessed.properties["shape_before_cropping"]) * len(preprocessed.case.files)
                ahead = min(threads, memory // (BYTES_PER_RAW_VOXEL * raw))
                while waiting and len(reading) < ahead:
                    reading.append(pool.submit(read_case, waiting.popleft(), predictor))
                yield preprocessed
                del preprocessed
        finally:
            for future in reading:
                future.cancel()
