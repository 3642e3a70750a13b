"""``progress.png`` of a training of two stages: the switch is marked, and stage 1's Dice stands apart."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Schedule

DICE_AXIS = "pseudo dice"
"""nnU-Net's name of the axis that the Dice is drawn on."""

DICE_CURVES = {"mean_fg_dice": ("pseudo dice", "dotted", 3), "ema_fg_dice": ("mov. avg.", "-", 4)}
"""Of what nnU-Net draws there: name, line style and width."""

STAGE1_COLOUR = "0.55"


@contextmanager
def _drawing(add: Callable[[Figure], None]) -> Iterator[None]:
    """While open, figures are added to before they are saved: nnU-Net draws, saves and closes in one function.

    They are saved whole or not at all, and leave nothing behind: one takes 65 MB, and Python would collect it late.
    """
    save, before = Figure.savefig, pyplot.get_fignums()

    def add_and_save(figure: Figure, path: str, **kwargs: Any) -> None:
        add(figure)
        partial = f"{path}.partial"
        try:
            save(figure, partial, format="png", **kwargs)
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                os.remove(partial)

    Figure.savefig = add_and_save  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Figure.savefig = save  # type: ignore[method-assign]
        for number in set(pyplot.get_fignums()) - set(before):
            pyplot.close(number)
        gc.collect()


class StagedLogger(LocalLogger):
    """nnU-Net's log of a training's numbers, with a picture that knows the stages. The numbers are nnU-Net's.

    Args:
        schedule: gives the training's, which can change while it runs.
        warn: takes a message.
    """

    def __init__(self, verbose: bool, schedule: Callable[[], Schedule], warn: Callable[[str], None]) -> None:
        super().__init__(verbose)
        self._schedule, self._warn, self._warned = schedule, warn, False

    def plot_progress_png(self, output_folder: str) -> None:
        """nnU-Net's picture; with two stages, its Dice curves are stage 2's, and stage 1's are drawn beside them.

        A training does not end for want of it: what goes wrong is warned of, once.
        """
        try:
            self._plot(output_folder)
        except Exception as error:  # a full disk, a font that is missing: the training's numbers are elsewhere
            if not self._warned:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(f"progress.png could not be drawn ({reason}). The training goes on without it.")
            self._warned = True

    def _plot(self, output_folder: str) -> None:
        schedule = self._schedule()
        if not (schedule.stage1.epochs and schedule.stage2.epochs):
            with _drawing(lambda figure: None):
                super().plot_progress_png(output_folder)
            return
        switch = schedule.first_epoch(2)
        of_stage2 = copy(self)
        of_stage2.my_fantastic_logging = {
            key: [float("nan")] * len(values[:switch]) + values[switch:] if key in DICE_CURVES else values
            for key, values in self.my_fantastic_logging.items()
        }
        with _drawing(lambda figure: self._add_stage1(figure, switch)):
            super(StagedLogger, of_stage2).plot_progress_png(output_folder)

    def _add_stage1(self, figure: Figure, switch: int) -> None:
        """The Dice of stage 1's epochs in a colour of its own; a line where stage 2 begins, once it has."""
        finished = min(map(len, self.my_fantastic_logging.values()))
        for axis in figure.axes:
            if axis.get_ylabel() == DICE_AXIS:
                self._draw_dice_of_stage1(axis, min(finished, switch))
            elif finished > switch:
                _mark(axis, switch)
        figure.tight_layout()

    def _draw_dice_of_stage1(self, axis: Axes, epochs: int) -> None:
        for key, (name, style, width) in DICE_CURVES.items():
            values = self.my_fantastic_logging[key][:epochs]
            label = f"{name} (stage 1, slabs)"
            axis.plot(range(epochs), values, color=STAGE1_COLOUR, ls=style, lw=width, label=label)
        axis.legend(loc=(0.2, 1), ncols=2)


def _mark(axis: Axes, switch: int) -> None:
    """A line between the last epoch of stage 1 and the first of stage 2."""
    axis.axvline(switch - 0.5, color="black", ls=":", lw=3)
    axis.annotate("stage 2", (switch - 0.5, 0.98), xycoords=("data", "axes fraction"), ha="left", va="top")
