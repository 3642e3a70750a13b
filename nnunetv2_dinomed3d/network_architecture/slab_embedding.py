"""Inter-slice context embedding (ICE): slabs of neighbouring slices become the tokens of a 2D ViT.

Source: DINO-Med3D, stage 1 (a slab of K slices replaces the ViT's colour image). Axis order everywhere: ``b c d h w``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 16
"""Side of a ViT patch in pixels of the (scaled) slice."""

SCALES = (1, 2, 4)
"""In-plane scales S."""

PAPERS_SIDE = 512
"""Pixels of the paper's slices, in plane (section 3.1)."""

MAX_TOKENS = 49_152
"""Of a patch that is enlarged; the paper's clip of 16 x 512 x 512 has 16,384."""


def in_plane_scale(patch_size: Sequence[int]) -> int:
    """Factor S by which slices are enlarged before they are cut into tokens.

    Of 1, 2 and 4 the one that brings the longer side nearest to the paper's 512 pixels, as a ratio, among those that
    keep the patch at or under 49,152 tokens (``D * H * W * S^2 / 256``); 1 is always allowed.

    Args:
        patch_size: ``(D, H, W)`` in voxels.
    """
    depth, height, width = patch_size
    allowed = [s for s in SCALES if s == 1 or depth * height * width * s**2 <= MAX_TOKENS * PATCH**2]
    return min(allowed, key=lambda scale: abs(math.log(max(height, width) * scale / PAPERS_SIDE)))


def padded_side(side: int, scale: int) -> int:
    """Smallest extent of at least ``side`` voxels that is a whole number of tokens at in-plane scale ``scale``."""
    voxels_per_token = PATCH // scale
    return math.ceil(side / voxels_per_token) * voxels_per_token


def inflate_patch_embedding(weight: Tensor, in_channels: int, slab_depth: int) -> Tensor:
    """Spread a pretrained 2D patch embedding over the slices of a slab.

    The colour channels and the K slices each divide the same unit interval evenly; slice k takes of colour channel j
    the part of j's interval that lies in k's. Each channel is given away whole, so that the response to a constant
    input stays what it was, and K = 3 gives slice k exactly the weights of channel k: slices stacked as RGB. With C
    image channels each takes the C-th part.

    Args:
        weight: ``(E, 3, 16, 16)``.
        in_channels: C.
        slab_depth: K.

    Returns:
        ``(E, C, K, 16, 16)``.
    """
    colours = weight.shape[1]
    start = torch.maximum(torch.arange(slab_depth)[:, None] / slab_depth, torch.arange(colours)[None] / colours)
    end = torch.minimum(
        torch.arange(1, slab_depth + 1)[:, None] / slab_depth, torch.arange(1, colours + 1)[None] / colours
    )
    share = ((end - start).clamp(min=0) * colours).to(weight)  # (K, 3), columns sum to 1
    if slab_depth == colours:
        share = torch.eye(colours).to(weight)  # exactly, not up to rounding
    inflated = torch.einsum("kj,ejhw->ekhw", share, weight)
    return inflated[:, None].repeat(1, in_channels, 1, 1, 1) / in_channels


class InterSliceContextEmbedding(nn.Module):
    """Embeds every slab of a volume with one 3D convolution, so that no slab is ever materialised.

    Slab d is the K slices around slice d: ``K // 2`` of them before it, ``K - 1 - K // 2`` after it.

    Args:
        in_channels: C, channels of the image.
        embed_dim: E, width of the ViT.
        slab_depth: K, slices in a slab.
    """

    def __init__(self, in_channels: int, embed_dim: int, slab_depth: int) -> None:
        super().__init__()
        if slab_depth < 1:
            raise ValueError(f"slab_depth is {slab_depth}; a slab has at least one slice, the paper uses 3.")
        self.slab_depth = slab_depth
        self.conv = nn.Conv3d(in_channels, embed_dim, (slab_depth, PATCH, PATCH), stride=(1, PATCH, PATCH))

    def forward(self, x: Tensor, pad_depth: bool = True) -> Tensor:
        """``(b, C, d, h, w)`` to ``(b, E, d, h / 16, w / 16)``; h and w are multiples of 16.

        With ``pad_depth`` zero slices stand in for those outside the volume. Without, x is a bare slab: K slices give
        the embedding of the central one.
        """
        assert x.shape[-2] % PATCH == x.shape[-1] % PATCH == 0, f"{tuple(x.shape)} is not a whole number of tokens"
        if pad_depth:
            before = self.slab_depth // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.slab_depth - 1 - before))
        return self.conv(x)

    @torch.no_grad()
    def load_patch_embedding(self, weight: Tensor, bias: Tensor) -> None:
        """Start from a 2D ViT's patch embedding: weight ``(E, 3, 16, 16)``, bias ``(E,)``."""
        conv = getattr(self.conv, "base_layer", self.conv)  # peft's name for it, where it carries LoRA
        conv.weight.copy_(inflate_patch_embedding(weight, conv.in_channels, self.slab_depth))
        assert conv.bias is not None
        conv.bias.copy_(bias)
