"""Summaries of measurements, and paired comparisons with the first model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from scipy.stats import wilcoxon

from nnunetv2_dinomed3d.evaluation.dataset_labels import MEAN
from nnunetv2_dinomed3d.evaluation.measure import Measurement, Scores, State

SEED = 20260101
RESAMPLES = 10_000
NO_DIFFERENCE = 1e-9
"""Largest difference that counts as rounding."""


@dataclass(frozen=True)
class Metric:
    """A metric of the report.

    Attributes:
        key: its name in files.
        title: its name in the report, with its unit.
        value: gives its value of a structure's scores; NaN where it is not defined.
        better: 1 if more is better, -1 if less is; 0 if neither, then it is listed but not compared.
        digits: after the decimal point.
    """

    key: str
    title: str
    value: Callable[[Scores], float]
    better: int
    digits: int


METRICS = (
    Metric("dice", "Dice", lambda s: s.dice, 1, 3),
    Metric("hd95_mm", "HD95 (mm)", lambda s: s.hd95_mm, -1, 2),
    Metric("surface_dice", "Surface Dice", lambda s: s.surface_dice, 1, 3),
    Metric("volume_difference_ml", "Volume difference (ml)", lambda s: s.volume_difference_ml, 0, 3),
    Metric(
        "absolute_volume_difference_ml", "Absolute volume difference (ml)", lambda s: abs(s.volume_difference_ml), -1, 3
    ),
)
"""In the order of the report; the first one answers which model is better."""


@dataclass(frozen=True)
class Summary:
    """A model's values of one metric and label over the cases.

    Attributes:
        n: number of cases with a value.
        mean, median: None without cases.
        interval: 95% bootstrap interval of the mean; None with fewer than two cases.
    """

    metric: str
    label: str
    model: str
    n: int
    mean: float | None
    median: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """A model minus the first one, over the cases where both have a value.

    Attributes:
        n: number of such cases.
        difference: mean of the differences. A positive one is more, not necessarily better.
        interval: its 95% bootstrap interval.
        p: of Wilcoxon's signed-rank test, two-sided.
        p_holm: p corrected over all labels and models of this metric.
        wins, ties, losses: cases in which the model is better than, equal to or worse than the first one.
    """

    metric: str
    label: str
    model: str
    n: int
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    wins: int
    ties: int
    losses: int


def bootstrap_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95% percentile bootstrap interval of the mean of (n,) values, from a fixed seed; None with fewer than two."""
    if len(values) < 2:
        return None
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def wilcoxon_p(differences: np.ndarray) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test on (n,) differences; zeros are dropped, as Wilcoxon did."""
    differences = np.round(differences[np.abs(differences) > NO_DIFFERENCE], 9)  # equal ones tie in spite of rounding
    if not len(differences):
        return None
    return float(wilcoxon(differences).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction; None stays None and does not count."""
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i] or 0.0)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (p_values[i] or 0.0)))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True)
class Table:
    """The values of one metric; NaN where there is none.

    Attributes:
        values: (models, cases, labels).
    """

    metric: Metric
    models: list[str]
    cases: list[str]
    labels: list[str]
    values: np.ndarray

    @property
    def rows(self) -> list[str]:
        """The labels, and their mean if there are several; the last row sums up the table."""
        return [*self.labels, MEAN] if len(self.labels) > 1 else self.labels

    def row(self, values: np.ndarray, label: str) -> np.ndarray:
        """One row of (cases, labels) values: a label, or each case's mean over its labels; (n,), without NaN."""
        if label == MEAN:
            values = values[~np.isnan(values).all(axis=1)]
            return np.nanmean(values, axis=1)
        column = values[:, self.labels.index(label)]
        return column[~np.isnan(column)]


def tabulate(measurements: list[Measurement], metric: Metric) -> Table:
    """The measurements of a metric; models, cases and labels in their order of appearance."""
    models, cases, labels = (
        list(dict.fromkeys(getattr(m, field) for m in measurements)) for field in ("model", "case", "label")
    )
    indices = [{name: i for i, name in enumerate(names)} for names in (models, cases, labels)]
    values = np.full((len(models), len(cases), len(labels)), np.nan)
    for m in measurements:
        values[indices[0][m.model], indices[1][m.case], indices[2][m.label]] = metric.value(m.scores)
    return Table(metric, models, cases, labels, values)


def summarise(table: Table) -> list[Summary]:
    """A summary of every row and model."""
    summaries = []
    for label in table.rows:
        for i, model in enumerate(table.models):
            values = table.row(table.values[i], label)
            mean, median = (float(values.mean()), float(np.median(values))) if len(values) else (None, None)
            interval = bootstrap_interval(values)
            summaries.append(Summary(table.metric.key, label, model, len(values), mean, median, interval))
    return summaries


def compare_with_first(table: Table) -> list[Comparison]:
    """A comparison of every other model with the first one, row by row.

    The mean of labels is taken over the labels in which both models have a value.
    """
    found = []
    for label in table.rows:
        for i, model in enumerate(table.models[1:], 1):
            differences = table.row(table.values[i] - table.values[0], label)
            gains = differences * table.metric.better
            wins, losses = int((gains > NO_DIFFERENCE).sum()), int((gains < -NO_DIFFERENCE).sum())
            comparison = Comparison(
                metric=table.metric.key,
                label=label,
                model=model,
                n=len(differences),
                difference=float(differences.mean()) if len(differences) else None,
                interval=bootstrap_interval(differences),
                p=wilcoxon_p(differences),
                p_holm=None,
                wins=wins,
                ties=len(differences) - wins - losses,
                losses=losses,
            )
            found.append(comparison)
    corrected = holm([c.p for c in found])
    return [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]


def count_states(measurements: list[Measurement]) -> dict[tuple[str, str], dict[str, int]]:
    """The number of measurements in each state, by (label, model)."""
    labels, models = (dict.fromkeys(getattr(m, field) for m in measurements) for field in ("label", "model"))
    counts = {(label, model): dict.fromkeys(get_args(State), 0) for label in labels for model in models}
    for m in measurements:
        counts[m.label, m.model][m.scores.state] += 1
    return counts
