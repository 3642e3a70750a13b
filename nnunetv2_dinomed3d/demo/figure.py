"""The demo's picture: image, reference and prediction of a slice of each held-out case."""

from pathlib import Path

import matplotlib
import numpy as np
import SimpleITK as sitk
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.pictures import legend, overlay, value_colours


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def draw(images: Path, references: Path, predictions: Path, labels: dict[str, int], picture: Path) -> None:
    """Write a PNG with a row for each case: the slice with most voxels of the largest label.

    Args:
        images, references, predictions: folders of NIfTI files, named as nnU-Net names them.
        labels: the value of each label, by its name.
        picture: file to write.
    """
    cases = sorted(path.name for path in references.glob("*.nii.gz"))
    figure = Figure(figsize=(7.5, 2.6 * len(cases) + 0.4), layout="constrained")
    axes = figure.subplots(len(cases), 3, squeeze=False)
    colours = value_colours(labels.values())
    for row, case in zip(axes, cases, strict=True):
        image = _read(images / case.replace(".nii.gz", "_0000.nii.gz"))
        reference, prediction = _read(references / case), _read(predictions / case)
        z = int((reference == max(labels.values())).sum(axis=(1, 2)).argmax())
        for axis, shown in zip(row, (np.zeros_like(reference), reference, prediction), strict=True):
            axis.imshow(overlay(image[z], shown[z], colours), interpolation="nearest")
            axis.set_axis_off()
        row[0].set_title(f"{case.removesuffix('.nii.gz')}, slice {z}", fontsize=9, loc="left")
    axes[0][1].set_title("reference", fontsize=9)
    axes[0][2].set_title("prediction", fontsize=9)
    legend(figure, {value: name for name, value in labels.items()}, colours, fontsize=9)
    with matplotlib.rc_context({"savefig.dpi": 110}):
        figure.savefig(picture)
