"""3x3x3 convolution with a quarter of the multiplications, for prediction on the CPU.

Winograd's minimal filtering F(4, 3) along depth and height (Lavin and Gray, CVPR 2016): along an axis, four values of
the result take six multiplications instead of twelve. Input and filter, as polynomials in the position, are evaluated
at six points and multiplied there, and the four values are interpolated. The points are 0, 3/4, -3/4, 3/2, -3/2 and
infinity, which keep the rounding at two to four times that of the convolution itself.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

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
"""Most values of the volume that are convolved together; more do not fit into the processor's cache."""


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.conv3d(x, weight, bias, padding=1)``, by the faster of two ways.

    Args:
        x: ``(b, c, d, h, w)``.
        weight: ``(n, c, 3, 3, 3)``.
        bias: ``(n,)``.

    Returns:
        ``(b, n, d, h, w)``.
    """
    if not _is_worthwhile(x, weight):
        return F.conv3d(x, weight, bias, padding=1)
    transform = x.new_tensor(FILTER_TRANSFORM)
    filters = torch.einsum("pi,qj,ncijk->pqnkc", transform, transform, weight)
    depth, height, width = x.shape[2:]
    result = x.new_empty(len(x), depth, height, width, len(weight))
    slices_at_once = TILE_OUT * max(1, MAX_VALUES_PER_PASS // (height * width * max(weight.shape[:2])))
    for volume, of_volume in zip(rearrange(x, "b c d h w -> b d h w c"), result, strict=True):
        for start in range(0, depth, slices_at_once):
            stop = min(start + slices_at_once, depth)
            slices = volume[max(start - 1, 0) : stop + 1]
            beside = (1, 1 + -height % TILE_OUT, int(start == 0), int(stop == depth) + (start - stop) % TILE_OUT)
            of_volume[start:stop] = _convolve(F.pad(slices, (0, 0, 0, 0, *beside)), filters)[: stop - start, :height]
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


def _convolve(x: Tensor, filters: Tensor) -> Tensor:
    """``(4 s + 2, 4 t + 2, w, c)`` by filters at the points, ``(p, q, n, k, c)``, to ``(4 s, 4 t, w, n)``."""
    products = [
        _output_transform([_convolve_rows(*pair) for pair in zip(_input_transform(rows, 1), of_rows, strict=True)])
        for rows, of_rows in zip(_input_transform(x, 0), filters, strict=True)
    ]
    return rearrange(_output_transform(products), "i j s t w n -> (s i) (t j) w n")


def _convolve_rows(x: Tensor, kernel: Tensor) -> Tensor:
    """``(s, t, w, c)`` by ``(n, k, c)`` along w to ``(s, t, w, n)``."""
    image = rearrange(x, "s t w c -> 1 c (s t) w")
    result = F.conv2d(image, rearrange(kernel, "n k c -> n c 1 k"), padding=(0, 1))
    return rearrange(result, "1 n (s t) w -> s t w n", s=len(x))


def _input_transform(x: Tensor, axis: int) -> Tensor:
    """``(..., 4 t + 2, ...)`` to its values at the points, ``(p, ..., t, ...)``."""
    windows = x.unfold(axis, TILE_IN, TILE_OUT).movedim(-1, 0)
    return (x.new_tensor(INPUT_TRANSFORM) @ windows.flatten(1)).view(windows.shape)


def _output_transform(products: Sequence[Tensor]) -> Tensor:
    """Products at the points, each ``(...)``, to four values of the result, ``(i, ...)``."""
    stacked = torch.stack(list(products))
    return (stacked.new_tensor(OUTPUT_TRANSFORM) @ stacked.flatten(1)).view(TILE_OUT, *stacked.shape[1:])


def _is_worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether this way was found to be faster: in float32 on the CPU, for many channels and not too few voxels."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False
    depth, height, _ = size = x.shape[2:]
    channels = min(weight.shape[:2])
    of_multiplications = 4 * -(-depth // TILE_OUT) * -(-height // TILE_OUT) / (depth * height)
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and channels >= 64
        and size.numel() >= (2**12 if channels >= 128 else 2**16)
        and of_multiplications < 0.4
    )
