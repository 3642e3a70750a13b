"""``progress.png`` of a training of two stages: the switch is marked, and stage 1's Dice stands apart."""

from collections.abc import Callable
from copy import copy

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Schedule
from nnunetv2_dinomed3d.trainers.harness.progress_plot import GuardedPlotLogger, drawing

DICE_AXIS = "pseudo dice"
"""nnU-Net's name of the axis that the Dice is drawn on."""

DICE_CURVES = {"mean_fg_dice": ("pseudo dice", "dotted", 3), "ema_fg_dice": ("mov. avg.", "-", 4)}
"""Name, line style and width of the curves that nnU-Net draws there."""

STAGE1_COLOUR = "0.55"


class StagedLogger(GuardedPlotLogger):
    """nnU-Net's log of a training's numbers, with a picture that knows the stages. The numbers are nnU-Net's.

    Args:
        schedule: gives the training's, which can change while it runs.
        warn: takes a message.
    """

    def __init__(self, verbose: bool, schedule: Callable[[], Schedule], warn: Callable[[str], None]) -> None:
        super().__init__(verbose, warn)
        self._schedule = schedule

    def plot(self, output_folder: str) -> None:
        """nnU-Net's picture; with two stages, its Dice curves are stage 2's, and stage 1's are drawn beside them."""
        schedule = self._schedule()
        if not (schedule.stage1.epochs and schedule.stage2.epochs):
            super().plot(output_folder)
            return
        switch = schedule.first_epoch(2)
        of_stage2 = copy(self)
        of_stage2.my_fantastic_logging = {
            key: [float("nan")] * len(values[:switch]) + values[switch:] if key in DICE_CURVES else values
            for key, values in self.my_fantastic_logging.items()
        }
        with drawing(lambda figure: self._add_stage1(figure, switch)):
            LocalLogger.plot_progress_png(of_stage2, output_folder)

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
