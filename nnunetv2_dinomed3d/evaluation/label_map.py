"""Label maps: reading them, where they lie, and the structures in them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from nnunetv2_dinomed3d.evaluation.dataset import Description
from nnunetv2_dinomed3d.evaluation.metrics import Structure, crop


@dataclass(frozen=True)
class Geometry:
    """Where a label map lies, in SimpleITK's order (x, y, z) and mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @property
    def spacing_zyx(self) -> tuple[float, float, float]:
        """In the order of the array's axes."""
        x, y, z = self.spacing
        return z, y, x


def read_label_map(path: Path) -> tuple[np.ndarray, Geometry]:
    """A label map, (d, h, w) of integers.

    Raises:
        ValueError: it cannot be read, has not three axes, or holds something else than integers.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} cannot be read: {reason}") from error
    array = sitk.GetArrayFromImage(image)
    if array.ndim != 3:
        raise ValueError(f"{path} has {array.ndim} axes; a label map of a volume has three")
    if array.dtype.kind == "f":
        rounded = np.rint(array).astype(np.int32)
        if not np.array_equal(rounded, array):
            raise ValueError(f"{path} holds values that are no integers, so it is no label map")
        array = rounded
    return array, Geometry(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def geometry_warning(truth: Geometry, prediction: Geometry, path: Path) -> str:
    """What of a prediction's position differs, as text; a size or spacing that differs is refused."""
    if truth.size != prediction.size:
        raise ValueError(f"{path} has {prediction.size} voxels, its truth {truth.size} (x, y, z): resample it")
    if not np.allclose(truth.spacing, prediction.spacing, rtol=1e-3, atol=0):
        raise ValueError(f"{path} has spacing {prediction.spacing} mm, its truth {truth.spacing}: resample it")
    if not np.allclose(truth.direction, prediction.direction, atol=1e-2):
        return f"{path}: its axes point elsewhere than its truth's; compared voxel by voxel all the same"
    if np.abs(np.subtract(truth.origin, prediction.origin)).max() > min(truth.spacing) / 2:
        return f"{path}: its first voxel lies elsewhere than its truth's; compared voxel by voxel all the same"
    return ""


def structures(
    labels: np.ndarray, spacing: tuple[float, float, float], description: Description, path: Path
) -> dict[str, Structure]:
    """Every label and region of a label map, (d, h, w), without its ignore label."""
    boxes = [box if box is None else tuple(box) for box in ndimage.find_objects(labels)]
    there = {value for value, box in enumerate(boxes, 1) if box is not None}
    if unknown := there - description.values - {description.ignore}:
        raise ValueError(f"{path} holds {sorted(unknown)}, which dataset.json does not name: is it of this data set?")
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
