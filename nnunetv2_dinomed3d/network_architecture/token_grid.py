"""The token grid: how far a slice is enlarged, and how it is padded to a whole number of tokens.

A token covers 16 x 16 pixels of the enlarged slice, which are 16 / S voxels a side. Axis order: ``b c d h w``.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

TOKEN_SIZE = 16
"""Side of a token, in pixels of the enlarged slice."""

SCALES = (1, 2, 4)
"""In-plane scales S."""

PAPERS_SIDE = 512
"""Side of the paper's slices, in pixels (section 3.1)."""

MAX_TOKENS = 49_152
"""Most tokens of a patch that is enlarged; the paper's clip of 16 x 512 x 512 has 16,384."""


def in_plane_scale(patch_size: Sequence[int]) -> int:
    """Factor S by which slices are enlarged before they are cut into tokens.

    S is that of 1, 2 and 4 which brings the longer side nearest to the paper's 512 pixels, as a ratio. It keeps the
    patch at or under 49,152 tokens (``D * H * W * S^2 / 256``); 1 is always allowed.

    Args:
        patch_size: ``(D, H, W)`` in voxels.
    """
    depth, height, width = patch_size
    allowed = [s for s in SCALES if s == 1 or depth * height * width * s**2 <= MAX_TOKENS * TOKEN_SIZE**2]
    return min(allowed, key=lambda scale: abs(math.log(max(height, width) * scale / PAPERS_SIDE)))


def padded_side(side: int, scale: int) -> int:
    """Smallest extent of at least ``side`` voxels that is a whole number of tokens at in-plane scale ``scale``."""
    voxels_per_token = TOKEN_SIZE // scale
    return math.ceil(side / voxels_per_token) * voxels_per_token


def pad_in_plane(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(b, c, d, h, w)`` to ``(b, c, d, *size)``, with zeros at the far borders."""
    height, width = size
    return F.pad(x, (0, width - x.shape[4], 0, height - x.shape[3]))


def enlarge_in_plane(x: Tensor, scale: int) -> Tensor:
    """``(b, c, d, h, w)`` to ``(b, c, d, scale * h, scale * w)``, bilinearly."""
    if scale == 1:
        return x
    slices = rearrange(x, "b c d h w -> (b d) c h w")
    slices = F.interpolate(slices, scale_factor=scale, mode="bilinear", align_corners=False)
    return rearrange(slices, "(b d) c h w -> b c d h w", b=len(x))
