"""The demo's picture: image, ground truth and prediction of a few slices."""

from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunetv2_dinomed3d.evaluation.figures import colour


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def draw(images: Path, truths: Path, predictions: Path, labels: dict[str, int], picture: Path) -> None:
    """Write a PNG with a row per case, at the slice with most of the last label, and a column per kind.

    Args:
        images, truths, predictions: folders of NIfTI files, nnU-Net's names.
        labels: names and values; each has the colour that it has in reports.
        picture: file to write.
    """
    cases = sorted(path.name for path in truths.glob("*.nii.gz"))
    figure = Figure(figsize=(7.5, 2.6 * len(cases) + 0.4), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    foreground = sorted((value, name) for name, value in labels.items() if value)
    shades = {name: colour(i) for i, (_, name) in enumerate(foreground)}
    colours = ListedColormap(list(shades.values()))
    for row, case in zip(axes, cases, strict=True):
        image = _read(images / case.replace(".nii.gz", "_0000.nii.gz"))
        truth, prediction = _read(truths / case), _read(predictions / case)
        z = int((truth == max(labels.values())).sum(axis=(1, 2)).argmax())
        for axis, overlay in zip(row, (None, truth, prediction), strict=True):
            axis.imshow(image[z], cmap="gray")
            if overlay is not None:
                mask = np.ma.masked_equal(overlay[z], 0)
                axis.imshow(mask, cmap=colours, vmin=1, vmax=max(labels.values()), alpha=0.5, interpolation="nearest")
            axis.set_axis_off()
        row[0].set_title(f"{case.removesuffix('.nii.gz')}, slice {z}", fontsize=9, loc="left")
    axes[0][1].set_title("ground truth", fontsize=9)
    axes[0][2].set_title("prediction", fontsize=9)
    handles = [Patch(color=shade, label=name) for name, shade in shades.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with matplotlib.rc_context({"savefig.dpi": 110}):
        figure.savefig(picture)
