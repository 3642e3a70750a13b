"""Convolution on the CPU with fewer multiplications: a quarter of a 3x3x3 kernel's, half of a 3x1x1 kernel's.

Winograd's minimal filtering F(4, 3) along depth and height (Lavin and Gray, CVPR 2016): along an axis, four values of
the result take six multiplications instead of twelve. Input and filter, as polynomials in the position, are evaluated
at six points and multiplied there, and the four values are interpolated. The points are 0, 3/4, -3/4, 3/2, -3/2 and
infinity, which keep the rounding at a few times that of the convolution itself. Along the width the filter is applied
as it is. Gradients are the same steps transposed, with as few multiplications.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.function import once_differentiable

INPUT_TRANSFORM = (
    (81 / 64, 0, -45 / 16, 0, 1, 0),
    (0, -27 / 16, -9 / 4, 3 / 4, 1, 0),
    (0, 27 / 16, -9 / 4, -3 / 4, 1, 0),
    (0, -27 / 32, -9 / 16, 3 / 2, 1, 0),
    (0, 27 / 32, -9 / 16, -3 / 2, 1, 0),
    (0, 81 / 64, 0, -45 / 16, 0, 1),
)
"""B^T: six neighbouring values to their values at the points."""

FILTER_TRANSFORM = (
    (64 / 81, 0, 0),
    (-128 / 243, -32 / 81, -8 / 27),
    (-128 / 243, 32 / 81, -8 / 27),
    (32 / 243, 16 / 81, 8 / 27),
    (32 / 243, -16 / 81, 8 / 27),
    (0, 0, 1),
)
"""G: three values of the filter to those at the points."""

OUTPUT_TRANSFORM = (
    (1, 1, 1, 1, 1, 0),
    (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0),
    (0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0),
    (0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1),
)
"""A^T: products at the points to four values of the result."""

TILE_IN, TILE_OUT = len(INPUT_TRANSFORM), len(OUTPUT_TRANSFORM)

MAX_VALUES_PER_PASS = 2**20
"""Most values of the volume that are convolved together, for the sake of memory and of the processor's cache."""

_counts_as_on_the_cpu = ContextVar("_counts_as_on_the_cpu", default=False)


@contextmanager
def counted_as_on_the_cpu() -> Iterator[None]:
    """While open, tensors without values take the way that real ones take on the CPU.

    Else they take PyTorch's, since what is counted with them may be meant for a GPU.
    """
    token = _counts_as_on_the_cpu.set(True)
    try:
        yield
    finally:
        _counts_as_on_the_cpu.reset(token)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.conv3d``, padded to keep the size, by the faster of two ways.

    Args:
        x: ``(b, c, d, h, w)``.
        weight: ``(n, c, 3, 3, 3)`` or ``(n, c, 3, 1, 1)``.
        bias: ``(n,)``.

    Returns:
        ``(b, n, d, h, w)``.
    """
    if _is_worthwhile(x, weight):
        return _Winograd.apply(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=[side // 2 for side in weight.shape[2:]])


class Conv3x3x3(nn.Conv3d):
    """`torch.nn.Conv3d` of kernel 3 and padding 1, by `conv3d`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, d, h, w)`` to ``(b, n, d, h, w)``."""
        return conv3d(x, self.weight, self.bias)


class _Winograd(torch.autograd.Function):
    """The convolution and its gradients; for these it keeps input and weight, as PyTorch's does.

    Within, volumes are ``(b, d, h, w, c)``, and ``(b, d, 1, h w, c)`` for a kernel of height and width 1. At the points
    they are ``(z, y, c)``: z counts pairs of points, y tiles and in these columns, so a step along w is one along y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        kernels, result = _kernels_at_points(weight), _zeros(x, len(weight))
        if bias is not None:
            result += bias[:, None, None, None]
        volume, onto = _volume(x, weight), _volume(result, weight)
        for part in _parts(volume, weight):
            values = _at_points(volume[part.sample, part.read], *part.of_input, len(kernels) // 2)
            products = values.new_empty(*values.shape[:2], len(weight))
            columns = values.shape[1] - len(kernels) + 1
            for k, kernel in enumerate(kernels):
                products[:, :columns].baddbmm_(values[:, k : k + columns], kernel.mT, beta=int(k > 0))
            _add_from_points(onto[part.sample, part.written], products, *part.of_result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        kernels, to_x = _kernels_at_points(weight), _zeros(x, x.shape[1])
        to_kernels, border = torch.zeros_like(kernels), len(kernels) // 2
        volume, given, onto = (_volume(tensor, weight) for tensor in (x, gradient, to_x))
        for part in _parts(volume, weight):
            products = _at_points(given[part.sample, part.written], *part.of_result, 0, 2 * border)
            columns = products.shape[1] - 2 * border
            if of_weight:
                values = _at_points(volume[part.sample, part.read], *part.of_input, border)
                for k, to_kernel in enumerate(to_kernels):
                    to_kernel.baddbmm_(products[:, :columns].mT, values[:, k : k + columns])
            if of_x:
                values = products.new_zeros(*products.shape[:2], x.shape[1])
                for k, kernel in enumerate(kernels):
                    values[:, k : k + columns].baddbmm_(products[:, :columns], kernel)
                _add_from_points(onto[part.sample, part.read], values, *part.of_input, border)
        return (
            to_x if of_x else None,
            _weight_gradient(to_kernels, weight) if of_weight else None,
            gradient.sum((0, 2, 3, 4)) if of_bias else None,
        )


class _Part(NamedTuple):
    """Slices of a sample that are convolved together.

    Attributes:
        sample: its index.
        read: slices of the input.
        written: slices of the result.
        of_input: for depth and height, from values to those at the points: matrices ``(p, t, size)``, t counts tiles.
        of_result: the same from the result's gradients; transposed, from products at the points to the result.
    """

    sample: int
    read: slice
    written: slice
    of_input: tuple[Tensor, Tensor]
    of_result: tuple[Tensor, Tensor]


def _parts(volume: Tensor, weight: Tensor) -> Iterator[_Part]:
    """All slices of all samples of ``(b, d, h, w, c)``."""
    samples, depth, height, width, _ = volume.shape
    of_slices, from_slices = _transforms(depth, weight.shape[2], volume)
    of_rows, from_rows = _transforms(height, weight.shape[3], volume)
    at_once = max(1, MAX_VALUES_PER_PASS // (TILE_OUT * height * width * max(weight.shape[:2])))
    for sample in range(samples):
        for tile in range(0, of_slices.shape[1], at_once):
            first, stop, tiles = TILE_OUT * tile, TILE_OUT * (tile + at_once), slice(tile, tile + at_once)
            read, written = slice(max(first - 1, 0), stop + 1), slice(first, stop)
            of_input, of_result = of_slices[:, tiles, read], from_slices[:, tiles, written]
            yield _Part(sample, read, written, (of_input, of_rows), (of_result, from_rows))


def _transforms(size: int, side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices of `_Part` for a whole axis and a kernel of this side."""
    unit = torch.eye(size, dtype=like.dtype, device=like.device)
    if side == 1:
        return unit[None], unit[None]
    missing = -size % TILE_OUT
    read = F.pad(unit, (0, 0, 1, 1 + missing)).unfold(0, TILE_IN, TILE_OUT)
    written = F.pad(unit, (0, 0, 0, missing)).unfold(0, TILE_OUT, TILE_OUT)
    return (
        torch.einsum("pi,tsi->pts", like.new_tensor(INPUT_TRANSFORM), read),
        torch.einsum("ip,tsi->pts", like.new_tensor(OUTPUT_TRANSFORM), written),
    )


def _at_points(x: Tensor, of_depth: Tensor, of_height: Tensor, left: int, right: int | None = None) -> Tensor:
    """``(d, h, w, c)``, padded along w, times ``(p, s, d)`` and ``(q, t, h)`` to ``(q p, s t w, c)``."""
    if left or right:
        x = F.pad(x, (0, 0, left, left if right is None else right))
    depth, channels = len(x), x.shape[-1]
    rows = x.flatten(1)[None]
    if len(of_height) > 1:
        rows = torch.bmm(of_height.flatten(0, 1).expand(depth, -1, -1), x.flatten(2))
        rows = rows.view(depth, len(of_height), -1).transpose(0, 1)
    values = torch.bmm(of_depth.flatten(0, 1).expand(len(rows), -1, -1), rows)
    return values.view(len(rows) * len(of_depth), -1, channels)


def _add_from_points(onto: Tensor, x: Tensor, of_depth: Tensor, of_height: Tensor, left: int = 0) -> None:
    """Add to ``(d, h, w, c)`` what the transpose of `_at_points` makes of ``x``, but for the columns of padding."""
    depth, height, width, channels = onto.shape
    x = x.view(len(of_height), of_depth[..., 0].numel(), -1)
    if len(of_height) == 1:
        onto.view(depth, -1).addmm_(of_depth.flatten(0, 1).T, x[0])
        return
    rows = x.new_empty(depth, len(x), x.shape[-1])
    torch.bmm(of_depth.flatten(0, 1).T.expand(len(x), -1, -1), x, out=rows.transpose(0, 1))
    columns = slice(left * channels, (left + width) * channels)
    rows = rows.view(depth, of_height[..., 0].numel(), -1)[..., columns]
    onto.view(depth, height, -1).baddbmm_(of_height.flatten(0, 1).T.expand(depth, -1, -1), rows)


def _kernels_at_points(weight: Tensor) -> Tensor:
    """``(n, c, i, j, k)`` to ``(k, q p, n, c)``."""
    taps = rearrange(weight, "n c i j k -> k (j i) (n c)")
    return torch.bmm(_of_taps(weight).expand(len(taps), -1, -1), taps).unflatten(2, weight.shape[:2])


def _weight_gradient(to_kernels: Tensor, weight: Tensor) -> Tensor:
    """The transpose: ``(k, q p, n, c)`` to ``(n, c, i, j, k)``."""
    taps = torch.bmm(_of_taps(weight).T.expand(len(to_kernels), -1, -1), to_kernels.flatten(2))
    return rearrange(taps, "k (j i) (n c) -> n c i j k", n=len(weight), i=weight.shape[2])


def _of_taps(weight: Tensor) -> Tensor:
    """From taps to values at the points, ``(q p, j i)``."""
    transform = weight.new_tensor(FILTER_TRANSFORM)
    return torch.kron(transform if weight.shape[3] > 1 else weight.new_ones(1, 1), transform)


def _volume(x: Tensor, weight: Tensor) -> Tensor:
    """``(b, c, d, h, w)`` as `_Winograd` has it within."""
    return rearrange(x, "b c d h w -> b d h w c" if weight.shape[-1] > 1 else "b c d h w -> b d 1 (h w) c")


def _zeros(like: Tensor, channels: int) -> Tensor:
    """``(b, channels, d, h, w)`` in the layout of which `_volume` is a view."""
    shape = len(like), channels, *like.shape[2:]
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d).zero_()


def _is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether this way was found to be faster: in float32 on the CPU, for many channels and not too few voxels."""
    if not x.is_cpu or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if isinstance(x, FakeTensor) and not _counts_as_on_the_cpu.get():
        return False
    channels, size = min(weight.shape[:2]), x.shape[2:]
    shares = [2 * -(-side // TILE_OUT) / side for side in size]  # of the multiplications, along each axis
    if weight.shape[-1] == 1:
        return channels >= 64 and size.numel() >= (2**10 if channels >= 128 else 2**12) and shares[0] < 0.9
    # the matrices along the height are dense, so on high maps of few channels they take longer than they save
    enough = channels >= max(64, size[1]) and size.numel() >= (2**12 if channels >= 128 else 2**16)
    return enough and shares[0] * shares[1] < 0.4
