"""Pictures of single cases: image, truth and every prediction, in one slice."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2_dinomed3d.evaluation.dataset import Description
from nnunetv2_dinomed3d.evaluation.figures import colour
from nnunetv2_dinomed3d.evaluation.label_map import read_label_map
from nnunetv2_dinomed3d.evaluation.statistics import Table

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


def draw_case(
    title: str, image: Path | None, truth: Path, predictions: dict[str, Path], description: Description
) -> Figure:
    """The slice with most voxels in which some prediction is wrong, cut to what is in it.

    Args:
        image: its first channel; None draws none.
    """
    labels, geometry = read_label_map(truth)
    spacing = geometry.spacing_zyx
    axis = int(np.argmax(spacing))  # slices as they were acquired
    maps = {"truth": labels, **{name: read_label_map(path)[0] for name, path in predictions.items()}}
    plane = _most_wrong_slice(list(maps.values()), axis)
    maps = {name: np.take(array, plane, axis) for name, array in maps.items()}
    picture = np.take(_read_image(image, labels.shape), plane, axis)
    box = _box(np.any([array != 0 for array in maps.values()], axis=0))
    picture, maps = picture[box], {name: array[box] for name, array in maps.items()}
    dy, dx = (s for i, s in enumerate(spacing) if i != axis)

    values = sorted(description.values | ({description.ignore} if description.ignore is not None else set()))
    index = {value: i for i, value in enumerate(values)}
    colours = ListedColormap([colour(i) for i in range(len(values))])
    figure = Figure(figsize=(2.4 * (len(maps) + 1), 2.9), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1)
    axes[0].set_title("image" if image else "image not found", fontsize=8)
    for panel, (name, array) in zip(axes, [("", None), *maps.items()], strict=True):
        panel.imshow(picture, cmap="gray", aspect=dy / dx)
        if array is not None:
            coloured = np.vectorize(index.get, otypes=[int])(array)
            overlay = np.ma.masked_where(array == 0, coloured)
            panel.imshow(overlay, cmap=colours, vmin=-0.5, vmax=len(values) - 0.5, alpha=0.5, aspect=dy / dx,
                         interpolation="nearest")  # fmt: skip
            panel.set_title(name, fontsize=7)
        panel.set_axis_off()
    names = _names_of_values(description)
    handles = [Patch(color=colours(index[value]), label=names[value]) for value in values if value]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=7)
    figure.suptitle(f"{title}, slice {plane} along {'zyx'[axis]}", fontsize=9)
    return figure


def _names_of_values(description: Description) -> dict[int, str]:
    """A label's name, or of a value that only regions hold, theirs."""
    names = {value: [n for n, group in description.labels.items() if value in group] for value in description.values}
    if description.ignore is not None:
        names[description.ignore] = ["ignore"]
    return {value: " + ".join(found) or str(value) for value, found in names.items()}


def _read_image(path: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    """The image, (d, h, w); black if there is none."""
    if path is None:
        return np.zeros(shape, np.uint8)
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if array.shape != shape:
        raise ValueError(f"{path} has shape {array.shape}, the truth {shape} (z, y, x): is it the image of that case?")
    return array


def _most_wrong_slice(maps: list[np.ndarray], axis: int) -> int:
    """Along `axis`: where most voxels differ from the first map in some other one; if none, where it holds most."""
    others = tuple({0, 1, 2} - {axis})
    wrong = np.zeros(maps[0].shape, bool)
    for array in maps[1:]:
        wrong |= array != maps[0]
    counts = wrong.sum(axis=others)
    return int((counts if counts.any() else (maps[0] != 0).sum(axis=others)).argmax())


def _box(there: np.ndarray) -> tuple[slice, slice]:
    """What is there in a slice, (h, w), with half as much again on every side, and at least a quarter of the slice."""
    slices = []
    for axis, size in enumerate(there.shape):
        line = np.flatnonzero(there.any(axis=1 - axis))
        first, last = (int(line[0]), int(line[-1]) + 1) if line.size else (0, size)
        margin = max((last - first) // 2, (size // 4 - (last - first)) // 2 + 1)
        slices.append(slice(max(0, first - margin), min(size, last + margin)))
    return slices[0], slices[1]
