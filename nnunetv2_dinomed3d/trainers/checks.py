"""What is wrong with a user's settings or data, found before training starts."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes


def check_mirroring(slab_depth: int, mirror_axes: Sequence[int] | None) -> None:
    """Refuse mirroring along the slices for even K.

    Raises:
        ValueError: the central slice of a slab would move.
    """
    if slab_depth % 2 == 0 and mirror_axes is not None and 0 in mirror_axes:
        raise ValueError(
            f"This trainer mirrors along axes {tuple(mirror_axes)} with slabs of K = {slab_depth} slices: for even K, "
            "mirroring along axis 0 moves the central slice, whose label is trained on. Leave axis 0 out, or use an "
            "odd K."
        )


@dataclass(frozen=True)
class CaseReport:
    """What was found in a preprocessed case.

    Attributes:
        identifier: of the case.
        finite: whether all intensities are.
        constant: whether every channel has one intensity throughout.
        labels: labels (or regions) that it has voxels of.
    """

    identifier: str
    finite: bool
    constant: bool
    labels: frozenset


def look_at_case(dataset: Any, identifier: str, labels: Sequence) -> CaseReport:
    """Read a whole case of nnU-Net's dataset."""
    data, _, _, properties = dataset.load_case(identifier)
    data = np.asarray(data[:])
    low, high = data.reshape(len(data), -1).min(1), data.reshape(len(data), -1).max(1)  # NaN where there is one
    locations: Mapping = properties["class_locations"]
    present = frozenset(label for label in labels if len(locations.get(_key(label), ())) > 0)
    return CaseReport(identifier, bool(np.isfinite([low, high]).all()), bool((low == high).all()), present)


def _key(label: Any) -> Any:
    """nnU-Net's key of a label or region in ``class_locations``."""
    return tuple(label) if isinstance(label, (list, tuple)) else label


def check_cases(training: Any, validation: Any, labels: Sequence) -> list[str]:
    """Look at every case that training would read.

    Args:
        training, validation: nnU-Net's datasets.
        labels: the foreground labels, or regions.

    Returns:
        What is worth a warning.

    Raises:
        ValueError: a case has values that are not finite, or one intensity throughout, or a label is nowhere.
    """
    datasets = {identifier: dataset for dataset in (validation, training) for identifier in dataset.identifiers}
    with ThreadPoolExecutor(default_num_processes) as pool:
        reports = list(pool.map(lambda case: look_at_case(datasets[case], case, labels), sorted(datasets)))
    broken = [report.identifier for report in reports if not report.finite]
    if broken:
        raise ValueError(
            f"{_some(broken)}: the preprocessed images have values that are not finite (NaN or infinity). Repair the "
            "raw images (nnUNetv2_plan_and_preprocess --verify_dataset_integrity finds them), and preprocess again."
        )
    constant = [report.identifier for report in reports if report.constant]
    if constant:
        raise ValueError(
            f"{_some(constant)}: the image has the same intensity everywhere. Replace or remove it, and preprocess "
            "again."
        )
    everywhere = frozenset().union(*(report.labels for report in reports))
    missing = [label for label in labels if label not in everywhere]
    if missing:
        raise ValueError(
            f"Label {missing[0]} of dataset.json is in none of the {len(reports)} cases: it cannot be learned. Remove "
            "it from dataset.json, or add cases that have it, and preprocess again."
        )
    return _warnings(reports, frozenset(training.identifiers), labels)


def _warnings(reports: Sequence[CaseReport], training: Collection[str], labels: Sequence) -> list[str]:
    seen = frozenset().union(*(report.labels for report in reports if report.identifier in training))
    warnings = [f"no training case of this fold has label {label}" for label in labels if label not in seen]
    empty = [report.identifier for report in reports if not report.labels]
    if empty:
        warnings.append(f"{_some(empty)}: no foreground. Is that meant?")
    return warnings


def _some(identifiers: Sequence[str]) -> str:
    shown = ", ".join(identifiers[:5])
    return f"{shown} and {len(identifiers) - 5} more" if len(identifiers) > 5 else shown
