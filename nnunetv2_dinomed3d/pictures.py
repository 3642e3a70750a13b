"""Pictures of label maps: colours, the overlay on an image, the legend. A label has one colour in every picture.

Matplotlib is imported when something is drawn: it takes seconds on its first start.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_dinomed3d.text import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]
"""Red, green and blue, each from 0 to 1."""

OPACITY = 0.5
"""Share of a label's colour in the overlay."""


def label_colour(index: int) -> Colour:
    """The colour of the index-th label, counted by value from 0, background excluded. It repeats after 20 labels."""
    import matplotlib

    pair, light = index % 10, index // 10 % 2
    red, green, blue, _ = matplotlib.colormaps["tab20"](2 * pair + light)
    return red, green, blue


def value_colours(values: Iterable[int]) -> dict[int, Colour]:
    """The colour of every label value, in ascending order; the background (0) has none."""
    return {value: label_colour(i) for i, value in enumerate(sorted(set(values) - {0}))}


def overlay(image_2d: np.ndarray, labels_2d: np.ndarray, colours: Mapping[int, Colour]) -> np.ndarray:
    """A slice in grey with its labels in colour.

    Args:
        image_2d: (h, w), any number type; its smallest finite value is black, its largest white.
        labels_2d: (h, w), label values.
        colours: of each value to show, as `value_colours` gives them; other values are not shown.

    Returns:
        (h, w, 3) float64 RGB, 0 to 1.
    """
    image = np.asarray(image_2d, np.float64)
    finite = np.isfinite(image)
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0.0, 0.0)
    grey = np.where(finite, (image - low) / (high - low), 0.0) if high > low else np.zeros(image.shape)
    rgb = np.repeat(grey[..., np.newaxis], 3, axis=-1)
    for value, colour in colours.items():
        inside = labels_2d == value
        rgb[inside] = (1 - OPACITY) * rgb[inside] + OPACITY * np.array(colour)
    return rgb


def legend(
    axes_or_figure: "Axes | Figure", names: Mapping[int, str], colours: Mapping[int, Colour], fontsize: int = 7
) -> None:
    """The name and colour of each value of `colours`: under a figure, or inside of axes.

    Args:
        names: of each value; any text, which is shortened and never taken for TeX.
        colours: as `value_colours` gives them.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=plot_text(names[value], 30)) for value, colour in colours.items()]
    style: dict[str, Any] = {"ncols": max(1, min(6, len(handles))), "frameon": False, "fontsize": fontsize}
    if isinstance(axes_or_figure, Figure):
        axes_or_figure.legend(handles=handles, loc="outside lower center", **style)
    else:
        axes_or_figure.legend(handles=handles, **style)
