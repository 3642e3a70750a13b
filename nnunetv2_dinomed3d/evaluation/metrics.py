"""Measures of one structure in two label maps: Dice, HD95, surface Dice and volume.

Arrays are (d, h, w), as SimpleITK gives them. Spacing is in mm in the same order, (z, y, x).

The surface of a structure is its voxels with at least one face on something else, or on the image's border. A distance
goes from the centre of such a voxel to the centre of the nearest one of the other structure. MedPy's ``hd95`` and
MONAI's ``compute_surface_dice`` use the same surface, and here both measures come from the same distances.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

ROUNDING_MM = 1e-5
"""Excess over the tolerance that is rounding: NIfTI keeps spacing in single precision, 0.8 mm reads as 0.800000012."""


@dataclass(frozen=True)
class Structure:
    """The voxels of a label or region, cropped to their box. The crop changes no measure.

    Attributes:
        mask: (d, h, w) bool, the crop; (0, 0, 0) if there is nothing.
        start: voxel of the image at which the crop starts, (z, y, x).
        spacing: mm, (z, y, x).
    """

    mask: np.ndarray
    start: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @cached_property
    def voxels(self) -> int:
        """The number of voxels."""
        return int(np.count_nonzero(self.mask))

    @property
    def volume_ml(self) -> float:
        """The volume in ml."""
        return self.voxels * float(np.prod(self.spacing)) / 1000

    @cached_property
    def surface(self) -> KDTree:
        """The centres of the surface's voxels, (n, 3) in mm from the image's first voxel.

        The tree has cells of sliding midpoints that are not shrunk to their points. With any other kind, a query from
        far inside of a large hollow surface visits nearly all of it.
        """
        points = (np.argwhere(surface_of(self.mask)) + self.start) * self.spacing
        return KDTree(points, balanced_tree=False, compact_nodes=False)


def crop(mask: np.ndarray, spacing: tuple[float, float, float], start: tuple[int, int, int] = (0, 0, 0)) -> Structure:
    """The structure in a mask, cropped.

    Args:
        mask: (d, h, w) bool.
        spacing: mm, (z, y, x).
        start: first voxel of the mask in the image, (z, y, x), if the mask is cut out already.
    """
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not lines[0].size:
        return Structure(np.zeros((0, 0, 0), bool), (0, 0, 0), spacing)
    first, last = (tuple(int(line[end]) for line in lines) for end in (0, -1))
    box = tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
    return Structure(mask[box], (start[0] + first[0], start[1] + first[1], start[2] + first[2]), spacing)


def surface_of(mask: np.ndarray) -> np.ndarray:
    """The voxels of a (d, h, w) mask that have at least one of their six faces on the outside; (d, h, w)."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(3):
        for step in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(step, step + mask.shape[axis])
            inside &= padded[tuple(window)]
    return mask & ~inside


def dice(a: Structure, b: Structure) -> float:
    """2 |A and B| / (|A| + |B|); NaN if both are empty."""
    total = a.voxels + b.voxels
    if not total:
        return float("nan")
    starts = np.maximum(a.start, b.start)
    stops = np.minimum(np.add(a.start, a.mask.shape), np.add(b.start, b.mask.shape))
    if (starts >= stops).any():
        return 0.0
    parts = [s.mask[tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, s.start, strict=True))] for s in (a, b)]
    return 2 * int(np.count_nonzero(parts[0] & parts[1])) / total


def surface_distances(a: Structure, b: Structure) -> np.ndarray:
    """Distances in mm from each surface to the other, (voxels of a's surface + of b's). Neither may be empty."""
    assert min(a.voxels, b.voxels), "an empty structure has no distance"
    return np.concatenate([b.surface.query(a.surface.data)[0], a.surface.query(b.surface.data)[0]])


def hd95(distances: np.ndarray) -> float:
    """95th percentile of `surface_distances`, both directions pooled (as MedPy), in mm."""
    return float(np.percentile(distances, 95))


def surface_dice(distances: np.ndarray, tolerance: float) -> float:
    """Share of both surfaces' voxels that lie at most `tolerance` mm from the other surface (as MONAI), 0 to 1."""
    return float(np.mean(distances <= tolerance + ROUNDING_MM))
