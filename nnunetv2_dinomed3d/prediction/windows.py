"""The windows of a case: in an order in which slabs are met again soon, added up in nnU-Net's order.

A pass is a window in one of its mirrored forms. nnU-Net runs the passes of a window one after the other, and windows
row by row. A slab of slices is the same in two windows only in the same mirrored form and place in plane, so for our
network all windows of a column run in one form before the next. Their logits wait until it is their turn to be added,
since the order changes how sums round. So the passes of a few layers of windows are run at a time, as many as memory is
given.

Small windows run in batches. That is not only less overhead: on the CPU, PyTorch gives convolutions of a few thousand
values to a slow implementation if, and only if, the batch is a single one.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nnunetv2_dinomed3d.prediction.rolling import RollingLogits

Network = Callable[[Tensor], Tensor]

VOXELS_AT_ONCE = 2**18
"""Of windows in a batch, at most; larger windows run one by one."""

MAX_BATCH = 8


@dataclass(frozen=True)
class Window:
    """A window of the padded case.

    Attributes:
        row: the first.
        rows: index along the first axis: some rows of a volume, or the number of a slice.
        plane: rows and columns in plane.
    """

    row: int
    rows: slice | int
    plane: tuple[slice, slice]

    @property
    def key(self) -> tuple[int, int, int]:
        """Its first voxel."""
        return self.row, *self.column

    @property
    def column(self) -> tuple[int, int]:
        """Its place in plane."""
        return self.plane[0].start, self.plane[1].start


def layers_of(slicers: Sequence[tuple]) -> list[list[Window]]:
    """nnU-Net's windows, in its order, by their first rows."""
    windows = [
        Window(rows.start if isinstance(rows, slice) else rows, rows, (height, width))
        for _, rows, height, width in slicers
    ]
    return [list(layer) for _, layer in itertools.groupby(windows, lambda window: window.row)]


def mirrorings(axes: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The axes of a window ``(1, C, ...)`` that each pass mirrors, in nnU-Net's order; the first mirrors none."""
    axes = [axis + 2 for axis in axes or ()]
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def windows_at_once(patch: Sequence[int]) -> int:
    """How many windows make a batch."""
    return min(MAX_BATCH, max(1, VOXELS_AT_ONCE // prod(patch)))


@dataclass(frozen=True)
class Sweep:
    """How the windows of a case run.

    Attributes:
        mirrored: of `mirrorings`.
        gaussian: weight of a window's voxels, as its patch.
        device: of the network.
        batch: passes at a time.
        waiting_bytes: most bytes of logits that wait to be added, beyond those of one layer. None keeps nnU-Net's
            order, in which none wait.
        passed: called with the number of passes that were run.
    """

    mirrored: Sequence[tuple[int, ...]]
    gaussian: Tensor
    device: torch.device
    batch: int = 1
    waiting_bytes: int | None = None
    passed: Callable[[int], object] = lambda count: None

    def run(self, network: Network, image: Tensor, layers: Sequence[list[Window]], sums: RollingLogits) -> None:
        """Predict all windows and give all rows of the case to the sums.

        Args:
            network: gives logits ``(b, N, ...)`` of windows ``(b, C, ...)``.
            image: ``(C, d, h, w)``, padded to at least a window.
            layers: of `layers_of`.
            sums: in which the rows of the case are made.
        """
        done = 0
        while done < len(layers):
            group = layers[done : done + self._layers_at_once(layers[done], len(sums.sums))]
            means = self._means(network, image, [window for layer in group for window in layer])
            for layer in group:
                done += 1
                for window in layer:
                    self._add(sums, window, next(means))
                sums.finish(layers[done][0].row if done < len(layers) else image.shape[1])

    def _layers_at_once(self, layer: list[Window], heads: int) -> int:
        return 1 + (self.waiting_bytes or 0) // (len(layer) * heads * self.gaussian.numel() * 4)

    def _passes(self, windows: Sequence[Window]) -> Iterator[tuple[Window, tuple[int, ...]]]:
        if self.waiting_bytes is None:
            yield from itertools.product(windows, self.mirrored)
            return
        for column in dict.fromkeys(window.column for window in windows):
            same = [window for window in windows if window.column == column]
            yield from ((window, axes) for axes in self.mirrored for window in same)

    def _means(self, network: Network, image: Tensor, windows: Sequence[Window]) -> Iterator[Tensor]:
        """Mean of the passes of each window ``(N, ...)``, in the windows' order."""
        sums: dict[tuple, Tensor] = {}
        left = dict.fromkeys((window.key for window in windows), len(self.mirrored))
        passes, waiting = self._passes(windows), deque(windows)
        while batch := list(itertools.islice(passes, self.batch)):
            for (window, axes), logits in zip(batch, self._logits(network, image, batch), strict=True):
                mirrored_back = logits.flip([axis - 1 for axis in axes]) if axes else logits
                sums[window.key] = sums[window.key].add_(mirrored_back) if window.key in sums else mirrored_back
                left[window.key] -= 1
            self.passed(len(batch))
            while waiting and not left[waiting[0].key]:
                yield sums.pop(waiting.popleft().key).div_(len(self.mirrored))

    def _logits(
        self, network: Network, image: Tensor, batch: Sequence[tuple[Window, tuple[int, ...]]]
    ) -> Sequence[Tensor]:
        parts = []
        for window, axes in batch:
            where = (slice(None), window.rows, *window.plane)
            part = image[where]
            parts.append(part.flip([axis - 1 for axis in axes]) if axes else part)
        logits = network(torch.stack(parts).to(self.device))
        return logits.unbind() if len(batch) > 1 else [logits[0]]

    def _add(self, sums: RollingLogits, window: Window, logits: Tensor) -> None:
        """Weigh a window's logits and add them."""
        weight = self.gaussian
        logits = logits.to(sums.sums.device)
        logits *= weight.to(logits.dtype)
        if logits.ndim == 3:  # of a slice
            logits, weight = logits[:, None], weight[None]
        sums.add(window.row, window.plane, logits, weight)
