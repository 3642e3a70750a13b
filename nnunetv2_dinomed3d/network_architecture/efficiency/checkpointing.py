"""What the backward pass computes again instead of finding it kept: the cheap always, all else where asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

COSTLY = 27 * 128
"""Multiplications for one value of a convolution's result from which on it is kept in any case."""


def _policy(_: Any, operator: Any, *inputs: Any, **__: Any) -> CheckpointPolicy:
    if operator is torch.ops.aten.convolution.default:
        weight, transposed = inputs[1], inputs[6]
        if not transposed and weight[0].numel() >= COSTLY:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_keep_costly = partial(create_selective_checkpoint_contexts, _policy)
_keep_convolutions = partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])


class Recomputed(nn.Module):
    """A module that runs its parts by the two methods below.

    Attributes:
        recompute: whether parts that `whole` runs are recomputed.
    """

    recompute = False

    def whole(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """``part(*inputs)``; with `recompute` only inputs and costly convolutions are kept for the backward pass."""
        if not self.recompute or not torch.is_grad_enabled():
            return part(*inputs)
        if torch.compiler.is_compiling():
            return checkpoint(part, *inputs, use_reentrant=False)
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=_keep_costly)

    def cheaply(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """``part(*inputs)``, of which only inputs and convolutions are kept, not what norms and activations made.

        What a compiled graph keeps is the compiler's choice, and with `recompute` it is `whole`'s.
        """
        if self.recompute or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return part(*inputs)
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=_keep_convolutions)
