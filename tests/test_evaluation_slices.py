"""Pictures of single cases: which are chosen, which slice is shown, and what is drawn over the image."""

import numpy as np
import pytest

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.planes import PlaneChooser
from nnunetv2_dinomed3d.evaluation.slices import draw_case, select_cases
from nnunetv2_dinomed3d.evaluation.statistics import METRICS, tabulate
from tests.test_evaluation_statistics import measurement

pytestmark = pytest.mark.own

LABELS = DatasetLabels({"organ": (1,), "$x$": (2,)}, frozenset({0, 1, 2}), None, ".nii.gz")


def test_worst_and_most_different_cases_are_chosen() -> None:
    """Cases 0 to 6: the worst are 6, 5, 4; of the others 1 differs most, then 3, 0."""
    first = [0.90, 0.90, 0.90, 0.80, 0.3, 0.2, 0.1]
    second = [0.85, 0.70, 0.90, 0.90, 0.3, 0.2, 0.1]
    values = {"first": first, "second": second}
    measurements = [measurement(i, m, "a", v) for m, column in values.items() for i, v in enumerate(column)]
    worst, different = select_cases(tabulate(measurements, METRICS[0]))
    assert worst == ["case_6", "case_5", "case_4"]
    assert different == ["case_1", "case_3", "case_0"]


def volume() -> np.ndarray:
    labels = np.zeros((6, 40, 40), np.uint8)
    labels[1:5, 10:20, 10:20] = 1
    return labels


def test_the_slice_with_most_wrong_voxels_is_shown() -> None:
    reference = volume()
    prediction = reference.copy()
    prediction[4, 10:18, 10:20] = 0
    chooser = PlaneChooser(reference, (3.0, 1.0, 1.0))
    chooser.add("m", reference, prediction)
    plane = chooser.plane()
    assert (plane.axis, plane.index, plane.aspect) == (0, 4, 1.0)
    (name, first), (model, second) = plane.maps()
    assert (name, model) == ("reference", "m")
    assert (np.count_nonzero(first), np.count_nonzero(second)) == (100, 20)
    np.testing.assert_array_equal(plane.cut(reference), first)


def test_without_an_error_the_slice_with_most_of_the_reference_is_shown() -> None:
    reference = volume()
    reference[3, 20, 10:20] = 1
    chooser = PlaneChooser(reference, (3.0, 1.0, 1.0))
    chooser.add("m", reference, reference)
    assert chooser.plane().index == 3


def test_a_case_is_drawn_with_a_panel_for_each_label_map() -> None:
    """Also without its image. A label that is a name in TeX is text."""
    chooser = PlaneChooser(volume(), (1.0, 1.0, 2.0))
    chooser.add("m", volume(), volume())
    plane = chooser.plane()
    for image in (None, np.zeros(plane.maps()[0][1].shape)):
        figure = draw_case("worst 1: c", plane, LABELS, image=image, note="image")
        assert [axis.get_title() for axis in figure.axes] == ["image", "reference", "m"]
        grey, coloured = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:2])
        assert (grey[..., 0] == grey[..., 1]).all()
        assert (coloured[..., 0] != coloured[..., 1]).any()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["organ", "\\$x\\$"]
