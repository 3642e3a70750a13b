"""The report's plots. Each function returns a figure and writes nothing."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunetv2_dinomed3d.evaluation.dataset_labels import DatasetLabels
from nnunetv2_dinomed3d.evaluation.measure import Measurement
from nnunetv2_dinomed3d.evaluation.statistics import Table
from nnunetv2_dinomed3d.pictures import Colour, label_colour, value_colours
from nnunetv2_dinomed3d.text import plot_text
from nnunetv2_dinomed3d.training_log import TrainingLog


def model_colour(index: int) -> Colour:
    """The colour of the index-th model or fold; no label has it. After eight they come again, darker each time."""
    red, green, blue, _ = matplotlib.colormaps["Dark2"](index % 8)
    light = 0.5 ** (index // 8)
    return light * red, light * green, light * blue


def colours_of_values(labels: DatasetLabels) -> dict[int, Colour]:
    """The colour of every value of a label map, with the ignore label and without the background."""
    return value_colours(labels.values if labels.ignore is None else {*labels.values, labels.ignore})


def colours_of_labels(labels: DatasetLabels) -> dict[str, Colour]:
    """The colour of every label: that of its value, or for a region that of the value which no smaller region holds.

    A region without such a value has a colour after those of the values.
    """
    values = colours_of_values(labels)
    found: dict[str, Colour] = {}
    for value, colour in values.items():
        if holding := [name for name, group in labels.labels.items() if value in group]:
            found.setdefault(min(holding, key=lambda name: len(labels.labels[name])), colour)
    without = [name for name in labels.labels if name not in found]
    return found | {name: label_colour(i) for i, name in enumerate(without, len(values))}


def _grid(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, each `width` x `height` inches."""
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
        axis.set_xticks(positions, [plot_text(m, 40) for m in table.models], rotation=20, ha="right", fontsize=7)
        axis.set_title(plot_text(label), fontsize=9)
        axis.set_ylabel(table.metric.title, fontsize=8)
    return figure


def draw_differences(table: Table, colours: dict[str, Colour]) -> Figure:
    """Bland and Altman's plot, a panel for every model but the first one, a point for every case and label.

    The difference to the first model stands over the mean of both. Lines show the mean difference and the mean
    -+ 1.96 standard deviations.

    Args:
        colours: of each label.
    """
    first, others = table.models[0], table.models[1:]
    figure, axes = _grid(len(others), 2, 4.6, 3.6)
    for i, (axis, model) in enumerate(zip(axes, others, strict=False), 1):
        difference = table.values[i] - table.values[0]
        middle = (table.values[i] + table.values[0]) / 2
        for j, label in enumerate(table.labels):
            name = plot_text(label, 30)
            axis.plot(middle[:, j], difference[:, j], "o", ms=4, alpha=0.7, color=colours[label], label=name)
        known = difference[~np.isnan(difference)]
        if len(known):
            mean, spread = known.mean(), 1.96 * known.std(ddof=1 if len(known) > 1 else 0)
            for y, style in ((mean, "-"), (mean - spread, "--"), (mean + spread, "--")):
                axis.axhline(y, color="black", lw=0.9, ls=style)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.set_title(f"{plot_text(model, 40)}\nminus {plot_text(first, 40)}", fontsize=9)
        axis.set_xlabel(f"mean of both, {table.metric.title}", fontsize=8)
        axis.set_ylabel("difference", fontsize=8)
        axis.legend(fontsize=7)
    return figure


def draw_dice_over_volume(measurements: list[Measurement]) -> Figure:
    """A panel per label: Dice over the reference's volume in ml, for structures that the reference has."""
    labels = list(dict.fromkeys(m.label for m in measurements))
    models = list(dict.fromkeys(m.model for m in measurements))
    figure, axes = _grid(len(labels), 3, 3.8, 3.2)
    for axis, label in zip(axes, labels, strict=False):
        there = [m for m in measurements if m.label == label and m.scores.reference_ml]
        for i, model in enumerate(models):
            points = [(m.scores.reference_ml, m.scores.dice) for m in there if m.model == model]
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.plot(x, y, "o", ms=4, alpha=0.7, color=model_colour(i), label=plot_text(model, 30))
        volumes = [m.scores.reference_ml for m in there]
        if volumes and max(volumes) > 10 * min(volumes):
            axis.set_xscale("log")
        axis.set_title(plot_text(label), fontsize=9)
        axis.set_xlabel("reference volume (ml)", fontsize=8)
        axis.set_ylabel("Dice", fontsize=8)
        axis.legend(fontsize=6)
    return figure


def draw_training(logs: dict[str, dict[str, TrainingLog]]) -> Figure:
    """A column per model: losses above, pseudo Dice below, a line per fold; the start of stage 2 is marked.

    Args:
        logs: by model and fold; every model has an epoch.
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
        above.set_title(f"{plot_text(model, 40)}, fold {', '.join(folds)}", fontsize=8)
        above.set_ylabel("loss: validation (-), training (--)", fontsize=8)
        below.set_ylabel("pseudo Dice (stage 1: of slices)", fontsize=8)
        below.set_xlabel("epoch", fontsize=8)
        for axis in (above, below):
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_losses(axis: Axes, log: TrainingLog, colour: Colour) -> None:
    epochs = log.finished
    axis.plot(list(epochs), [e.val_loss for e in epochs.values()], color=colour, lw=1)
    axis.plot(list(epochs), [e.train_loss for e in epochs.values()], color=colour, lw=1, ls="--", alpha=0.6)


def _draw_pseudo_dice(axis: Axes, log: TrainingLog, colour: Colour) -> None:
    """The pseudo Dice. Stage 1's is pale and not joined to stage 2's, because it is another measure."""
    for stage in sorted({e.stage for e in log.finished.values()}):
        part = {n: e.pseudo_dice for n, e in log.finished.items() if e.stage == stage}
        axis.plot(list(part), list(part.values()), color=colour, lw=1, alpha=0.4 if stage == 1 and log.switch else 1)
