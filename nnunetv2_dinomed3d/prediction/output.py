"""From logits on the case's voxels to files: labels and probabilities in nnU-Net's form, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json, save_pickle
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunetv2_dinomed3d.prediction.resampling import ResampledRows

FLOAT16_STEP = 2.0**-10
"""Largest distance of two float16 numbers, of the larger one."""


def array_for(shape: Sequence[int], dtype: Any, limit: int, folder: Path) -> np.ndarray:
    """An array of zeros; if it has more than so many bytes, in a file of that folder that has no name and vanishes."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= limit:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype, "w+", shape=tuple(shape))


def _settle_largest(rows: ResampledRows) -> Tensor:
    """The index of the largest logit of each voxel, the first of equal ones. Where it is close, logits are made exact.

    Returns:
        Indices ``(rows, h, w)``.
    """
    logits = rows.logits
    largest, labels = logits.max(0)
    if rows.exact is None:
        return labels
    logits.scatter_(0, labels[None], -torch.inf)
    second = logits.amax(0)
    logits.scatter_(0, labels[None], largest[None])
    close = largest - second <= FLOAT16_STEP * largest.abs() + rows.error
    if close.any():
        logits[:, close] = exact = rows.exact(close)
        labels[close] = exact.max(0).indices
    return labels


def _settle_signs(rows: ResampledRows) -> None:
    """Make the logits of voxels exact of which one is nearly 0, the border of a region."""
    if rows.exact is not None:
        close = (rows.logits.abs() <= rows.error).any(0)
        if close.any():
            rows.logits[:, close] = rows.exact(close)


class CaseOutput:
    """Takes logits of the cropped case, row by row, and makes the segmentation of the whole case.

    Args:
        predictor: nnU-Net's.
        properties: nnU-Net's, of the case.
        probabilities: an empty array ``(N, D, H, W)``, float32, of the case before cropping; None if they are not
            wanted.
    """

    def __init__(
        self, predictor: nnUNetPredictor, properties: dict[str, Any], probabilities: np.ndarray | None
    ) -> None:
        self.predictor, self.properties, self.probabilities = predictor, properties, probabilities
        self.manager: LabelManager = predictor.label_manager
        few = len(self.manager.foreground_labels) < 255
        self.labels = np.zeros(properties["shape_before_cropping"], np.uint8 if few else np.uint16)
        self.box = tuple(slice(int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"])
        if probabilities is not None and not self.manager.has_regions:
            probabilities[0] = 1  # background where the case was cropped
        self.is_nnunets = type(self.manager) is LabelManager

    def __call__(self, rows: ResampledRows) -> None:
        """Take the next rows of the case."""
        where = slice(rows.first, rows.first + rows.logits.shape[1])
        self.labels[self.box][where] = self._labels(rows, where)

    def _labels(self, rows: ResampledRows, where: slice) -> np.ndarray:
        """Labels of the rows; their probabilities are kept."""
        if self.is_nnunets and not self.manager.has_regions:
            labels = _settle_largest(rows)
            if self.probabilities is None:
                return labels.to(torch.uint8 if self.labels.itemsize == 1 else torch.int32).cpu().numpy()
        elif self.is_nnunets:
            _settle_signs(rows)
        logits = rows.logits.half().cpu()  # as nnU-Net's are
        if self.probabilities is None:
            return np.asarray(self.manager.convert_logits_to_segmentation(logits))
        made = self.manager.apply_inference_nonlin(logits)
        inside = (slice(None), *self.box)
        self.probabilities[inside][:, where] = made.numpy()
        return np.asarray(self.manager.convert_probabilities_to_segmentation(made))

    def write(self, target: Path) -> None:
        """Write the files of a case: the segmentation last.

        Args:
            target: path without ending.
        """
        predictor, backward = self.predictor, self.predictor.plans_manager.transpose_backward
        with written_together(target) as path:
            if self.probabilities is not None:
                axes = [0, *(axis + 1 for axis in backward)]
                np.savez_compressed(f"{path}.npz", probabilities=self.probabilities.transpose(axes))
                save_pickle(self.properties, f"{path}.pkl")
            writer = predictor.plans_manager.image_reader_writer_class()
            ending = predictor.dataset_json["file_ending"]
            writer.write_seg(self.labels.transpose(backward), f"{path}{ending}", self.properties)


@contextmanager
def written_together(target: Path) -> Iterator[Path]:
    """A path, without ending, for files that get their names at the end, those of nnU-Net's segmentation last.

    If the body fails, none is there that was not before. Where the process is killed, a hidden folder can be left.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        yield partial / target.name
        files = sorted(partial.iterdir(), key=lambda file: file.suffix not in (".npz", ".pkl", ".json"))
        for file in files:
            os.replace(file, target.with_name(file.name))
    finally:
        with suppress(OSError):
            shutil.rmtree(partial)


def write_descriptions(folder: Path, predictor: nnUNetPredictor, arguments: dict[str, Any]) -> None:
    """Write what nnU-Net writes beside its segmentations: the arguments, ``dataset.json`` and ``plans.json``."""
    for name, content, is_sorted in (
        ("predict_from_raw_data_args", arguments, True),
        ("dataset", predictor.dataset_json, False),
        ("plans", predictor.plans_manager.plans, False),
    ):
        with written_together(folder / name) as path:
            save_json(content, f"{path}.json", sort_keys=is_sorted)


class FoldMean:
    """Mean of the folds' logits: takes the rows of one fold after the other, gives out those of the mean.

    Args:
        total: zeros ``(N, d, h, w)``, float16; not needed for one fold.
        folds: how many.
        give: takes the rows of the mean.
    """

    def __init__(self, total: Tensor | None, folds: int, give: Callable[[int, Tensor], None]) -> None:
        self.total, self.folds, self.give = total, folds, give
        self.fold = 0

    def __call__(self, first: int, logits: Tensor) -> None:
        """Take the next rows of the fold ``(N, rows, h, w)``, float16."""
        if self.total is None:
            self.give(first, logits)
            return
        total = self.total[:, first : first + logits.shape[1]]
        total.copy_(logits if self.fold == 0 else total + logits.cpu())
        if self.fold == self.folds - 1:
            self.give(first, total / self.folds)
