"""The answer in words: which model is better, by how much, and what the cases do not show."""

import math
from itertools import chain

import pytest

from nnunetv2_dinomed3d.evaluation.answers import answer_note, answer_sentences
from nnunetv2_dinomed3d.evaluation.measure import Measurement, Scores
from nnunetv2_dinomed3d.evaluation.statistics import METRICS, compare_with_first, summarise, tabulate

pytestmark = pytest.mark.own

A = [0.80, 0.71, 0.92, 0.64, 0.88, 0.79, 0.95, 0.60]


def dices(model: str, values: list[float], label: str = "organ") -> list[Measurement]:
    return [
        Measurement(f"case_{i}", model, label, Scores("measured", value, 1.0, value, 1.0, 1.0))
        for i, value in enumerate(values)
    ]


def answers(*measurements: list[Measurement]) -> list[str]:
    table = tabulate(list(chain(*measurements)), METRICS[0])
    return answer_sentences(table, summarise(table), compare_with_first(table))


def test_one_model_is_described_without_a_comparison() -> None:
    assert answers(dices("A", A)) == ["A: Dice 0.786 [0.701, 0.869] on 8 cases."]
    assert answers(dices("A", A[:1])) == ["A: Dice 0.800 on 1 case."]


def test_a_difference_says_its_direction_size_and_cases() -> None:
    worse = [value - 0.04 - 0.01 * (i % 2) for i, value in enumerate(A)]
    _, sentence = answers(dices("A", A), dices("B", worse))
    assert sentence == "B is worse than A by 0.045 Dice [0.041, 0.049] on 8 cases, worse on 8."
    _, sentence = answers(dices("B", worse), dices("A", A))
    assert sentence == "A is better than B by 0.045 Dice [0.041, 0.049] on 8 cases, better on 8."
    mixed = [*worse[:6], A[6], A[7] + 0.02]
    _, sentence = answers(dices("A", A), dices("B", mixed))
    assert sentence.startswith("B is worse than A by 0.031 Dice [")
    assert sentence.endswith("on 8 cases, worse on 6, equal on 1, better on 1.")


def test_an_interval_that_holds_zero_shows_no_difference_and_no_equality() -> None:
    other = [value + 0.05 * (-1) ** i for i, value in enumerate(A[:7])] + [A[7] + 0.02]
    sentences = answers(dices("A", A), dices("B", other))
    assert sentences[1].startswith("No clear difference between B and A: +0.009 Dice [-0.")
    assert sentences[1].endswith("] on 8 cases, better on 5, worse on 3.")
    table = tabulate(dices("A", A), METRICS[0])
    assert "does not mean equal" in answer_note(table, sentences)
    assert "does not mean equal" not in answer_note(table, sentences[:1])


def test_equal_models_are_said_to_be_equal() -> None:
    assert answers(dices("A", A), dices("B", A))[1] == "B and A have the same Dice on all 8 cases."


def test_a_tiny_difference_is_not_printed_as_zero() -> None:
    _, sentence = answers(dices("A", A), dices("B", [value + 0.0001 for value in A]))
    assert sentence == "B is better than A by less than 0.001 Dice [0.000, 0.000] on 8 cases, better on 8."


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, "B is worse than A by 0.100 Dice on 1 case, worse on 1; so few cases allow no conclusion."),
        (
            5,
            "B is worse than A by 0.100 Dice [0.100, 0.100] on 5 cases, worse on 5; so few cases allow no conclusion.",
        ),
        (6, "B is worse than A by 0.100 Dice [0.100, 0.100] on 6 cases, worse on 6."),
    ],
)
def test_few_cases_allow_no_conclusion(count: int, expected: str) -> None:
    """An interval over two cases can exclude 0 by chance; no test of so few pairs can be significant."""
    assert answers(dices("A", A[:count]), dices("B", [value - 0.1 for value in A[:count]]))[1] == expected


def test_without_a_common_value_nothing_is_compared() -> None:
    first, second = answers(dices("A", [math.nan, 0.5]), dices("B", [0.5, math.nan]))
    assert first == "A: Dice 0.500 on 1 case."
    assert second == "B and A cannot be compared: there is no case in which both have a Dice."
    (nothing,) = answers(dices("A", [math.nan]))
    assert nothing == "A: no Dice, because reference and prediction are empty in every case."


def test_several_labels_are_answered_by_their_mean() -> None:
    sentences = answers(dices("A", [0.4] * 8), dices("A", [0.8] * 8, "lesion"))
    assert sentences == ["A: Dice 0.600 [0.600, 0.600] on 8 cases."]
    table = tabulate(dices("A", [0.4]) + dices("A", [0.8], "lesion"), METRICS[0])
    assert answer_note(table, sentences).startswith("Dice here is the mean over the labels. Brackets hold a 95%")
    assert answer_note(tabulate(dices("A", [0.4]), METRICS[0]), []).startswith("Dice here is that of the label organ.")


def test_names_cannot_change_a_terminal() -> None:
    (sentence, other) = answers(dices("A\x1b[31m", A), dices("B\n", [value - 0.1 for value in A]))
    assert sentence.startswith("A\\x1b[31m: Dice")
    assert other.startswith("B\\n is worse than A\\x1b[31m by")
