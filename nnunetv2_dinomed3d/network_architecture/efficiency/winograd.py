"""3x3x3 convolution with a quarter of the multiplications, for prediction on the CPU.

Winograd's minimal filtering F(4, 3) along depth and height (Lavin and Gray, CVPR 2016): along an axis, four values of
the result take six multiplications instead of twelve. Values and kernel, as polynomials in the position, are evaluated
at six points and multiplied there, and the four values are interpolated. The points are 0, 3/4, -3/4, 3/2, -3/2 and
infinity, which keep the rounding at two to four times that of the convolution itself.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

VALUES_AT_POINTS = (
    (81 / 64, 0, -45 / 16, 0, 1, 0),
    (0, -27 / 16, -9 / 4, 3 / 4, 1, 0),
    (0, 27 / 16, -9 / 4, -3 / 4, 1, 0),
    (0, -27 / 32, -9 / 16, 3 / 2, 1, 0),
    (0, 27 / 32, -9 / 16, -3 / 2, 1, 0),
    (0, 81 / 64, 0, -45 / 16, 0, 1),
)
"""From six neighbouring values."""

KERNEL_AT_POINTS = (
    (64 / 81, 0, 0),
    (-128 / 243, -32 / 81, -8 / 27),
    (-128 / 243, 32 / 81, -8 / 27),
    (32 / 243, 16 / 81, 8 / 27),
    (32 / 243, -16 / 81, 8 / 27),
    (0, 0, 1),
)
"""From the kernel's three."""

INTERPOLATED = (
    (1, 1, 1, 1, 1, 0),
    (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2, 0),
    (0, 9 / 16, 9 / 16, 9 / 4, 9 / 4, 0),
    (0, 27 / 64, -27 / 64, 27 / 8, -27 / 8, 1),
)
"""Four values of the result, from the products at the points."""

POINTS, STEP = len(VALUES_AT_POINTS), len(INTERPOLATED)

VALUES_AT_ONCE = 2**20
"""Of a part of the volume; with more it no longer fits into the processor's cache."""


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.conv3d(x, weight, bias, padding=1)``, by the faster way of the two.

    Args:
        x: ``(b, c, d, h, w)``.
        weight: ``(n, c, 3, 3, 3)``.
        bias: ``(n,)``.

    Returns:
        ``(b, n, d, h, w)``.
    """
    if not _is_worthwhile(x, weight):
        return F.conv3d(x, weight, bias, padding=1)
    at_points = x.new_tensor(KERNEL_AT_POINTS)
    kernels = torch.einsum("pi,qj,ncijk->pqnkc", at_points, at_points, weight)
    depth, height, width = x.shape[2:]
    result = x.new_empty(len(x), depth, height, width, len(weight))
    at_once = STEP * max(1, VALUES_AT_ONCE // (height * width * max(weight.shape[:2])))
    for volume, of_volume in zip(rearrange(x, "b c d h w -> b d h w c"), result, strict=True):
        for start in range(0, depth, at_once):
            stop = min(start + at_once, depth)
            slices = volume[max(start - 1, 0) : stop + 1]
            beside = (1, 1 + -height % STEP, int(start == 0), int(stop == depth) + (start - stop) % STEP)
            of_volume[start:stop] = _convolve(F.pad(slices, (0, 0, 0, 0, *beside)), kernels)[: stop - start, :height]
    if bias is not None:
        result += bias
    return rearrange(result, "b d h w n -> b n d h w")


class Conv3x3x3(nn.Conv3d):
    """`torch.nn.Conv3d` of kernel 3 and padding 1, by `conv3d`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, d, h, w)`` to ``(b, n, d, h, w)``."""
        return conv3d(x, self.weight, self.bias)


def _convolve(x: Tensor, kernels: Tensor) -> Tensor:
    """``(4 s + 2, 4 t + 2, w, c)`` by kernels at the points, ``(p, q, n, k, c)``, to ``(4 s, 4 t, w, n)``."""
    products = [
        _interpolated([_convolve_rows(*factors) for factors in zip(_at_points(rows, 1), of_rows, strict=True)])
        for rows, of_rows in zip(_at_points(x, 0), kernels, strict=True)
    ]
    return rearrange(_interpolated(products), "i j s t w n -> (s i) (t j) w n")


def _convolve_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """``(s, t, w, c)`` by ``(n, k, c)`` along w to ``(s, t, w, n)``."""
    image = rearrange(x, "s t w c -> 1 c (s t) w")
    result = F.conv2d(image, rearrange(kernel, "n k c -> n c 1 k"), padding=(0, 1))
    return rearrange(result, "1 n (s t) w -> s t w n", s=len(x))


def _at_points(x: Tensor, axis: int) -> Tensor:
    """``(..., 4 t + 2, ...)`` to its values at the points, ``(p, ..., t, ...)``."""
    windows = x.unfold(axis, POINTS, STEP).movedim(-1, 0)
    return (x.new_tensor(VALUES_AT_POINTS) @ windows.flatten(1)).view(windows.shape)


def _interpolated(products: Sequence[Tensor]) -> Tensor:
    """Products at the points, each ``(...)``, to four values of the result, ``(i, ...)``."""
    stacked = torch.stack(list(products))
    return (stacked.new_tensor(INTERPOLATED) @ stacked.flatten(1)).view(STEP, *stacked.shape[1:])


def _is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Where it was found to be faster: in float32 on the CPU, for many channels and not too few voxels."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    depth, height, _ = size = x.shape[2:]
    channels = min(weight.shape[:2])
    of_multiplications = 4 * -(-depth // STEP) * -(-height // STEP) / (depth * height)
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and channels >= 64
        and size.numel() >= (2**12 if channels >= 128 else 2**16)
        and of_multiplications < 0.4
    )
