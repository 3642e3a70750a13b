"""Label maps in pictures: one label has one colour everywhere, and what is not a label shows the image."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunetv2_dinomed3d.pictures import OPACITY, label_colour, legend, overlay, value_colours

pytestmark = pytest.mark.own


def test_twenty_labels_have_twenty_colours() -> None:
    """Thirteen organs must not share colours."""
    assert len({label_colour(i) for i in range(20)}) == 20
    assert label_colour(20) == label_colour(0)
    assert all(len(label_colour(i)) == 3 and 0 <= min(label_colour(i)) <= max(label_colour(i)) <= 1 for i in range(20))


def test_colours_follow_the_order_of_values() -> None:
    """The order in which a data set names its labels changes no colour; the background has none."""
    colours = value_colours([4, 0, 1, 2, 1])
    assert colours == {1: label_colour(0), 2: label_colour(1), 4: label_colour(2)}


def test_overlay_is_grey_where_no_label_is() -> None:
    image = np.array([[-100, 0], [100, 300]], np.int16)
    labels = np.array([[0, 1], [2, 9]])
    shown = overlay(image, labels, value_colours([1, 2]))
    assert shown.shape == (2, 2, 3)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[1, 1].tolist() == [1, 1, 1], "9 has no colour"
    for place, grey, index in (((0, 1), 0.25, 0), ((1, 0), 0.5, 1)):
        expected = (1 - OPACITY) * grey + OPACITY * np.array(label_colour(index))
        assert shown[place] == pytest.approx(expected)


@pytest.mark.parametrize("image", [np.full((2, 3), 7.0), np.full((2, 3), np.nan), np.zeros((2, 3), np.uint8)])
def test_overlay_of_an_image_without_contrast_is_black(image: np.ndarray) -> None:
    """A constant or damaged slice divides by no zero."""
    shown = overlay(image, np.zeros((2, 3), int), {1: (1.0, 0.0, 0.0)})
    assert not shown.any()


def test_overlay_shows_an_image_with_a_damaged_voxel() -> None:
    shown = overlay(np.array([[np.nan, 0.0, np.inf, 2.0]]), np.zeros((1, 4), int), {})
    assert shown[0, :, 0].tolist() == [0, 0, 0, 1]


def test_legend_names_every_colour() -> None:
    """A name is text: no TeX, and an underscore does not hide it."""
    figure = Figure(layout="constrained")
    figure.subplots()
    colours = value_colours([1, 2])
    legend(figure, {1: "_hidden", 2: "$x$"}, colours)
    (found,) = figure.legends
    assert [text.get_text() for text in found.get_texts()] == [" _hidden", r"\$x\$"]
    assert [patch.get_facecolor()[:3] for patch in found.get_patches()] == list(colours.values())


def test_an_empty_legend_draws_nothing() -> None:
    figure = Figure(layout="constrained")
    legend(figure.subplots(), {}, {})
    figure.canvas.draw()


def test_import_is_quick() -> None:
    """Commands import this module before they know whether they draw."""
    code = "import sys, nnunetv2_dinomed3d.pictures; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
