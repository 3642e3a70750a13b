"""Pictures of single cases: image, reference and every prediction in one slice."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.figures import colours_of_values
from nnunetv2_dinomed3d.evaluation.planes import Plane
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.evaluation.volume import read_volume
from nnunetv2_dinomed3d.pictures import legend, overlay
from nnunetv2_dinomed3d.text import plot_text

SHOWN = 3
"""Cases of each kind in the report."""


def select_cases(table: Table) -> tuple[list[str], list[str]]:
    """The three worst cases, and of the others the three in which the models differ most.

    The worst ones have the smallest mean of Dice over models and labels. The models differ most where the range of
    their Dice, averaged over labels, is largest.
    """
    some = ~np.isnan(table.values).all(axis=(0, 2))
    cases = np.array(table.cases)[some]
    values = table.values[:, some]
    worst = list(cases[np.argsort(np.nanmean(values, axis=(0, 2)), kind="stable")][:SHOWN])
    both = ~np.isnan(values).any(axis=0)  # (cases, labels)
    ranges = np.where(both, np.nan_to_num(values).max(axis=0) - np.nan_to_num(values).min(axis=0), 0).mean(axis=1)
    different = [case for case in cases[np.argsort(-ranges, kind="stable")] if case not in worst][:SHOWN]
    return [str(case) for case in worst], [str(case) for case in different]


def read_slice(path: Path, plane: Plane) -> np.ndarray:
    """The plane of a raw image, (h, w).

    Raises:
        ValueError: the image cannot be read, or has another shape than the label maps.
    """
    image, _ = read_volume(path)
    if image.shape != plane.shape:
        raise ValueError(
            f"{path} has shape {image.shape}, the reference {plane.shape} (z, y, x): does it belong to this case?"
        )
    return plane.cut(image)


def draw_case(title: str, plane: Plane, labels: DatasetLabels, *, image: np.ndarray | None, note: str) -> Figure:
    """A panel with the image, and one for each label map over it.

    Args:
        image: the plane of the image, (h, w); None draws the label maps over black.
        note: title of the image's panel.
    """
    maps = plane.maps()
    behind = np.zeros(maps[0][1].shape) if image is None else image
    colours = colours_of_values(labels)
    figure = Figure(figsize=(2.4 * (len(maps) + 1), 2.9), layout="constrained")
    panels = figure.subplots(1, len(maps) + 1)
    for panel, (name, label_map) in zip(panels, [(note, None), *maps], strict=True):
        shown = overlay(behind, label_map, colours) if label_map is not None else overlay(behind, behind, {})
        panel.imshow(shown, aspect=plane.aspect, interpolation="nearest")
        panel.set_title(plot_text(name, 30), fontsize=8 if label_map is None else 7)
        panel.set_axis_off()
    legend(figure, _names_of_values(labels), colours)
    figure.suptitle(plot_text(f"{title}, slice {plane.index} along {'zyx'[plane.axis]}", 100), fontsize=9)
    return figure


def _names_of_values(labels: DatasetLabels) -> dict[int, str]:
    """The label of every value; a value that only regions hold has their names."""
    names = {value: [n for n, group in labels.labels.items() if value in group] for value in labels.values}
    if labels.ignore is not None:
        names[labels.ignore] = ["ignore"]
    return {value: " + ".join(found) or str(value) for value, found in names.items()}
