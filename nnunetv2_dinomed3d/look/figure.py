"""The figure: a row for each slice, a column for each kind of picture."""

import textwrap
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.pictures import legend, overlay, value_colours
from nnunetv2_dinomed3d.text import plot_text

SIDE = 2.3
"""Inches of a panel."""


@dataclass(frozen=True)
class Column:
    """A column of the figure.

    Attributes:
        title: of the column.
        pictures: of each slice ``(h, w)``; ``(h, w, 3)`` RGB from 0 to 1 for colours.
        kind: how they are drawn; labels lie over the image.
    """

    title: str
    pictures: list[np.ndarray]
    kind: Literal["grey", "colours", "gate", "labels"]


def label_names(labels: dict[str, Any]) -> dict[int, str]:
    """The name of each value, background excluded.

    Args:
        labels: labels or regions of a ``dataset.json``. A value of several regions gets all of their names.
    """
    names: dict[int, list[str]] = {}
    for name, values in labels.items():
        for value in values if isinstance(values, list | tuple) else [values]:
            names.setdefault(int(value), []).append(name)
    return {value: " + ".join(found) for value, found in sorted(names.items()) if value}


def draw(
    title: str, note: str, slices: list[int], columns: list[Column], *, names: dict[int, str], aspect: float
) -> Figure:
    """Draw the figure.

    Args:
        title: first line of the figure.
        note: text under the title.
        slices: numbers of the rows.
        columns: the first one is the image.
        names: of `label_names`.
        aspect: height of a voxel over its width.
    """
    height, width = columns[0].pictures[0].shape
    row_height = SIDE * min(2.0, aspect * height / width)
    figure = Figure(figsize=(SIDE * len(columns), row_height * len(slices) + 1.2), layout="constrained")
    axes = figure.subplots(len(slices), len(columns), squeeze=False)
    colours = value_colours(names)
    for i, column in enumerate(columns):
        axes[0][i].set_title(column.title, fontsize=8)
        low, high = float(min(map(np.min, column.pictures))), float(max(map(np.max, column.pictures)))
        for axis, image, picture in zip(axes[:, i], columns[0].pictures, column.pictures, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            shown = overlay(image, picture, colours) if column.kind == "labels" else picture
            cmap = "viridis" if column.kind == "gate" else "gray"
            axis.imshow(shown, cmap=cmap, vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    for axis, number in zip(axes[:, 0], slices, strict=True):
        axis.set_ylabel(f"slice {number}", fontsize=8)
    legend(figure, names, colours)
    lines = [plot_text(title, 200), *textwrap.wrap(plot_text(note, 2000), 32 * len(columns))]
    figure.suptitle("\n".join(lines), fontsize=8, x=0.01, ha="left")
    return figure
