"""Label maps: reading them, comparing their position in space, and finding the structures in them."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunetv2_dinomed3d.dataset_json import LARGEST_VALUE
from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.metrics import Structure, crop
from nnunetv2_dinomed3d.evaluation.volume import Geometry, read_volume


def read_label_map(path: Path, reference: Geometry | None = None) -> tuple[np.ndarray, Geometry]:
    """Read a label map as (d, h, w), uint8 or int16, with no value below 0.

    Args:
        reference: geometry of the reference, for a prediction. Another size or spacing is refused before voxels are
            read.

    Raises:
        ValueError: the file cannot be read, has not three axes, does not fit, or holds values that are no labels.
    """
    array, geometry = read_volume(path, lambda found: _check_fit(reference, found, path) if reference else None)
    return _as_labels(array, path), geometry


def _as_labels(array: np.ndarray, path: Path) -> np.ndarray:
    """Integers from 0 to the largest that a ``dataset.json`` may name; floats that are whole numbers are taken too."""
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueError(f"{path} holds {low if not np.isfinite(low) else high}, so it is no label map")
    if low < 0:
        hint = " (in a file of 8 bits with a sign, 255 reads as -1)" if array.dtype == np.int8 else ""
        raise ValueError(f"{path} holds {low:g}, which dataset.json does not name: no label is negative{hint}")
    if high > LARGEST_VALUE:
        raise ValueError(f"{path} holds {high}, which dataset.json does not name: does it belong to this data set?")
    labels = array.astype(np.uint8 if high < 256 else np.int16, copy=False)
    if array.dtype.kind == "f" and (different := labels != array).any():
        raise ValueError(f"{path} holds {array[different][0]}: a label map holds integers only")
    return labels


def _check_fit(reference: Geometry, prediction: Geometry, path: Path) -> None:
    if reference.size != prediction.size:
        raise ValueError(f"{path} has {prediction.size} voxels, its reference {reference.size} (x, y, z): resample it")
    if not np.allclose(reference.spacing, prediction.spacing, rtol=1e-3, atol=0):
        raise ValueError(f"{path} has spacing {prediction.spacing} mm, its reference {reference.spacing}: resample it")


def geometry_warning(reference: Geometry, prediction: Geometry) -> str:
    """A warning if a prediction lies elsewhere than its reference, to follow the prediction's name; else empty."""
    if not np.allclose(reference.direction, prediction.direction, atol=1e-2):
        return "its axes point elsewhere than those of its reference; the two are compared voxel by voxel all the same"
    if np.abs(np.subtract(reference.origin, prediction.origin)).max() > min(reference.spacing) / 2:
        return (
            "its first voxel lies elsewhere than that of its reference; they are compared voxel by voxel all the same"
        )
    return ""


def structures(
    labels: np.ndarray, spacing: tuple[float, float, float], wanted: DatasetLabels, path: Path
) -> dict[str, Structure]:
    """Every label and region in a label map, by name; the ignore label is none of them.

    Args:
        labels: (d, h, w), as `read_label_map` gives it.
        spacing: in mm, (z, y, x).
        path: for the error.

    Raises:
        ValueError: the map holds a value that the data set does not name.
    """
    boxes = [box if box is None else tuple(box) for box in ndimage.find_objects(labels)]
    there = {value for value, box in enumerate(boxes, 1) if box is not None}
    if unknown := sorted(there - wanted.values - {wanted.ignore}):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{path} holds {unknown[:5]}{more}, which dataset.json does not name: does it belong to this data set?"
        )
    found = {}
    for name, values in wanted.labels.items():
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
