"""The report's plots: one label has one colour, and what is drawn is what was measured."""

import numpy as np
import pytest
from matplotlib.lines import Line2D

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.figures import (
    colours_of_labels,
    colours_of_values,
    draw_boxes,
    draw_dice_over_volume,
    draw_differences,
    model_colour,
)
from nnunetv2_dinomed3d.evaluation.statistics import METRICS, tabulate
from nnunetv2_dinomed3d.pictures import label_colour
from nnunetv2_dinomed3d.trainer_names import TABLES
from tests.test_evaluation_statistics import measurement

pytestmark = pytest.mark.own


def points(line: Line2D) -> np.ndarray:
    """x and y of a line, (2, n)."""
    return np.array([np.asarray(values, float) for values in line.get_data()])


def test_a_label_has_one_colour_and_no_model_has_it() -> None:
    labels = {"whole": (1, 2, 4), "late": (4,), "core": (2, 4), "too": (1, 4)}
    described = DatasetLabels(labels, frozenset({0, 1, 2, 4}), 5, ".nii.gz")
    shades = [label_colour(i) for i in range(5)]
    assert colours_of_values(described) == dict(zip((1, 2, 4, 5), shades, strict=False)), "as look has them"
    found = {"too": shades[0], "core": shades[1], "late": shades[2], "whole": shades[4]}
    assert colours_of_labels(described) == found, "of a region, that of the value that shows it"
    assert not {label_colour(i) for i in range(20)} & {model_colour(i) for i in range(8)}


def test_differences_are_to_the_first_model() -> None:
    measurements = [measurement(i, m, "a", v) for m, v in (("first", 0.5), ("second", 0.8)) for i in range(3)]
    (axis,) = draw_differences(tabulate(measurements, METRICS[0]), {"a": label_colour(0)}).axes
    assert axis.get_title() == "second\nminus first"
    np.testing.assert_allclose(points(axis.get_lines()[0]), [[0.65] * 3, [0.3] * 3])


def test_a_structure_that_the_reference_lacks_has_no_volume_to_stand_over() -> None:
    there, absent = measurement(0, "m", "a", 0.9), measurement(1, "m", "a", 0.0, "false positive", reference_ml=0.0)
    (axis,) = draw_dice_over_volume([there, absent]).axes
    assert points(axis.get_lines()[0]).tolist() == [[1.0], [0.9]]


def test_a_case_is_one_line_through_the_boxes() -> None:
    measurements = [measurement(i, m, "a", v + i / 10) for m, v in (("first", 0.5), ("second", 0.6)) for i in range(3)]
    (axis,) = draw_boxes(tabulate(measurements, METRICS[0])).axes
    cases = [points(line)[1].tolist() for line in axis.get_lines() if line.get_color() == "0.75"]
    np.testing.assert_allclose(cases, [[0.5, 0.6], [0.6, 0.7], [0.7, 0.8]])


def test_the_models_of_table_1_have_a_colour_each() -> None:
    colours = [model_colour(index) for index in range(len(TABLES["TABLE1"]))]
    assert len(set(colours)) == len(colours) == 10
