"""The answer of a comparison in words: one sentence per model, for the top of the report and for the console."""

from nnunetv2_dinomed3d.evaluation.dataset_labels import MEAN
from nnunetv2_dinomed3d.evaluation.statistics import Comparison, Metric, Summary, Table
from nnunetv2_dinomed3d.text import printable

FEW_CASES = 6
"""With fewer cases Wilcoxon's test cannot reach p < 0.05, and a bootstrap interval is too narrow."""


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 case" or "20 cases"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def formatted(value: float | None, digits: int, sign: str = "") -> str:
    """A number with its digits after the decimal point; empty for None."""
    return "" if value is None else f"{value:{sign}.{digits}f}"


def interval_text(interval: tuple[float, float] | None, digits: int, sign: str = "") -> str:
    """An interval in brackets; empty for None."""
    if interval is None:
        return ""
    return f"[{formatted(interval[0], digits, sign)}, {formatted(interval[1], digits, sign)}]"


def answer_sentences(table: Table, summaries: list[Summary], comparisons: list[Comparison]) -> list[str]:
    """One sentence per model from a table's last row: the first model's mean, then each other model's difference.

    Args:
        table: of the metric that answers; its last row sums up the labels.
        summaries, comparisons: with those of that table among them.
    """
    metric, row = table.metric, table.rows[-1]
    first = next(s for s in summaries if (s.metric, s.label, s.model) == (metric.key, row, table.models[0]))
    others = [c for c in comparisons if (c.metric, c.label) == (metric.key, row)]
    return [_of_one(first, metric), *(_of_two(c, first.model, metric) for c in others)]


def answer_note(table: Table, sentences: list[str]) -> str:
    """A note on reading the sentences. It names the label that they are about, if there is only one."""
    of = "the mean over the labels" if table.rows[-1] == MEAN else f"that of the label {table.labels[0]}"
    note = (
        f"{table.metric.title} here is {of}. Brackets hold a 95% interval: it shows how much the choice of cases "
        "matters, not how much another training would differ."
    )
    if any(sentence.startswith("No clear difference between ") for sentence in sentences[1:]):
        note += " No clear difference does not mean equal: every difference in the interval fits these cases."
    return note


def _of_one(s: Summary, metric: Metric) -> str:
    name = printable(s.model)
    if s.mean is None:
        return f"{name}: no {metric.title}, because reference and prediction are empty in every case."
    values = filter(None, [formatted(s.mean, metric.digits), interval_text(s.interval, metric.digits)])
    return f"{name}: {metric.title} {' '.join(values)} on {counted(s.n, 'case')}."


def _of_two(c: Comparison, first: str, metric: Metric) -> str:
    name, other, what = printable(c.model), printable(first), metric.title
    if c.difference is None:
        return f"{name} and {other} cannot be compared: there is no case in which both have a {what}."
    cases = counted(c.n, "case")
    few = "" if c.n >= FEW_CASES else "; so few cases allow no conclusion"
    if c.wins == c.losses == 0:
        return f"{name} and {other} have the same {what} on {'all ' if c.n > 1 else ''}{cases}{few}."
    gain = c.difference * metric.better
    counts = [("better", c.wins), ("equal", c.ties), ("worse", c.losses)]
    if gain < 0:
        counts.reverse()
    tally = ", ".join(f"{word} on {count}" for word, count in counts if count)
    if c.interval is not None and c.interval[0] <= 0 <= c.interval[1]:
        signed = f"{formatted(c.difference, metric.digits, '+')} {what} {interval_text(c.interval, metric.digits, '+')}"
        return f"No clear difference between {name} and {other}: {signed} on {cases}, {tally}{few}."
    size = abs(c.difference)
    least = 10.0**-metric.digits
    by = f"less than {formatted(least, metric.digits)}" if size < least / 2 else formatted(size, metric.digits)
    sizes = None if c.interval is None else (min(map(abs, c.interval)), max(map(abs, c.interval)))
    amount = " ".join(filter(None, [by, what, interval_text(sizes, metric.digits)]))
    return f"{name} is {'better' if gain > 0 else 'worse'} than {other} by {amount} on {cases}, {tally}{few}."
