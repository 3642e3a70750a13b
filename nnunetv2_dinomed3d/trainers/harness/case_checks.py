"""Checks of the preprocessed cases, before training starts."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_dinomed3d.text import join_first, printable
from nnunetv2_dinomed3d.trainers.harness.input_checks import AGAIN

OUTSIDE = -1
"""Value that nnU-Net's preprocessing writes into the background of a segmentation where the image is zero."""

LARGEST_INTENSITY = float(np.sqrt(np.finfo(np.float32).max))
"""Above it the square, and so a standard deviation, is not finite in float32."""

ONLY_AGAIN = "Preprocess again (nnUNetv2_preprocess)"


@dataclass(frozen=True)
class Expected:
    """The form that a preprocessed case must have.

    Attributes:
        channels: of the image.
        labels: the foreground labels, or regions.
        values: that a segmentation may hold: those of the labels, the ignore label and `OUTSIDE`.
        always_sampled: keys of ``class_locations`` that nnU-Net's loader looks up in every case.
    """

    channels: int
    labels: Sequence
    values: frozenset[int]
    always_sampled: tuple

    @staticmethod
    def of(dataset_json: Mapping, label_manager: Any) -> "Expected":
        """The form that a ``dataset.json`` and nnU-Net's label manager for it ask for."""
        channels = len(dataset_json.get("modality", dataset_json.get("channel_names", ())))
        labels = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
        values = {OUTSIDE, 0, *map(int, label_manager.all_labels)}
        if not label_manager.has_ignore_label:
            return Expected(channels, labels, frozenset(values), ())
        annotated = (OUTSIDE, *map(int, label_manager.all_labels))
        return Expected(channels, labels, frozenset(values | {label_manager.ignore_label}), (annotated,))


@dataclass(frozen=True)
class CaseReport:
    """Findings in a preprocessed case.

    Attributes:
        identifier: of the case.
        fault: why it cannot be trained on, and what to do; None if it can.
        constant: channels that have one intensity throughout.
        labels: labels (or regions) that it has voxels of.
    """

    identifier: str
    fault: str | None = None
    constant: tuple[int, ...] = ()
    labels: frozenset = frozenset()


def look_at_case(dataset: Any, identifier: str, expected: Expected) -> CaseReport:
    """Read a whole case of nnU-Net's dataset, a few slices at a time."""
    try:
        return _look_at_case(dataset, identifier, expected)
    except Exception as error:  # Blosc2, NumPy, zip and pickle complain of damaged files with almost any class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        stage = dataset.folder_with_segs_from_previous_stage
        if stage is not None and not any(Path(stage, f"{identifier}.{ending}").exists() for ending in ("b2nd", "npz")):
            fault = f"{stage} has no prediction of the previous stage for it. Train all folds of that one first."
        else:
            fault = f"its preprocessed files are missing, or cut or damaged ({reason}). Remove them, and {AGAIN}."
        return CaseReport(identifier, fault)


def _look_at_case(dataset: Any, identifier: str, expected: Expected) -> CaseReport:
    data, seg, previous, properties = dataset.load_case(identifier)
    fault = _shape_fault(data.shape, seg.shape, expected.channels)
    if not fault and previous is not None and tuple(previous.shape) != tuple(data.shape[1:]):
        fault = (
            f"the prediction of the previous stage has the shape {_plain(previous.shape)}, the image "
            f"{_plain(data.shape[1:])}. Validate the previous stage again, with these plans."
        )
    if fault:
        return CaseReport(identifier, fault)
    low, high = _intensities(data)
    values = _values(seg)
    fault = _intensity_fault(low, high) or _value_fault("the segmentation", values, expected.values)
    if not fault and previous is not None:
        values_before = _values(np.asarray(previous[:])[None])
        fault = _value_fault("the prediction of the previous stage", values_before, expected.values)
    present = frozenset(label for label in expected.labels if values & set(np.atleast_1d(label).tolist()))
    fault = fault or _location_fault(properties, seg.shape, [*map(_key, present), *expected.always_sampled])
    constant = tuple(np.flatnonzero(low == high).tolist())
    return CaseReport(identifier, fault, constant, present)


def _blocks(array: Any) -> Iterator[np.ndarray]:
    """An array ``(c, d, h, w)``, whole chunks of slices at a time: decompressed, a case can be large."""
    step = array.chunks[1] if hasattr(array, "chunks") else array.shape[1]
    for start in range(0, array.shape[1], step):
        yield np.asarray(array[:, start : start + step])


def _intensities(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of each channel; NaN where there is one."""
    lows, highs = zip(*((block.min((1, 2, 3)), block.max((1, 2, 3))) for block in _blocks(data)), strict=True)
    return np.min(lows, 0), np.max(highs, 0)


def _values(seg: Any) -> set:
    """The values in a segmentation."""
    found: set = set()
    for block in _blocks(seg):
        if block.dtype.kind in "iu" and int(block.max()) - int(block.min()) <= 2**16:  # faster than sorting
            low = int(block.min())
            found.update((np.flatnonzero(np.bincount(block.ravel().astype(np.int64) - low)) + low).tolist())
        else:
            found.update(np.unique(block).tolist())
    return found


def _shape_fault(data: tuple[int, ...], seg: tuple[int, ...], channels: int) -> str | None:
    if len(data) != 4 or 0 in data:
        return f"the preprocessed image has the shape {_plain(data)}, not channels and a volume. {ONLY_AGAIN}."
    if data[0] != channels:
        return (
            f"the preprocessed image has {data[0]} channels, dataset.json names {channels}. Correct dataset.json, and "
            f"{AGAIN}."
        )
    if tuple(seg) != (1, *data[1:]):
        return (
            f"the preprocessed image has the shape {_plain(data[1:])}, the segmentation {_plain(seg)}: they are not of "
            f"the same case, or damaged. {ONLY_AGAIN}."
        )
    return None


def _intensity_fault(low: np.ndarray, high: np.ndarray) -> str | None:
    if not np.isfinite([low, high]).all():
        return (
            "the preprocessed images have values that are not finite (NaN or infinity). Repair the raw images "
            f"(nnUNetv2_plan_and_preprocess --verify_dataset_integrity finds them), and {AGAIN}."
        )
    largest = float(max(-low.min(), high.max()))
    if largest > LARGEST_INTENSITY:
        return (
            f"the preprocessed image has values too large for float32 arithmetic (up to {largest:.2g}). Repair the raw "
            f"image, and {AGAIN}."
        )
    return None


def _value_fault(what: str, values: set, named: frozenset[int]) -> str | None:
    unnamed = sorted(values - named)
    if not unnamed:
        return None
    known = ", ".join(str(value) for value in sorted(named) if value != OUTSIDE)
    return (
        f"{what} has the value {', '.join(map(str, unnamed[:5]))}, which dataset.json does not name (it names "
        f"{known}). Correct the label map or dataset.json, and {AGAIN}."
    )


def _location_fault(properties: Any, shape: tuple[int, ...], needed: Sequence) -> str | None:
    """The fault in nnU-Net's sample of voxels of each label, which it centres patches on; None if there is none."""
    locations = properties.get("class_locations") if isinstance(properties, Mapping) else None
    if not isinstance(locations, Mapping):
        return f"its .pkl has no class_locations. {ONLY_AGAIN}."
    for key in needed:
        if key not in locations:
            return (
                f"its .pkl has no class_locations of label {key}: dataset.json was changed after preprocessing. "
                f"{ONLY_AGAIN}."
            )
    for key, points in locations.items():
        places = np.asarray(points)
        if not places.size:
            continue
        fits = places.ndim == 2 and places.shape[1] == len(shape) and places.dtype.kind in "iu"
        if not fits or (places < 0).any() or (places >= np.array(shape)).any():
            return (
                f"its .pkl has class_locations of label {key} outside the image, so it is not of the same case, or "
                f"damaged. {ONLY_AGAIN}."
            )
    return None


def _key(label: Any) -> Any:
    """nnU-Net's key of a label or region in ``class_locations``."""
    return tuple(label) if isinstance(label, (list, tuple)) else label


def _plain(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def check_cases(
    training: Any, validation: Any, expected: Expected, largest_raw: Callable[[str], float | None]
) -> list[str]:
    """Look at every case that training would read.

    Args:
        training, validation: nnU-Net's datasets.
        expected: of a case.
        largest_raw: gives the largest magnitude in the raw image of a case, None if it is not known.

    Returns:
        Warnings.

    Raises:
        ValueError: a case is damaged, does not fit ``dataset.json``, has values that are not finite, or one intensity
            throughout; or a label is nowhere.
    """
    datasets = {identifier: dataset for dataset in (validation, training) for identifier in dataset.identifiers}
    with ThreadPoolExecutor(default_num_processes) as pool:
        reports = list(pool.map(lambda case: look_at_case(datasets[case], case, expected), sorted(datasets)))
    faults = {report.identifier: report.fault for report in reports if report.fault}
    if not faults:
        constant = (report.identifier for report in reports if len(report.constant) == expected.channels)
        faults = {case: _constant_fault(largest_raw(case)) for case in constant}
    if faults:
        raise ValueError(_all_faults(faults))
    everywhere = frozenset().union(*(report.labels for report in reports))
    missing = [label for label in expected.labels if label not in everywhere]
    if missing:
        raise ValueError(
            f"Label {missing[0]} of dataset.json is in none of the {len(reports)} cases: it cannot be learned. Remove "
            "it from dataset.json, or add cases that have it, and preprocess again."
        )
    return _warnings(reports, frozenset(training.identifiers), expected)


def largest_raw_value(folder: Path, dataset_json: dict, reader: Any, identifier: str) -> float | None:
    """Largest magnitude in the raw image of a case; None where it cannot be read.

    Args:
        folder: of the raw data set.
        reader: nnU-Net's.
    """
    try:
        image, _ = reader.read_images(
            get_filenames_of_train_images_and_targets(str(folder), dataset_json)[identifier]["images"]
        )
    except Exception:  # whatever is wrong with it, there is no answer
        return None
    return float(np.abs(image).max())


def _constant_fault(largest: float | None) -> str:
    if largest is not None and largest > LARGEST_INTENSITY:
        return (
            f"the raw image has values too large for float32 arithmetic (up to {largest:.2g}), and nnU-Net's "
            f"normalisation makes all of it equal. Repair the raw image, and {AGAIN}."
        )
    return f"the image has the same intensity everywhere. Replace or remove it, and {AGAIN}."


def _all_faults(faults: Mapping[str, str]) -> str:
    """One line about the cases with the first fault, and how many have others."""
    first = next(iter(faults.values()))
    same = [case for case, fault in faults.items() if fault == first]
    others = [case for case in faults if case not in same]
    more = f" Faults of other kinds: {join_first(others)}." if others else ""
    return printable(f"{join_first(same)}: {first}{more}")


def _warnings(reports: Sequence[CaseReport], training: Collection[str], expected: Expected) -> list[str]:
    seen = frozenset().union(*(report.labels for report in reports if report.identifier in training))
    warnings = [f"no training case of this fold has label {label}" for label in expected.labels if label not in seen]
    for channel in range(expected.channels):
        constant = [report.identifier for report in reports if channel in report.constant]
        if constant:
            warnings.append(
                f"{join_first(constant)}: channel {channel} has the same intensity everywhere (a missing modality, or "
                f"a raw value above {LARGEST_INTENSITY:.1g} that normalisation flattens all others beside). Is that "
                "meant?"
            )
    empty = [report.identifier for report in reports if not report.labels]
    if empty:
        warnings.append(f"{join_first(empty)}: no foreground. Is that meant?")
    return warnings
