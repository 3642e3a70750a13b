"""Statistics: SciPy's numbers on fixed arrays, a seeded bootstrap, and who is counted."""

import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_dinomed3d.evaluation.dataset_labels import MEAN
from nnunetv2_dinomed3d.evaluation.measure import Measurement, Scores, State
from nnunetv2_dinomed3d.evaluation.statistics import (
    METRICS,
    bootstrap_interval,
    compare_with_first,
    count_states,
    holm,
    summarise,
    tabulate,
    wilcoxon_p,
)

pytestmark = pytest.mark.own

DICE, HD95, _, _, ABSOLUTE_VOLUME = METRICS
FIRST = [0.80, 0.71, 0.92, 0.64, 0.88, 0.79, 0.95, 0.60]
SECOND = [0.83, 0.70, 0.94, 0.70, 0.88, 0.86, 0.96, 0.69]


def measurement(
    case: int, model: str, label: str, value: float, state: State = "measured", reference_ml: float = 1.0
) -> Measurement:
    """Dice `value`, HD95 10 times as much, volumes 1 ml and `value` ml."""
    return Measurement(f"case_{case}", model, label, Scores(state, value, 10 * value, value, reference_ml, value))


def pairs(first: list[float], second: list[float], label: str = "a") -> list[Measurement]:
    values = {"first": first, "second": second}
    return [measurement(i, model, label, v) for model, column in values.items() for i, v in enumerate(column)]


def test_wilcoxon_is_scipys() -> None:
    difference = np.subtract(SECOND, FIRST)
    nonzero = np.round(difference[np.abs(difference) > 1e-9], 9)
    assert wilcoxon_p(difference) == pytest.approx(stats.wilcoxon(nonzero).pvalue)
    assert wilcoxon_p(np.arange(1, 7) / 10) == pytest.approx(2 / 2**6)  # all of six positive: exact, on paper


def test_equal_models_have_no_p() -> None:
    assert wilcoxon_p(np.full(8, 1e-16)) is None


def test_differences_that_rounding_makes_unequal_tie() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 are one rank, as on paper."""
    rounded, exact = np.array([0.3 - 0.2, 0.2 - 0.1, -0.05]), np.array([2, 2, -1])
    assert wilcoxon_p(rounded) == pytest.approx(stats.wilcoxon(exact).pvalue)


def test_bootstrap_is_seeded_and_covers_what_scipy_covers() -> None:
    values = np.array(FIRST)
    interval = bootstrap_interval(values)
    assert interval is not None
    assert interval == bootstrap_interval(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000).confidence_interval
    assert interval == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert bootstrap_interval(values[:1]) is None


def test_holm_on_paper() -> None:
    """0.01 * 3, 0.02 * 2, 0.04 * 1 but no less than the one before; what has no p is not counted."""
    assert holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1])
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])


def test_comparison_of_one_label() -> None:
    (comparison,) = compare_with_first(tabulate(pairs(FIRST, SECOND), DICE))
    assert comparison.difference == pytest.approx(np.mean(SECOND) - np.mean(FIRST))
    assert (comparison.wins, comparison.ties, comparison.losses) == (6, 1, 1)
    assert comparison.p == comparison.p_holm == wilcoxon_p(np.subtract(SECOND, FIRST))


def test_less_is_better_for_distances_and_absolute_volumes() -> None:
    measurements = pairs(FIRST, SECOND)  # every volume is under the reference's 1 ml: nearer to 1 is better
    (distance,) = compare_with_first(tabulate(measurements, HD95))
    assert (distance.wins, distance.ties, distance.losses) == (1, 1, 6)
    (volume,) = compare_with_first(tabulate(measurements, ABSOLUTE_VOLUME))
    assert (volume.wins, volume.ties, volume.losses) == (6, 1, 1)
    assert volume.difference == pytest.approx(np.mean(FIRST) - np.mean(SECOND))


def test_holm_is_over_labels_their_mean_and_models() -> None:
    third = [v - 0.05 for v in FIRST]
    measurements = pairs(FIRST, SECOND, "a") + pairs(SECOND, FIRST, "b")
    measurements += [measurement(i, "third", label, v) for label in "ab" for i, v in enumerate(third)]
    comparisons = compare_with_first(tabulate(measurements, DICE))
    assert [(c.label, c.model) for c in comparisons] == [
        (label, m) for label in ("a", "b", MEAN) for m in ("second", "third")
    ]
    assert [c.p_holm for c in comparisons] == pytest.approx(holm([c.p for c in comparisons]))
    assert min(c.p_holm for c in comparisons if c.p_holm) == pytest.approx(5 * min(c.p for c in comparisons if c.p))


def test_a_case_without_a_value_leaves_the_pairs_but_not_the_other_models_mean() -> None:
    measurements = pairs([0.5, 0.7], [0.6, 0.0])
    measurements[1] = measurement(1, "first", "a", math.nan, "both empty")
    measurements[3] = measurement(1, "second", "a", 0.0, "false positive")
    table = tabulate(measurements, DICE)
    first, second = summarise(table)
    assert (first.n, first.mean, second.n, second.mean) == (1, 0.5, 2, pytest.approx(0.3))
    (comparison,) = compare_with_first(table)
    assert (comparison.n, comparison.difference) == (1, pytest.approx(0.1))
    counts = count_states(measurements)
    assert counts["a", "first"] == {"measured": 1, "both empty": 1, "false negative": 0, "false positive": 0}
    assert counts["a", "second"]["false positive"] == 1


def test_mean_of_labels_is_each_cases_own() -> None:
    """Case 0 has both labels, case 1 only one: (0.4 + 0.8) / 2 and 0.9, not the mean of three values."""
    measurements = [measurement(0, "m", "a", 0.4), measurement(0, "m", "b", 0.8), measurement(1, "m", "a", 0.9)]
    measurements.append(measurement(1, "m", "b", math.nan, "both empty"))
    mean = summarise(tabulate(measurements, DICE))[-1]
    assert (mean.label, mean.n, mean.mean) == (MEAN, 2, pytest.approx(0.75))


def test_a_label_that_is_nowhere_is_blank() -> None:
    measurements = [measurement(i, "m", "a", math.nan, "both empty") for i in range(3)]
    (summary,) = summarise(tabulate(measurements, DICE))
    assert (summary.n, summary.mean, summary.median, summary.interval) == (0, None, None, None)
