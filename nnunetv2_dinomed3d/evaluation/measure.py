"""Measuring every case of every model, in parallel processes."""

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_dinomed3d.evaluation.cases import PairedCases
from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.label_map import geometry_warning, read_label_map, structures
from nnunetv2_dinomed3d.evaluation.metrics import Structure, dice, hd95, surface_dice, surface_distances
from nnunetv2_dinomed3d.evaluation.planes import Plane, PlaneChooser
from nnunetv2_dinomed3d.processes import STOP_SIGNALS, children_end_with_us, end_with_parent

State = Literal["measured", "both empty", "false negative", "false positive"]
"""Presence of a structure. A false negative structure is in the reference only, a false positive one in the
prediction only."""


@dataclass(frozen=True)
class Scores:
    """The agreement of one predicted structure with its reference. A score that is not defined is NaN.

    Attributes:
        dice: 0 to 1; NaN if both are empty.
        hd95_mm: NaN if both are empty; if one is, the image's diagonal, or NaN if such cases are excluded.
        surface_dice: 0 to 1, at the label's tolerance; 0 if one is empty, NaN if both are.
        reference_ml, prediction_ml: volumes.
    """

    state: State
    dice: float
    hd95_mm: float
    surface_dice: float
    reference_ml: float
    prediction_ml: float

    @property
    def volume_difference_ml(self) -> float:
        """Prediction minus reference."""
        return self.prediction_ml - self.reference_ml


@dataclass(frozen=True)
class Measurement:
    """The scores of one structure in one case, as one model predicted it."""

    case: str
    model: str
    label: str
    scores: Scores


@dataclass(frozen=True)
class Rules:
    """The rules of measuring.

    Attributes:
        labels: the structures, and the ignore label.
        tolerances: the surface Dice's tolerance of each label, in mm.
        exclude_empty: whether a structure that is empty in one of the two has no HD95, instead of the image's diagonal.
    """

    labels: DatasetLabels
    tolerances: dict[str, float]
    exclude_empty: bool


@dataclass(frozen=True)
class MeasureJob:
    """A case with all its predictions, for one process.

    Attributes:
        predictions: the file of each model.
    """

    case: str
    reference: Path
    predictions: dict[str, Path]
    rules: Rules


@dataclass(frozen=True)
class Measured:
    """A case that was measured.

    Attributes:
        measurements: of every structure in every model's prediction.
        warnings: a sentence for everything odd about the position of its label maps.
        plane: the slice that the report shows.
    """

    measurements: list[Measurement]
    warnings: list[str]
    plane: Plane


def measure_pair(reference: Structure, prediction: Structure, diagonal: float, tolerance: float) -> Scores:
    """Compare a predicted structure with its reference.

    Args:
        diagonal: HD95 where one of them is empty, in mm; NaN for none.
        tolerance: of the surface Dice, in mm.
    """
    volumes = (reference.volume_ml, prediction.volume_ml)
    nan = float("nan")
    if not reference.voxels and not prediction.voxels:
        return Scores("both empty", nan, nan, nan, *volumes)
    if not prediction.voxels:
        return Scores("false negative", 0.0, diagonal, 0.0, *volumes)
    if not reference.voxels:
        return Scores("false positive", 0.0, diagonal, 0.0, *volumes)
    distances = surface_distances(reference, prediction)
    scores = (dice(reference, prediction), hd95(distances), surface_dice(distances, tolerance))
    return Scores("measured", *scores, *volumes)


def measure_case(job: MeasureJob) -> Measured:
    """Measure every structure of a case in every model's prediction. Each file is read once.

    Raises:
        ValueError: a label map cannot be read, or does not fit the reference or the labels.
    """
    rules, ignore = job.rules, job.rules.labels.ignore
    reference, geometry = read_label_map(job.reference)
    spacing = geometry.spacing_zyx
    references = structures(reference, spacing, rules.labels, job.reference)
    diagonal = float("nan") if rules.exclude_empty else float(np.linalg.norm(np.multiply(reference.shape, spacing)))
    measurements, warnings, chooser = [], [], PlaneChooser(reference, spacing)
    if not geometry.orthogonal:
        warnings.append(f"{job.case}: its axes are not at right angles; it is measured as if they were")
    ignored = reference == ignore if ignore is not None else None
    compared = reference if ignored is None else np.where(ignored, 0, reference)
    for model, path in job.predictions.items():
        prediction, where = read_label_map(path, geometry)
        if warning := geometry_warning(geometry, where):
            warnings.append(f"{job.case}, {model}: {warning}")
        if ignored is not None:
            prediction = np.where(ignored, 0, prediction)
        for label, structure in structures(prediction, spacing, rules.labels, path).items():
            scores = measure_pair(references[label], structure, diagonal, rules.tolerances[label])
            measurements.append(Measurement(job.case, model, label, scores))
        chooser.add(model, compared, prediction)
    return Measured(measurements, warnings, chooser.plane())


def process_count() -> int:
    """The number of processes: nnU-Net's ``nnUNet_def_n_proc`` (default 8), but no more than there are cores.

    Raises:
        ValueError: the variable holds no number of processes.
    """
    setting = os.environ.get("nnUNet_def_n_proc", "8")
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", setting):
        raise ValueError(f"nnUNet_def_n_proc is {setting!r}: export a number of processes, 1 or more")
    return min(int(setting), os.cpu_count() or 1)


def _start_process() -> None:
    end_with_parent(ignore=STOP_SIGNALS)  # a signal to the whole group reaches us too, but our parent ends us
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def measure(cases: PairedCases, rules: Rules) -> dict[str, Measured]:
    """Measure every case, with a progress bar; the result is in the order of the cases.

    Raises:
        ValueError: a label map cannot be measured, or a process was killed.
    """
    jobs = [
        MeasureJob(case, reference, {model.name: model.predictions[case] for model in cases.models}, rules)
        for case, reference in cases.references.items()
    ]
    results: dict[str, Measured] = {}
    processes = min(process_count(), len(jobs))
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    before = set(multiprocessing.active_children())
    with children_end_with_us(), ProcessPoolExecutor(processes, context, initializer=_start_process) as pool:
        try:
            futures = {pool.submit(measure_case, job): job.case for job in jobs}
            for future in tqdm(as_completed(futures), total=len(jobs), desc="measured", unit="case", disable=None):
                results[futures[future]] = future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"One of {processes} processes was killed, probably for lack of memory: export nnUNet_def_n_proc=1"
            ) from error
        except BaseException:  # a bad file or a signal: what is being measured is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
    return {job.case: results[job.case] for job in jobs}
