"""3x3x3 convolution of upsampled maps without the maps: mixed on the coarse grid, then upsampled.

Upsampling in plane and mixing channels are both linear and commute. So each of the nine in-plane taps of the kernel is
applied on the coarse grid, and its result is upsampled, shifted by the tap and summed; borders included, this is the
convolution of the upsampled map, for a fraction of its operations where the map is several times coarser.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TAPS = (-1, 0, 1)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """``(b, c, ...)`` on the grid ``(d, h, w)`` of ``size``, trilinearly."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def _upsample_and_shift(coarse: int, fine: int, like: Tensor) -> Tensor:
    """``(fine, 3 * coarse)``: upsampling of one axis for each tap of a convolution, shifted by it; outside is zero."""
    # PyTorch's own interpolation of the unit vectors
    identity = torch.eye(coarse, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))[None]
    upsample = F.interpolate(identity, size=fine, mode="linear", align_corners=False)[0].T
    padded = F.pad(upsample, (0, 0, 1, 1))
    return torch.cat([padded[1 + tap : 1 + tap + fine] for tap in TAPS], dim=1).to(like.dtype)


def conv_of_upsampled(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """``conv3d(resize(x, size), weight, padding=1)``.

    Args:
        x: ``(b, c, d, h, w)``, coarser in plane than ``size``.
        weight: ``(n, c, 3, 3, 3)``.
        size: ``(d, h, w)`` of the result.

    Returns:
        ``(b, n, *size)``.
    """
    x = resize(x, (size[0], *x.shape[3:]))  # of trilinear interpolation each axis can be done on its own
    by_tap = F.conv3d(x, rearrange(weight, "n c k i j -> (n i j) c k 1 1"), padding=(1, 0, 0))
    rows, columns = (
        _upsample_and_shift(coarse, fine, by_tap) for coarse, fine in zip(x.shape[3:], size[1:], strict=True)
    )
    by_tap = rearrange(by_tap, "b (n i j) d h w -> b n d (i h) (j w)", i=len(TAPS), j=len(TAPS))
    return torch.matmul(rows, torch.matmul(by_tap, columns.T))


def _is_worthwhile(x: Tensor, size: Sequence[int]) -> bool:
    """Whether `conv_of_upsampled` takes less than half of the multiplications of the convolution on the fine grid."""
    _, height, width = size
    coarse_height, coarse_width = x.shape[3:]
    taps = len(TAPS) ** 3 * x.shape[1]
    upsampling = len(TAPS) * coarse_height * width * (len(TAPS) * coarse_width + height)
    return 2 * (taps * coarse_height * coarse_width + upsampling) < taps * height * width


def joint_conv(maps: Sequence[Tensor], conv: nn.Conv3d, size: Sequence[int]) -> Tensor:
    """``conv`` (3x3x3) of the maps, each resized to ``size`` and all concatenated.

    Args:
        maps: ``(b, c_i, d_i, h_i, w_i)``; at least one has the size ``size`` already.
        conv: with the sum of c_i as input channels.
        size: ``(d, h, w)`` of the result.
    """
    parts = list(zip(maps, conv.weight.split([x.shape[1] for x in maps], dim=1), strict=True))
    coarse = [_is_worthwhile(x, size) for x in maps]
    fine = [part for part, is_coarse in zip(parts, coarse, strict=True) if not is_coarse]
    resized = torch.cat([resize(x, size) for x, _ in fine], dim=1)
    result = F.conv3d(resized, torch.cat([weight for _, weight in fine], dim=1), conv.bias, padding=1)
    for (x, weight), is_coarse in zip(parts, coarse, strict=True):
        if is_coarse:
            result = result + conv_of_upsampled(x, weight, size)
    return result
