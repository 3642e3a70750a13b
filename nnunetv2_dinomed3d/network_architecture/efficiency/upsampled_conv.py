"""Convolutions of maps side by side, without concatenating or upsampling them first.

Upsampling in plane and mixing channels are both linear and commute. So each of the nine in-plane taps of a 3x3x3 kernel
is applied on the coarse grid; its result is upsampled, shifted by the tap and summed. Borders included, this is the
convolution of the upsampled map, for a fraction of its operations if the map is several times coarser.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.efficiency.winograd import Conv3x3x3, conv3d

TAPS = (-1, 0, 1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(b, c, ...)`` on the grid ``(d, h, w)`` of ``size``, trilinearly."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def _upsample_and_shift(coarse: int, fine: int, like: Tensor) -> list[Tensor]:
    """For each tap of a convolution, the matrix ``(fine, coarse)`` that upsamples one axis and shifts by the tap.

    Outside is zero.
    """
    # PyTorch's own interpolation of the unit vectors
    identity = torch.eye(coarse, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    upsample = F.interpolate(identity, size=fine, mode="linear", align_corners=False)[0].T.to(like.dtype)
    padded = F.pad(upsample, (0, 0, 1, 1))
    return [padded[1 + tap : 1 + tap + fine] for tap in TAPS]


def conv_of_upsampled(x: Tensor, weight: Tensor, onto: Tensor) -> Tensor:
    """``onto + conv3d(resize(x, onto.shape[2:]), weight, padding=1)``.

    Args:
        x: ``(b, c, ...)``, coarser in plane than ``onto``.
        weight: ``(n, c, 3, 3, 3)``.
        onto: ``(b, n, d, h, w)``; without gradients it may be overwritten.

    Returns:
        ``(b, n, d, h, w)``.
    """
    depth, height, width = onto.shape[2:]
    x = resize(x, (depth, *x.shape[3:]))  # trilinear interpolation is one of each axis
    rows, columns = (_upsample_and_shift(c, f, x) for c, f in zip(x.shape[3:], (height, width), strict=True))
    first, *rest = (
        (to_rows.expand(len(x) * depth, -1, -1), _convolved_along_w(x, taps, columns))
        for to_rows, taps in zip(rows, weight.unbind(3), strict=True)
    )
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    result = add(rearrange(onto, "b n d h w -> (b d) h (w n)"), *first)
    for factors in rest:
        result.baddbmm_(*factors)
    return rearrange(result, "(b d) h (w n) -> b n d h w", d=depth, w=width)


def _convolved_along_w(x: Tensor, weight: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """``(b, c, d, h, v)``, convolved along depth and the upsampled width, to ``(b d, h, w n)``.

    Args:
        x: as above.
        weight: ``(n, c, 3, 3)``, of one row of taps.
        columns: for each tap the matrix ``(w, v)`` that upsamples and shifts.
    """
    mixed = conv3d(x, rearrange(weight, "n c k i -> (i n) c k 1 1"))
    mixed = rearrange(mixed, "b (i n) d h v -> (b d h) (v i) n", i=len(TAPS))
    matrix = torch.stack(list(columns), dim=-1).flatten(1).expand(len(mixed), -1, -1)
    return rearrange(torch.bmm(matrix, mixed), "(z h) w n -> z h (w n)", h=x.shape[3])


def _is_worthwhile(x: Tensor, size: Sequence[int]) -> bool:
    """Whether `conv_of_upsampled` takes less than two thirds of the multiplications of the convolution it replaces."""
    _, height, width = size
    coarse_height, coarse_width = x.shape[3:]
    taps = len(TAPS) ** 3 * x.shape[1]
    upsampling = len(TAPS) * coarse_height * width * (len(TAPS) * coarse_width + height)
    return 3 * (taps * coarse_height * coarse_width + upsampling) < 2 * taps * height * width


class ConcatConv3d(Conv3x3x3):
    """3x3x3 convolution of several maps, each resized to the finest one's grid and all concatenated.

    Args:
        in_channels: of all maps together.
        out_channels: of the result.
        bias: whether it has one.
    """

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Convolve maps together.

        Args:
            maps: ``(b, c_i, d_i, h_i, w_i)``.

        Returns:
            ``(b, n, d, h, w)``, of the size of the map that is finest in plane, of equal ones the first.
        """
        size = maps[0].shape[2:]
        for x in maps:  # older compilers know no max() with a key
            if x.shape[3:].numel() > size[1:].numel():
                size = x.shape[2:]
        fine: list[tuple[Tensor, Tensor]] = []
        coarse: list[tuple[Tensor, Tensor]] = []
        for x, weight in zip(maps, self.weight.split([x.shape[1] for x in maps], dim=1), strict=True):
            (coarse if _is_worthwhile(x, size) else fine).append((x, weight))
        resized = [resize(x, size) for x, _ in fine]
        result = conv3d(_cat(resized), _cat([weight for _, weight in fine]), self.bias)
        for x, weight in coarse:
            result = conv_of_upsampled(x, weight, result)
        return result


class ConcatConv1x1(nn.Conv3d):
    """1x1x1 convolution of two maps side by side, without concatenating them.

    Args:
        channels: of each map and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """Two maps ``(b, channels, d, h, w)``, same shape out."""
        (first, second), (of_first, of_second) = maps, self.weight.chunk(2, dim=1)
        return F.conv3d(first, of_first, self.bias).add_(F.conv3d(second, of_second))


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
