"""Sums of windows' logits, over the rows that windows still reach."""

import torch
from torch import Tensor

from nnunetv2_dinomed3d.prediction.resampling import Rows


class RollingLogits:
    """Weighted mean of windows' logits, in float16 as nnU-Net has it; rows are given out when they are complete.

    Windows come in the order of their first rows. Memory is that of the rows of one window.

    Args:
        heads: N.
        depth: rows of a window.
        plane: ``(h, w)`` of the padded case.
        inside: the part of the padded case ``(d, h, w)`` that is the case; rows are numbered from its first.
        give: takes the rows of the case, in order.
        device: of the sums.
    """

    def __init__(
        self,
        heads: int,
        depth: int,
        plane: tuple[int, int],
        inside: tuple[slice, slice, slice],
        give: Rows,
        device: torch.device,
    ) -> None:
        self.sums = torch.zeros((heads, depth, *plane), dtype=torch.half, device=device)
        self.weights = torch.zeros((depth, *plane), dtype=torch.half, device=device)
        self.inside, self.give = inside, give
        self.first = 0  # row of the padded case that the sums begin with

    def add(self, row: int, plane: tuple[slice, slice], logits: Tensor, weight: Tensor) -> None:
        """Add a window.

        Args:
            row: its first.
            plane: its rows and columns in the padded case.
            logits: ``(N, d, h, w)``, times the weight.
            weight: ``(d, h, w)``.

        Raises:
            ValueError: a window came that begins before rows that were given out.
        """
        if row < self.first:
            raise ValueError(f"a window at row {row} came after row {self.first} had been given out")
        where = (slice(None), slice(row - self.first, row - self.first + logits.shape[1]), *plane)
        sums = self.sums[where]
        # what += rounds to as well, but faster
        sums.copy_(sums.float().add_(logits) if logits.dtype == torch.float32 else sums + logits)
        self.weights[where[1:]] += weight

    def finish(self, row: int) -> None:
        """Give out all rows before this one, of the padded case: no window will reach them any more.

        Raises:
            RuntimeError: a sum is infinite.
        """
        count = row - self.first
        depth, height, width = self.inside
        start, stop = max(depth.start, self.first), min(depth.stop, row)
        if start < stop:
            rows = slice(start - self.first, stop - self.first)
            logits = self.sums[:, rows, height, width] / self.weights[rows, height, width]
            if torch.isinf(logits).any():
                raise RuntimeError("logits are infinite in float16: the network's weights are too large or damaged.")
            self.give(start - depth.start, logits)
        kept = max(0, self.sums.shape[1] - count)
        for sums, axis in ((self.sums, 1), (self.weights, 0)):
            sums.narrow(axis, 0, kept).copy_(sums.narrow(axis, sums.shape[axis] - kept, kept).clone())
            sums.narrow(axis, kept, sums.shape[axis] - kept).zero_()
        self.first = row
