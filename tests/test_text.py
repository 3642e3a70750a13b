"""Text from outside, made safe to show."""

import pytest

from nnunetv2_dinomed3d.text import join_first, plot_text, printable, shortened

pytestmark = pytest.mark.own


def test_printable_is_one_line_without_control_characters() -> None:
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert printable(Exception("\u00fc")) == "\u00fc"


def test_the_middle_of_a_long_text_is_left_out() -> None:
    assert shortened("abcdefghijk", 11) == "abcdefghijk"
    assert shortened("abcdefghijkl", 11) == "abcd...ijkl"


def test_names_in_figures_are_no_tex_and_not_too_long() -> None:
    assert plot_text("$\\frac{a$") == "\\$\\frac{a\\$"
    assert plot_text("_hidden") == " _hidden"
    assert len(plot_text("x" * 500)) <= 60


def test_the_first_names_and_how_many_more() -> None:
    assert join_first(["c", "a", "b"]) == "a, b, c"
    assert join_first(str(i) for i in range(9, 0, -1)) == "1, 2, 3, 4, 5 and 4 more"
    assert join_first(["b\n", "a"], 1) == "a and 1 more"
    assert join_first([]) == ""
