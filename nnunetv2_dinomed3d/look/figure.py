"""The picture: a row per slice, a column per kind of what is seen."""

import textwrap
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2_dinomed3d.evaluation.figures import colour
from nnunetv2_dinomed3d.evaluation.text import drawn

SIDE = 2.3
"""Inches of a panel."""


@dataclass(frozen=True)
class Column:
    """One kind of what is seen.

    Attributes:
        title: of the column.
        pictures: of each slice ``(h, w)``, or ``(h, w, 3)`` for colours.
        kind: how they are drawn; labels lie over the image.
    """

    title: str
    pictures: list[np.ndarray]
    kind: Literal["grey", "colours", "gate", "labels"]


def label_names(labels: dict[str, Any]) -> dict[int, str]:
    """Of ``dataset.json``'s labels or regions, each value's name; a value of several regions has theirs."""
    names: dict[int, list[str]] = {}
    for name, values in labels.items():
        for value in values if isinstance(values, list | tuple) else [values]:
            names.setdefault(int(value), []).append(name)
    return {value: " + ".join(found) for value, found in sorted(names.items()) if value}


def draw(
    title: str, note: str, slices: list[int], columns: list[Column], names: dict[int, str], aspect: float
) -> Figure:
    """The figure.

    Args:
        title: of the whole.
        note: under the title.
        slices: numbers of the rows.
        columns: the first is the image.
        names: of `label_names`.
        aspect: a voxel's height over its width.
    """
    height, width = columns[0].pictures[0].shape
    row_height = SIDE * min(2.0, aspect * height / width)
    figure = Figure(figsize=(SIDE * len(columns), row_height * len(slices) + 1.2), layout="constrained")
    axes = figure.subplots(len(slices), len(columns), squeeze=False)
    index = {value: i for i, value in enumerate(names)}
    colours = ListedColormap([colour(i) for i in range(len(names))])
    for i, column in enumerate(columns):
        axes[0][i].set_title(column.title, fontsize=8)
        low, high = float(min(map(np.min, column.pictures))), float(max(map(np.max, column.pictures)))
        for axis, image, picture in zip(axes[:, i], columns[0].pictures, column.pictures, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if column.kind == "labels":
                axis.imshow(image, cmap="gray", aspect=aspect)
                places = np.vectorize(lambda value: index.get(int(value), -1), otypes=[int])(picture)
                axis.imshow(np.ma.masked_less(places, 0), cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, alpha=0.5,
                            aspect=aspect, interpolation="nearest")  # fmt: skip
            else:
                cmap = "gray" if column.kind == "grey" else "viridis"
                axis.imshow(picture, cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    for axis, number in zip(axes[:, 0], slices, strict=True):
        axis.set_ylabel(f"slice {number}", fontsize=8)
    handles = [Patch(color=colours(i), label=drawn(names[value])) for value, i in index.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=7)
    lines = [drawn(title, 200), *textwrap.wrap(drawn(note, 2000), 32 * len(columns))]
    figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left")
    return figure
