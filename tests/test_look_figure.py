"""The figure: names that are no markup, labels over the image in the colours of reports."""

from io import BytesIO

import numpy as np
import pytest

from nnunetv2_dinomed3d.look.figure import Column, draw, label_names
from nnunetv2_dinomed3d.pictures import label_colour, overlay

pytestmark = pytest.mark.own


def test_names_are_not_markup() -> None:
    """Two dollars are TeX to Matplotlib, which refuses what is no formula, after minutes of prediction."""
    image = np.zeros((4, 4))
    columns = [Column("image", [image], "grey"), Column("reference", [image], "labels")]
    names = {1: "_hidden", 2: "$a$ b$"}
    figure = draw("case $x$_: model", "a $b^ file", [0], columns, names=names, aspect=1.0)
    with BytesIO() as file:
        figure.savefig(file, format="png")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["_hidden", r"\$a\$ b\$"]


def test_labels_lie_over_the_image_in_the_colours_of_reports() -> None:
    image, labels = np.arange(16.0).reshape(4, 4), np.zeros((4, 4), int)
    labels[1, 1], labels[2, 2] = 1, 7
    columns = [Column("image", [image], "grey"), Column("reference", [labels], "labels")]
    figure = draw("", "", [0], columns, names={1: "organ", 7: "lesion"}, aspect=1.0)
    shown = np.asarray(figure.axes[1].get_images()[0].get_array())
    np.testing.assert_allclose(shown, overlay(image, labels, {1: label_colour(0), 7: label_colour(1)}))


def test_names_of_regions() -> None:
    assert label_names({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}) == {
        1: "whole",
        2: "whole + core",
        3: "ignore",
    }
