"""What is done to a case: the paper's section 3.1, or nothing."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

SIDE = 512
"""Pixels of a slice's sides in the paper."""
PERCENTILES = (0.5, 99.5)

Crop = Literal["labels", "centre"]
FirstSlice = Literal["feet", "head"]


@dataclass(frozen=True)
class Recipe:
    """How images and labels are changed. The defaults change nothing.

    Attributes:
        paper: whether slices are resized to `SIDE` and, of MRI, intensities clipped to percentiles.
        values: the new value of each value that labels may hold; any other is refused.
        channels: of the published channels, those that are taken, by their numbers.
        window: width and level in HU, of CT.
        slices: at most so many slices along z are kept.
        crop: the slices around the middle of those with a label (of `values` above 0), or of the image.
        spacing: between slices, in mm; None for the image's own.
        nonzero: whether percentiles are those of the voxels that are not 0.
        first_slice: where the labels' first PNG lies, for cases without pictures.
    """

    paper: bool
    values: Mapping[int, int]
    channels: tuple[int, ...]
    window: tuple[float, float] | None = None
    slices: int | None = None
    crop: Crop = "labels"
    spacing: float | None = None
    nonzero: bool = True
    first_slice: FirstSlice = "feet"

    @property
    def relabels(self) -> bool:
        """Whether a value of the labels becomes another."""
        return any(old != new for old, new in self.values.items())

    def as_json(self) -> dict[str, Any]:
        """The recipe, for the manifest."""
        return json.loads(json.dumps({**asdict(self), "values": dict(sorted(self.values.items()))}))


def merged(labels: Mapping[str, int], wanted: str, name: str) -> tuple[dict[int, int], dict[str, int]]:
    """New values of labels, and the labels that are left.

    Args:
        labels: the published ones.
        wanted: "all", "one" (all are one label), or the name of the only label to keep.
        name: of the one label that "one" gives.

    Raises:
        ValueError: there is no such label.
    """
    if wanted == "all":
        return {0: 0} | {value: value for value in labels.values()}, dict(labels)
    if wanted == "one":
        return {0: 0} | {value: 1 for value in labels.values()}, {name: 1}
    if wanted not in labels:
        raise ValueError(f"--labels {wanted!r} is none of this data set's: give all, one, or {', '.join(labels)}")
    return {0: 0} | {value: int(label == wanted) for label, value in labels.items()}, {wanted: 1}
