"""The Mamba layer of U-Mamba (Gu and Dao, arXiv 2312.00752) and its selective scan in plain PyTorch.

Sequences are ``(B, L, channels)``. A volume's full resolution has millions of tokens, each with 16 states per channel,
so sequences are computed in pieces, and the backward pass computes a piece's states anew.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision

STATES = 16
"""Per channel."""

KERNEL = 4
"""Tokens that the causal convolution sees."""

PIECE_ON_CPU = 2**20
"""States of a piece, over all tokens and channels of a batch: 4 MB in float32.

Measured on one core, a layer's forward and backward: 20,000 tokens of width 32 take 0.6 s, with pieces of a quarter
0.9 s, of four times the states 0.8 s; 245 tokens of width 320 take 0.1 s in one piece or in several.
"""

PIECE = 2**25
"""The same on other devices, where a step costs its launch: 128 MB in float32. Not measured."""


@cache
def has_kernels() -> bool:
    """Whether the CUDA kernels of mamba-ssm and causal-conv1d can be imported."""
    try:
        import causal_conv1d
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
    except ImportError:
        return False
    return bool(causal_conv1d and mamba_inner_fn)


class MambaLayer(nn.Module):
    """LayerNorm and Mamba on the voxels of a map, without a shortcut.

    It computes in float32 even under autocast: float16 gives NaN.

    Args:
        channels: of the map.
        voxels: of the map, where its channels are the tokens and its voxels their features. None if the voxels are the
            tokens, in the order of the axes.
    """

    def __init__(self, channels: int, voxels: int | None = None) -> None:
        super().__init__()
        self.channel_tokens = voxels is not None
        width = channels if voxels is None else voxels
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width)

    @torch.compiler.disable  # the scan's loop would be unrolled
    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *size)``, same shape and dtype out."""
        tokens = rearrange(x, "b c ... -> b c (...)" if self.channel_tokens else "b c ... -> b (...) c")
        with precision(x, mixed=False):
            y = self.mamba(self.norm(tokens.to(torch.promote_types(x.dtype, torch.float32))))
        y = y if self.channel_tokens else rearrange(y, "b l c -> b c l")
        return y.to(x.dtype).reshape(x.shape)


class Mamba(MambaMixer):
    """Mamba with 16 states, a convolution of 4 tokens and twice the width inside. Parameters are those of transformers.

    On CUDA, in float32, mamba-ssm's kernels compute it where they and causal-conv1d are installed. Otherwise PyTorch
    does, piece by piece.

    Args:
        width: of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            MambaConfig(hidden_size=width, state_size=STATES, conv_kernel=KERNEL, expand=2, num_hidden_layers=1), 0
        )

    def forward(self, u: Tensor) -> Tensor:
        """``(B, L, width)``, same shape out."""
        if u.is_cuda and u.dtype == torch.float32 and has_kernels():
            return super().forward(u)
        inside = self.in_proj.out_features // 2
        tail = u.new_zeros(len(u), KERNEL - 1, inside)
        state = u.new_zeros(len(u), STATES, inside)
        results: list[Tensor] = []
        for piece in u.split(piece_length(u, inside), dim=1):
            if results and not _has_data(u):  # for an estimate of memory the first piece stands for all
                results.append(torch.empty_like(piece))
                continue
            y, tail, state = checkpoint(self._piece, piece, tail, state, use_reentrant=False, preserve_rng_state=False)
            results.append(y)
        return torch.cat(results, dim=1)

    def _piece(self, u: Tensor, tail: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The result of some tokens, what the convolution keeps of them, and the state after them."""
        x, gate = self.in_proj(u).chunk(2, dim=-1)
        x = torch.cat([tail, x], dim=1)
        tail = x[:, -tail.shape[1] :].clone()
        x = F.silu(self._convolved(x))
        delta, b, c = self.x_proj(x).split([self.dt_proj.in_features, STATES, STATES], dim=-1)
        y, state = selective_scan(F.softplus(self.dt_proj(delta)), x, -self.A_log.exp(), b, c, state)
        return self.out_proj(torch.addcmul(y, self.D, x) * F.silu(gate)), tail, state

    def _convolved(self, x: Tensor) -> Tensor:
        # on the CPU faster than conv1d with a group per channel
        weight, bias = self.conv1d.parameters()
        length = x.shape[1] - KERNEL + 1
        result: Tensor = bias
        for i, tap in enumerate(rearrange(weight, "c 1 tap -> tap c")):
            result = torch.addcmul(result, x[:, i : i + length], tap)
        return result


def piece_length(u: Tensor, inside: int) -> int:
    """Tokens of ``u (B, L, ...)`` that are computed at once, for ``inside`` channels."""
    states = PIECE_ON_CPU if u.is_cpu and _has_data(u) else PIECE
    return max(1, states // (len(u) * inside * STATES))


def _has_data(x: Tensor) -> bool:
    return not (x.is_meta or isinstance(x, FakeTensor))


def selective_scan(delta: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t`` and ``y_t``, the sum over states of ``C_t h_t``.

    All states are kept for the backward pass.

    Args:
        delta, x: ``(B, L, channels)``.
        a: A of the paper, ``(channels, states)``, negative.
        b, c: B and C, ``(B, L, states)``.
        state: ``(B, states, channels)``, before the first token.

    Returns:
        y ``(B, L, channels)`` and the state after the last token.
    """
    length = x.shape[1]
    segment = math.ceil(length ** (1 / 3))
    missing = -length % segment**2  # tokens with delta = 0 leave the state as it is
    tokens_first = [rearrange(F.pad(tensor, (0, 0, 0, missing)), "b l c -> l b c") for tensor in (delta, x, b, c)]
    y, state = _Scan.apply(*tokens_first, a.T.contiguous(), state, segment)
    return rearrange(y[:length], "l b c -> b l c"), state


class _Scan(torch.autograd.Function):
    """The scan of tensors ``(L, B, channels)`` or states instead of channels.

    The gradient of the states obeys the same recursion, from the last token to the first.
    """

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor, segment: int
    ) -> tuple[Tensor, Tensor]:
        decay = (delta[..., None, :] * a).exp_()
        states = (delta * x)[..., None, :] * b[..., None]
        _scan_(decay, states, state, segment)
        ctx.segment = segment
        ctx.save_for_backward(delta, x, b, c, a, state, decay, states)
        return _over_states(c, states), states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        delta, x, b, c, a, state, decay, states = ctx.saved_tensors
        grad = grad_y[..., None, :] * c[..., None]
        grad[-1] += grad_state
        # a state's gradient decays as the next state; the last one's factor multiplies zeros
        _scan_(decay.roll(-1, 0), grad, torch.zeros_like(state), ctx.segment, from_last=True)
        grad_first = decay[0] * grad[0]
        grad_added = _over_states(b, grad)
        grad_b, grad_c = _over_channels(grad, delta * x), _over_channels(states, grad_y)
        exponent = grad.mul_(decay)
        exponent[0] *= state
        exponent[1:] *= states[:-1]
        grad_a = (exponent * delta[..., None, :]).sum((0, 1))
        grad_delta = exponent.mul_(a).sum(-2).addcmul_(grad_added, x)
        return grad_delta, grad_added * delta, grad_b, grad_c, grad_a, grad_first, None


def _over_states(weights: Tensor, states: Tensor) -> Tensor:
    return (weights[..., None, :] @ states).squeeze(-2)


def _over_channels(states: Tensor, weights: Tensor) -> Tensor:
    return (states @ weights[..., None]).squeeze(-1)


def _scan_(decay: Tensor, states: Tensor, first: Tensor, segment: int, from_last: bool = False) -> None:
    """Turn what is added at each token into the states, in place: ``states[i] += decay[i] * states[i - 1]``.

    The tokens of one place in all segments are treated at once. A first round gives what each segment adds, the same
    recursion over segments gives the state before each, and a second round all states. With segments of the cube root
    of L tokens, three levels of about as many steps each.

    Args:
        decay, states: ``(L, ...)``.
        first: ``(...)``, the state before the first token.
        segment: its tokens. L can be divided by it until no more than one segment is left.
        from_last: whether the last token is the first.
    """
    if not _has_data(first):  # shapes alone, as for an estimate of memory
        return
    order = slice(None, None, -1 if from_last else 1)
    in_segments = len(states) > segment
    if in_segments:
        decay, states = (rearrange(tensor, "(k t) ... -> t k ...", t=segment) for tensor in (decay, states))
    factors, steps = list(decay)[order], list(states)[order]
    if in_segments:
        end = steps[0]
        for factor, step in zip(factors[1:], steps[1:], strict=True):
            end = torch.addcmul(step, factor, end)
        _scan_(decay.prod(0), end, first, segment, from_last)
        first = torch.stack([first, *list(end)[order][:-1]][order])
    for factor, step in zip(factors, steps, strict=True):
        first = step.addcmul_(factor, first)
