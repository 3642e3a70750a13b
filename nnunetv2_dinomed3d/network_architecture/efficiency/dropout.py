"""Dropout on the CPU that draws one random number for four values: PyTorch draws one for each, in a single thread."""

import torch
from torch import Tensor, nn

LEVELS = 2**16
"""Of a random number. What is drawn is dropped with a probability that is a multiple of 1 / LEVELS."""


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`; on the CPU in a third of the time, with p rounded to a multiple of 1 / 65536.

    Compiled or traced, it is PyTorch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, the same out."""
        dropped = round(self.p * LEVELS)
        if not (self.training and x.is_cpu and 0 < dropped < LEVELS) or self.inplace:
            return super().forward(x)
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        return (x * _kept(x, dropped)).mul_(LEVELS / (LEVELS - dropped))


def _kept(like: Tensor, dropped: int) -> Tensor:
    """A mask of the tensor's shape, False with the probability ``dropped / LEVELS``; four values of 64 random bits."""
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return bits.view(torch.int16)[: like.numel()].view(like.shape) >= dropped - LEVELS // 2
