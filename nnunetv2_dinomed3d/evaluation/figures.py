"""The report's plots. Each function returns a figure and writes nothing."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_dinomed3d.evaluation.measure import Measurement
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.evaluation.text import drawn
from nnunetv2_dinomed3d.nnunet_files import Description
from nnunetv2_dinomed3d.training_log import TrainingLog


def colour(index: int) -> str:
    """The index-th label's colour, counted without the background, by value: in every picture, also of look."""
    return matplotlib.colors.to_hex(matplotlib.colormaps["tab10"](index % 10))


def model_colour(index: int) -> str:
    """The index-th model's or fold's colour; none is a label's."""
    return matplotlib.colors.to_hex(matplotlib.colormaps["Dark2"](index % 8))


def value_colours(description: Description) -> dict[int, str]:
    """Of every value but the background its colour, in their order; the ignore label has one too."""
    ignore = set() if description.ignore is None else {description.ignore}
    return {value: colour(i) for i, value in enumerate(sorted((description.values | ignore) - {0}))}


def label_colours(description: Description) -> dict[str, str]:
    """Of every label its value's colour; of a region, that of the value which no smaller region holds.

    A region without such a value has a colour after those of the values.
    """
    values, labels = value_colours(description), description.labels
    found: dict[str, str] = {}
    for value, shade in values.items():
        if holding := [name for name, group in labels.items() if value in group]:
            found.setdefault(min(holding, key=lambda name: len(labels[name])), shade)
    without = [name for name in labels if name not in found]
    return found | {name: colour(i) for i, name in enumerate(without, len(values))}


def _grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, `width` x `height` inches each."""
    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_axis_off()
    return figure, axes


def draw_boxes(table: Table) -> Figure:
    """A panel per label: a box per model, and a line per case that joins its values."""
    width = max(3.2, 0.9 * len(table.models) + 1.4)
    figure, axes = _grid(len(table.labels), 3, width, 3.2)
    positions = np.arange(len(table.models))
    for i, (axis, label) in enumerate(zip(axes, table.labels, strict=False)):
        values = table.values[:, :, i]
        axis.plot(positions, values, color="0.75", lw=0.6, zorder=1)
        boxes = [row[~np.isnan(row)] for row in values]
        parts = axis.boxplot(boxes, positions=positions, widths=0.45, patch_artist=True, showfliers=False)
        for j, (box, median) in enumerate(zip(parts["boxes"], parts["medians"], strict=True)):
            box.set(facecolor=model_colour(j), alpha=0.5)
            median.set_color("black")
        axis.set_xticks(positions, [drawn(m, 40) for m in table.models], rotation=20, ha="right", fontsize=7)
        axis.set_title(drawn(label), fontsize=9)
        axis.set_ylabel(table.metric.title, fontsize=8)
    return figure


def draw_differences(table: Table, colours: dict[str, str]) -> Figure:
    """A panel per other model: its difference to the first one over the mean of both, each case and label a point.

    Bland and Altman's plot: the lines are the mean difference and the mean -+ 1.96 standard deviations.

    Args:
        colours: of each label.
    """
    first, others = table.models[0], table.models[1:]
    figure, axes = _grid(len(others), 2, 4.6, 3.6)
    for i, (axis, model) in enumerate(zip(axes, others, strict=False), 1):
        difference = table.values[i] - table.values[0]
        middle = (table.values[i] + table.values[0]) / 2
        for j, label in enumerate(table.labels):
            shade = colours[label]
            axis.plot(middle[:, j], difference[:, j], "o", ms=4, alpha=0.7, color=shade, label=drawn(label, 30))
        known = difference[~np.isnan(difference)]
        if len(known):
            mean, spread = known.mean(), 1.96 * known.std(ddof=1 if len(known) > 1 else 0)
            for y, style in ((mean, "-"), (mean - spread, "--"), (mean + spread, "--")):
                axis.axhline(y, color="black", lw=0.9, ls=style)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.set_title(f"{drawn(model, 40)} less {drawn(first, 40)}", fontsize=9)
        axis.set_xlabel(f"mean of both, {table.metric.title}", fontsize=8)
        axis.set_ylabel("difference", fontsize=8)
        axis.legend(fontsize=7)
    return figure


def draw_dice_over_volume(measurements: list[Measurement]) -> Figure:
    """A panel per label: Dice over the true volume in ml, of structures that are there."""
    labels = list(dict.fromkeys(m.label for m in measurements))
    models = list(dict.fromkeys(m.model for m in measurements))
    figure, axes = _grid(len(labels), 3, 3.8, 3.2)
    for axis, label in zip(axes, labels, strict=False):
        for i, model in enumerate(models):
            points = [(m.truth_ml, m.dice) for m in measurements if (m.label, m.model) == (label, model) and m.truth_ml]
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.plot(x, y, "o", ms=4, alpha=0.7, color=model_colour(i), label=drawn(model, 30))
        volumes = [m.truth_ml for m in measurements if m.label == label and m.truth_ml]
        if volumes and max(volumes) > 10 * min(volumes):
            axis.set_xscale("log")
        axis.set_title(drawn(label), fontsize=9)
        axis.set_xlabel("true volume (ml)", fontsize=8)
        axis.set_ylabel("Dice", fontsize=8)
        axis.legend(fontsize=6)
    return figure


def draw_training(logs: dict[str, dict[str, TrainingLog]]) -> Figure:
    """A column per model: losses above, pseudo Dice below, a line per fold; the start of stage 2 is marked.

    Args:
        logs: of each model and fold; every model has an epoch.
    """
    figure = Figure(figsize=(4.2 * len(logs), 5), layout="constrained")
    axes = figure.subplots(2, len(logs), squeeze=False, sharey="row")
    for (above, below), (model, folds) in zip(axes.T, logs.items(), strict=True):
        for i, log in enumerate(folds.values()):
            _draw_losses(above, log, model_colour(i))
            _draw_pseudo_dice(below, log, model_colour(i))
        for axis in (above, below):
            for start in {log.switch for log in folds.values() if log.switch is not None}:
                axis.axvline(start - 0.5, color="black", lw=0.9, ls=":")
                axis.annotate("stage 2", (start - 0.5, 0.98), xycoords=("data", "axes fraction"), fontsize=7, va="top")
        above.set_title(f"{drawn(model, 40)}, fold {', '.join(folds)}", fontsize=8)
        above.set_ylabel("loss: validation (-), training (--)", fontsize=8)
        below.set_ylabel("pseudo Dice (stage 1: of slices)", fontsize=8)
        below.set_xlabel("epoch", fontsize=8)
        for axis in (above, below):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_losses(axis: Axes, log: TrainingLog, shade: str) -> None:
    epochs = log.finished
    axis.plot(list(epochs), [e.val_loss for e in epochs.values()], color=shade, lw=1)
    axis.plot(list(epochs), [e.train_loss for e in epochs.values()], color=shade, lw=1, ls="--", alpha=0.6)


def _draw_pseudo_dice(axis: Axes, log: TrainingLog, shade: str) -> None:
    """Stage 1 pale and not joined to stage 2: it is another measure."""
    for stage in sorted({e.stage for e in log.finished.values()}):
        part = {n: e.pseudo_dice for n, e in log.finished.items() if e.stage == stage}
        axis.plot(list(part), list(part.values()), color=shade, lw=1, alpha=0.4 if stage == 1 and log.switch else 1)
