"""``progress.png``: saved whole or not at all, and no reason for a training to end."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from matplotlib import pyplot
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger


@contextmanager
def drawing(add: Callable[[Figure], None]) -> Iterator[None]:
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


class GuardedPlotLogger(LocalLogger):
    """nnU-Net's log of a training's numbers. A picture that cannot be drawn is warned of once.

    Args:
        verbose: nnU-Net's.
        warn: takes a message.
    """

    def __init__(self, verbose: bool, warn: Callable[[str], None]) -> None:
        super().__init__(verbose)
        self._warn, self._warned = warn, False

    def plot_progress_png(self, output_folder: str) -> None:
        """nnU-Net's picture."""
        try:
            self.plot(output_folder)
        except Exception as error:  # a full disk, a font that is missing: the training's numbers are elsewhere
            if not self._warned:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(f"progress.png could not be drawn ({reason}). The training goes on without it.")
            self._warned = True

    def plot(self, output_folder: str) -> None:
        """Draw and save the picture."""
        with drawing(lambda figure: None):
            super().plot_progress_png(output_folder)
