"""Dice and HD95 by the paper's rules, which are those of its released code, for numbers to stand beside its Table 1.

Each label of a whole volume is compared with its reference:

- Both are empty: Dice is 1 and HD95 is 0.
- One is empty: Dice is 0, and the case is left out of the label's HD95.
- HD95 is MedPy's ``hd95`` (95th percentile, both directions pooled) with a spacing of 1 along every axis. Its unit is
  a voxel of the grid that the label maps have. A step to the next slice counts as much as a step within a slice.
- The number of a row is the mean over the cases of each case's mean over its labels, as in our own report: the paper
  does not say in which order it averages.

The paper's grid has 512 x 512 pixels in plane (section 3.1). `measure` has our own rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.label_map import read_label_map, structures
from nnunetv2_dinomed3d.evaluation.metrics import Structure, crop, dice, hd95, surface_distances
from nnunetv2_dinomed3d.evaluation.parallel import in_processes
from nnunetv2_dinomed3d.text import join_first, printable

IN_PLANE = (512, 512)
"""Pixels of the paper's slices, (x, y)."""

VOXEL = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class PaperScores:
    """The agreement of one predicted structure with its reference, by the paper's rules.

    Attributes:
        dice: 0 to 1; 1 if both are empty.
        hd95_voxels: 0 if both are empty, NaN if one is.
    """

    dice: float
    hd95_voxels: float


@dataclass(frozen=True)
class PaperRow:
    """A model's row of a table like the paper's, and the values it is made of.

    Attributes:
        cases, labels: names; a label is a structure of ``dataset.json``, without the background.
        dice: (cases, labels), 0 to 1.
        hd95_voxels: (cases, labels); NaN where one of reference and prediction is empty.
    """

    cases: list[str]
    labels: list[str]
    dice: np.ndarray
    hd95_voxels: np.ndarray

    @property
    def label_dsc(self) -> np.ndarray:
        """The mean Dice of each label over the cases in percent, (labels,)."""
        return 100 * self.dice.mean(axis=0)

    @property
    def label_hd95(self) -> np.ndarray:
        """The mean HD95 of each label over the cases that have one, in voxels, (labels,); NaN where none has."""
        return np.array([_mean(column) for column in self.hd95_voxels.T])

    @property
    def hd95_cases(self) -> np.ndarray:
        """The number of cases with an HD95, (labels,)."""
        return np.count_nonzero(~np.isnan(self.hd95_voxels), axis=0)

    @property
    def case_dsc(self) -> np.ndarray:
        """Each case's mean Dice over the labels in percent, (cases,)."""
        return 100 * self.dice.mean(axis=1)

    @property
    def case_hd95(self) -> np.ndarray:
        """Each case's mean HD95 over the labels that have one, in voxels, (cases,); NaN where none has."""
        return np.array([_mean(row) for row in self.hd95_voxels])

    @property
    def dsc(self) -> float:
        """DSC of the row, in percent."""
        return float(self.case_dsc.mean())

    @property
    def hd95(self) -> float:
        """HD95 of the row, in voxels; NaN if no case has one."""
        return _mean(self.case_hd95)


def _mean(values: np.ndarray) -> float:
    """The mean of (n,) values without NaN; NaN if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def in_voxels(structure: Structure) -> Structure:
    """The structure with a spacing of 1, so that distances are in voxels."""
    return replace(structure, spacing=VOXEL)


def score_pair(reference: Structure, prediction: Structure) -> PaperScores:
    """Compare a predicted structure with its reference; both as `in_voxels` gives them."""
    if not reference.voxels and not prediction.voxels:
        return PaperScores(1.0, 0.0)
    if not reference.voxels or not prediction.voxels:
        return PaperScores(0.0, float("nan"))
    return PaperScores(dice(reference, prediction), hd95(surface_distances(reference, prediction)))


def paper_scores(
    prediction: np.ndarray, reference: np.ndarray, labels: Mapping[str, tuple[int, ...]]
) -> dict[str, PaperScores]:
    """The scores of every label of one case, by name.

    Args:
        prediction, reference: (d, h, w) label maps.
        labels: the values of each label or region, as in `DatasetLabels`.

    Raises:
        ValueError: the two have different shapes.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"The prediction has shape {prediction.shape}, its reference {reference.shape}: resample it")
    return {
        name: score_pair(crop(np.isin(reference, values), VOXEL), crop(np.isin(prediction, values), VOXEL))
        for name, values in labels.items()
    }


@dataclass(frozen=True)
class _Files:
    reference: Path
    prediction: Path
    labels: DatasetLabels


def _score_files(files: _Files) -> dict[str, PaperScores]:
    reference, geometry = read_label_map(files.reference)
    prediction, _ = read_label_map(files.prediction, geometry)
    if files.labels.ignore is not None:
        prediction = np.where(reference == files.labels.ignore, 0, prediction)
    references = structures(reference, VOXEL, files.labels, files.reference)
    predictions = structures(prediction, VOXEL, files.labels, files.prediction)
    return {name: score_pair(references[name], predictions[name]) for name in references}


def paper_row(scores: Mapping[str, Mapping[str, PaperScores]]) -> PaperRow:
    """The row of a model from its scores by case, then by label; every case has the same labels."""
    labels = list(next(iter(scores.values())))
    values = np.array([[(s[label].dice, s[label].hd95_voxels) for label in labels] for s in scores.values()])
    return PaperRow(list(scores), labels, values[..., 0], values[..., 1])


def paper_table_row(
    predictions: Mapping[str, Path], references: Mapping[str, Path], labels: DatasetLabels, processes: int
) -> PaperRow:
    """Measure a model's predictions, with a progress bar, and sum them up as the paper's Table 1 does.

    Args:
        predictions, references: the file of each case. References of other cases are left alone.
        labels: with the ignore label, whose voxels in the reference count for nothing.
        processes: at most so many, such as `parallel.process_count()`.

    Raises:
        ValueError: there is no case, a case has no reference, or a label map cannot be measured.
    """
    if not predictions:
        raise ValueError("There is no prediction to measure: predict the cases first")
    if without := set(predictions) - set(references):
        raise ValueError(f"There is no reference segmentation of {join_first(without)}")
    jobs = {case: _Files(references[case], path, labels) for case, path in predictions.items()}
    return paper_row(in_processes(_score_files, jobs, processes))


def grid_text(sizes: Mapping[str, tuple[int, int, int]]) -> str:
    """The in-plane sizes of cases, the most frequent ones first, such as "512 x 512 in plane in 20 of 20 cases".

    Args:
        sizes: voxels of each case, (x, y, z).
    """
    planes = [f"{x} x {y}" for x, y, _ in sizes.values()]
    counts = sorted({plane: planes.count(plane) for plane in planes}.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{plane} in plane in {count} of {len(planes)} cases" for plane, count in counts[:3])
    return shown + (f", and {len(counts) - 3} other sizes" if len(counts) > 3 else "")


def grid_warning(sizes: Mapping[str, tuple[int, int, int]]) -> str:
    """A sentence if cases have another grid in plane than the paper's; else empty.

    Args:
        sizes: voxels of each case, (x, y, z).
    """
    others = [case for case, size in sizes.items() if size[:2] != IN_PLANE]
    if not others:
        return ""
    x, y, _ = sizes[others[0]]
    return (
        f"{len(others)} of {len(sizes)} cases are not {IN_PLANE[0]} x {IN_PLANE[1]} in plane, such as "
        f"{printable(others[0])} ({x} x {y}): an HD95 in their voxels cannot be set beside the paper's. Make the "
        "data set with dinomed3d dataset --as-paper, and train on that"
    )
