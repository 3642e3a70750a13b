"""Label maps: reading them, where they lie, and the structures in them."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunetv2_dinomed3d.dataset_json import LARGEST_VALUE
from nnunetv2_dinomed3d.evaluation.metrics import Structure, crop
from nnunetv2_dinomed3d.evaluation.volume import Geometry, read_volume
from nnunetv2_dinomed3d.nnunet_files import Description


def read_label_map(path: Path, truth: Geometry | None = None) -> tuple[np.ndarray, Geometry]:
    """A label map, (d, h, w), uint8 or int16, no value below 0.

    Args:
        truth: where the truth lies, for a prediction; another size or spacing is refused, before voxels are read.

    Raises:
        ValueError: it cannot be read, has not three axes, does not fit, or holds what is no label.
    """
    array, geometry = read_volume(path, lambda found: _check_fit(truth, found, path) if truth else None)
    return _as_labels(array, path), geometry


def _as_labels(array: np.ndarray, path: Path) -> np.ndarray:
    """Whole numbers from 0 to the largest that a ``dataset.json`` may name; floats that are whole numbers too."""
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{path} holds {low if not np.isfinite(low) else high}, so it is no label map")
    if low < 0:
        hint = " (in a file of 8 bits with a sign, 255 reads as -1)" if array.dtype == np.int8 else ""
        raise ValueError(f"{path} holds {low:g}, which dataset.json does not name: no label is negative{hint}")
    if high > LARGEST_VALUE:
        raise ValueError(f"{path} holds {high}, which dataset.json does not name: is it of this data set?")
    labels = array.astype(np.uint8 if high < 256 else np.int16, copy=False)
    if array.dtype.kind == "f" and (different := labels != array).any():
        raise ValueError(f"{path} holds {array[different][0]}: values that are no integers make no label map")
    return labels


def _check_fit(truth: Geometry, prediction: Geometry, path: Path) -> None:
    if truth.size != prediction.size:
        raise ValueError(f"{path} has {prediction.size} voxels, its truth {truth.size} (x, y, z): resample it")
    if not np.allclose(truth.spacing, prediction.spacing, rtol=1e-3, atol=0):
        raise ValueError(f"{path} has spacing {prediction.spacing} mm, its truth {truth.spacing}: resample it")


def geometry_warning(truth: Geometry, prediction: Geometry) -> str:
    """What of a prediction's position differs, as the end of a sentence that begins with its name; else empty."""
    if not np.allclose(truth.direction, prediction.direction, atol=1e-2):
        return "its axes point elsewhere than its truth's; compared voxel by voxel all the same"
    if np.abs(np.subtract(truth.origin, prediction.origin)).max() > min(truth.spacing) / 2:
        return "its first voxel lies elsewhere than its truth's; compared voxel by voxel all the same"
    return ""


def structures(
    labels: np.ndarray, spacing: tuple[float, float, float], description: Description, path: Path
) -> dict[str, Structure]:
    """Every label and region of a label map, (d, h, w) of `read_label_map`, without its ignore label."""
    boxes = [box if box is None else tuple(box) for box in ndimage.find_objects(labels)]
    there = {value for value, box in enumerate(boxes, 1) if box is not None}
    if unknown := sorted(there - description.values - {description.ignore}):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"{path} holds {unknown[:5]}{more}, which dataset.json does not name: is it of this data set?")
    found = {}
    for name, values in description.labels.items():
        inside = [box for value in values if value in there and (box := boxes[value - 1])]
        if not inside:
            found[name] = crop(np.zeros((0, 0, 0), bool), spacing)
            continue
        start = tuple(min(box[axis].start for box in inside) for axis in range(3))
        stop = tuple(max(box[axis].stop for box in inside) for axis in range(3))
        part = labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        mask = part == values[0] if len(values) == 1 else np.isin(part, values)
        found[name] = crop(mask, spacing, (start[0], start[1], start[2]))
    return found
