"""Pictures of single cases: image, truth and every prediction, in one slice."""

from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2_dinomed3d.evaluation.figures import value_colours
from nnunetv2_dinomed3d.evaluation.planes import Plane
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.evaluation.text import drawn
from nnunetv2_dinomed3d.evaluation.volume import read_volume
from nnunetv2_dinomed3d.nnunet_files import Description

SHOWN = 3


def choose(table: Table) -> tuple[list[str], list[str]]:
    """The three worst cases (mean of Dice over models and labels) and the three most different ones.

    Most different is the largest mean over labels of the range of Dice between models; worst ones are not repeated.
    """
    some = ~np.isnan(table.values).all(axis=(0, 2))
    cases = np.array(table.cases)[some]
    values = table.values[:, some]
    worst = list(cases[np.argsort(np.nanmean(values, axis=(0, 2)), kind="stable")][:SHOWN])
    both = ~np.isnan(values).any(axis=0)  # (cases, labels)
    ranges = np.where(both, np.nan_to_num(values).max(axis=0) - np.nan_to_num(values).min(axis=0), 0).mean(axis=1)
    different = [case for case in cases[np.argsort(-ranges, kind="stable")] if case not in worst][:SHOWN]
    return [str(case) for case in worst], [str(case) for case in different]


def read_picture(path: Path, plane: Plane) -> np.ndarray:
    """The same slice of the image, (h, w).

    Raises:
        ValueError: it cannot be read, or has another shape.
    """
    image, _ = read_volume(path)
    if image.shape != plane.shape:
        raise ValueError(f"{path} has shape {image.shape}, the truth {plane.shape} (z, y, x): is it of that case?")
    return plane.cut(image)


def draw_case(title: str, picture: np.ndarray | None, note: str, plane: Plane, description: Description) -> Figure:
    """The slice with most voxels in which some prediction is wrong, cut to what is in it.

    Args:
        picture: the image there, (h, w); None draws none.
        note: over the image.
    """
    maps = plane.maps()
    behind = np.zeros(maps[0][1].shape) if picture is None else picture
    colours = value_colours(description)
    shades = ListedColormap(list(colours.values()))
    index = {value: i for i, value in enumerate(colours)}
    figure = Figure(figsize=(2.4 * (len(maps) + 1), 2.9), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1)
    axes[0].set_title(note, fontsize=8)
    for panel, (name, labels) in zip(axes, [("", None), *maps], strict=True):
        panel.imshow(behind, cmap="gray", aspect=plane.aspect)
        if labels is not None:
            coloured = np.vectorize(lambda value: index.get(int(value), -1), otypes=[int])(labels)
            panel.imshow(np.ma.masked_less(coloured, 0), cmap=shades, vmin=-0.5, vmax=len(colours) - 0.5, alpha=0.5,
                         aspect=plane.aspect, interpolation="nearest")  # fmt: skip
            panel.set_title(drawn(name, 30), fontsize=7)
        panel.set_axis_off()
    names = _names_of_values(description)
    handles = [Patch(color=shade, label=drawn(names[value], 30)) for value, shade in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=7)
    figure.suptitle(drawn(f"{title}, slice {plane.index} along {'zyx'[plane.axis]}", 100), fontsize=9)
    return figure


def _names_of_values(description: Description) -> dict[int, str]:
    """A label's name, or of a value that only regions hold, theirs."""
    names = {value: [n for n, group in description.labels.items() if value in group] for value in description.values}
    if description.ignore is not None:
        names[description.ignore] = ["ignore"]
    return {value: " + ".join(found) or str(value) for value, found in names.items()}
