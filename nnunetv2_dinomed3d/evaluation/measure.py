"""Measures every case of every model, in parallel processes."""

import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunetv2_dinomed3d.evaluation.cases import Cases
from nnunetv2_dinomed3d.evaluation.label_map import geometry_warning, read_label_map, structures
from nnunetv2_dinomed3d.evaluation.metrics import Structure, dice, hd95, surface_dice, surface_distances
from nnunetv2_dinomed3d.evaluation.planes import Plane, PlaneChooser
from nnunetv2_dinomed3d.nnunet_files import Description
from nnunetv2_dinomed3d.processes import STOP_SIGNALS, children_end_with_us, end_with_parent


@dataclass(frozen=True)
class Measurement:
    """One structure of one case, as one model predicted it. What is not defined is NaN.

    Attributes:
        state: "measured", "both empty", "missed" (only the prediction is empty) or "invented" (only the truth is).
        dice: 0 to 1; NaN if both are empty.
        hd95_mm: NaN if both are empty; if one is, the image's diagonal, or NaN if those are excluded.
        surface_dice: 0 to 1, at the label's tolerance; NaN if both are empty, 0 if one is.
        truth_ml, prediction_ml: volumes.
    """

    case: str
    model: str
    label: str
    state: str
    dice: float
    hd95_mm: float
    surface_dice: float
    truth_ml: float
    prediction_ml: float

    @property
    def volume_difference_ml(self) -> float:
        """Prediction less truth."""
        return self.prediction_ml - self.truth_ml


@dataclass(frozen=True)
class Rules:
    """How is measured.

    Attributes:
        description: labels and what is ignored.
        tolerances: of each label, the surface Dice's tolerance in mm.
        exclude_empty: whether a case with one of both empty has no HD95, rather than the image's diagonal.
    """

    description: Description
    tolerances: dict[str, float]
    exclude_empty: bool


@dataclass(frozen=True)
class Job:
    """A case with all its predictions; a process does one at a time."""

    case: str
    truth: Path
    predictions: dict[str, Path]
    rules: Rules


@dataclass(frozen=True)
class Measured:
    """A case that was measured.

    Attributes:
        measurements: every structure in every model's prediction.
        warnings: what is odd in where its label maps lie.
        plane: the slice to show.
    """

    measurements: list[Measurement]
    warnings: list[str]
    plane: Plane


def measure_pair(truth: Structure, prediction: Structure, diagonal: float, tolerance: float) -> dict[str, float | str]:
    """The fields of a `Measurement` that the two structures decide; `diagonal` (mm) is HD95 where one is empty."""
    volumes = {"truth_ml": truth.volume_ml, "prediction_ml": prediction.volume_ml}
    nan = float("nan")
    if not truth.voxels and not prediction.voxels:
        return {"state": "both empty", "dice": nan, "hd95_mm": nan, "surface_dice": nan, **volumes}
    if not truth.voxels or not prediction.voxels:
        state = "missed" if truth.voxels else "invented"
        return {"state": state, "dice": 0.0, "hd95_mm": diagonal, "surface_dice": 0.0, **volumes}
    distances = surface_distances(truth, prediction)
    return {
        "state": "measured",
        "dice": dice(truth, prediction),
        "hd95_mm": hd95(distances),
        "surface_dice": surface_dice(distances, tolerance),
        **volumes,
    }


def measure_case(job: Job) -> Measured:
    """Every structure of a case in every model's prediction; each file is read once."""
    rules = job.rules
    labels, geometry = read_label_map(job.truth)
    spacing = geometry.spacing_zyx
    ignored = labels == rules.description.ignore if rules.description.ignore is not None else None
    truths = structures(labels, spacing, rules.description, job.truth)
    diagonal = float("nan") if rules.exclude_empty else float(np.linalg.norm(np.multiply(labels.shape, spacing)))
    measurements, warnings, chooser = [], [], PlaneChooser(labels, spacing)
    if not geometry.orthogonal:
        warnings.append(f"{job.case}: its axes are not at right angles; measured as if they were")
    compared = labels if ignored is None else np.where(ignored, 0, labels)
    for model, path in job.predictions.items():
        predicted, where = read_label_map(path, geometry)
        if warning := geometry_warning(geometry, where):
            warnings.append(f"{job.case}, {model}: {warning}")
        if ignored is not None:
            predicted = np.where(ignored, 0, predicted)
        for label, structure in structures(predicted, spacing, rules.description, path).items():
            fields = measure_pair(truths[label], structure, diagonal, rules.tolerances[label])
            measurements.append(Measurement(job.case, model, label, **fields))  # type: ignore[arg-type]
        chooser.add(model, compared, predicted)
    return Measured(measurements, warnings, chooser.plane())


def process_count() -> int:
    """nnU-Net's ``nnUNet_def_n_proc``, which defaults to 8, but no more than there are cores."""
    setting = os.environ.get("nnUNet_def_n_proc", "8")
    if not re.fullmatch(r"0*[1-9][0-9]{0,4}", setting):
        raise ValueError(f"nnUNet_def_n_proc is {setting!r}: export a number of processes, 1 or more")
    return min(int(setting), os.cpu_count() or 1)


def _start_process() -> None:
    end_with_parent(ignore=STOP_SIGNALS)  # sent to the whole group; our parent ends us
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def measure(cases: Cases, rules: Rules) -> dict[str, Measured]:
    """Every case, with a progress bar, in the order of the cases.

    Raises:
        ValueError: a label map cannot be measured, or a process was killed.
    """
    jobs = [
        Job(case, truth, {model.name: model.predictions[case] for model in cases.models}, rules)
        for case, truth in cases.truths.items()
    ]
    results: dict[str, Measured] = {}
    processes = min(process_count(), len(jobs))
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever threads hold
    before = set(multiprocessing.active_children())
    with children_end_with_us(), ProcessPoolExecutor(processes, context, initializer=_start_process) as pool:
        try:
            futures = {pool.submit(measure_case, job): job.case for job in jobs}
            for future in tqdm(as_completed(futures), total=len(jobs), desc="measured", unit="case", disable=None):
                results[futures[future]] = future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"One of {processes} processes was killed, likely for want of memory: export nnUNet_def_n_proc=1"
            ) from error
        except BaseException:  # a bad file, a signal: nobody waits for what is being measured
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            raise
    return {job.case: results[job.case] for job in jobs}
