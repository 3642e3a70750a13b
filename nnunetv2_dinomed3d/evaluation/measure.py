"""Measuring every case of every model, in parallel processes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nnunetv2_dinomed3d.evaluation.cases import PairedCases
from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.label_map import geometry_warning, read_label_map, structures
from nnunetv2_dinomed3d.evaluation.metrics import Structure, dice, hd95, surface_dice, surface_distances
from nnunetv2_dinomed3d.evaluation.paper_rules import PaperScores, in_voxels, score_pair
from nnunetv2_dinomed3d.evaluation.parallel import in_processes, process_count
from nnunetv2_dinomed3d.evaluation.planes import Plane, PlaneChooser

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
    """The scores of one structure in one case, as one model predicted it.

    Attributes:
        paper: by the paper's rules, if they were asked for.
    """

    case: str
    model: str
    label: str
    scores: Scores
    paper: PaperScores | None = None


@dataclass(frozen=True)
class Rules:
    """The rules of measuring.

    Attributes:
        labels: the structures, and the ignore label.
        tolerances: the surface Dice's tolerance of each label, in mm.
        exclude_empty: whether a structure that is empty in one of the two has no HD95, instead of the image's diagonal.
        paper: whether the paper's rules are applied beside ours.
    """

    labels: DatasetLabels
    tolerances: dict[str, float]
    exclude_empty: bool
    paper: bool = False


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
        size: voxels of the label maps, (x, y, z).
    """

    measurements: list[Measurement]
    warnings: list[str]
    plane: Plane
    size: tuple[int, int, int]


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
    references_in_voxels = {label: in_voxels(structure) for label, structure in references.items()}
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
            paper = score_pair(references_in_voxels[label], in_voxels(structure)) if rules.paper else None
            measurements.append(Measurement(job.case, model, label, scores, paper))
        chooser.add(model, compared, prediction)
    d, h, w = reference.shape
    return Measured(measurements, warnings, chooser.plane(), (w, h, d))


def measure(cases: PairedCases, rules: Rules) -> dict[str, Measured]:
    """Measure every case, with a progress bar; the result is in the order of the cases.

    Raises:
        ValueError: a label map cannot be measured, or a process was killed.
    """
    jobs = {
        case: MeasureJob(case, reference, {model.name: model.predictions[case] for model in cases.models}, rules)
        for case, reference in cases.references.items()
    }
    return in_processes(measure_case, jobs, process_count())
