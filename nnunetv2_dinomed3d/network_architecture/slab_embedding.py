"""Inter-slice context embedding (ICE): slabs of neighbouring slices become the tokens of a 2D ViT.

Source: DINO-Med3D, section 2.2.1. A slab of K slices replaces the ViT's colour image. Axis order: ``b c d h w``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.token_grid import TOKEN_SIZE


def inflate_patch_embedding(weight: Tensor, in_channels: int, slab_depth: int) -> Tensor:
    """Spread a pretrained 2D patch embedding over the slices of a slab.

    The colour channels and the K slices each divide the same unit interval evenly. Slice k takes of colour channel j
    the part of j's interval that lies in its own. Each channel is given away whole, so the response to a constant
    input stays. With K = 3, slice k gets exactly the weights of channel k: slices stacked as RGB. With C image
    channels, each takes the C-th part. The paper does not say how ICE starts; for K = 3 and C = 1 this is its code's.

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
    """ICE (section 2.2.1): one 3D convolution embeds every slab of a volume, and no slab is ever materialised.

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
        self.conv = nn.Conv3d(
            in_channels, embed_dim, (slab_depth, TOKEN_SIZE, TOKEN_SIZE), stride=(1, TOKEN_SIZE, TOKEN_SIZE)
        )

    def forward(self, x: Tensor, pad_depth: bool = True) -> Tensor:
        """Embed every slab of a volume.

        Args:
            x: ``(b, C, d, h, w)``; h and w are multiples of 16.
            pad_depth: whether zero slices stand in for those outside the volume (section 2.3.1). Without them, K
                slices give the embedding of the central one.

        Returns:
            ``(b, E, d, h / 16, w / 16)``; without ``pad_depth``, d - K + 1 in place of d.
        """
        assert x.shape[-2] % TOKEN_SIZE == x.shape[-1] % TOKEN_SIZE == 0, f"{tuple(x.shape)} cuts tokens"
        if pad_depth:
            before = self.slab_depth // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.slab_depth - 1 - before))
        return self.conv(x)

    @torch.no_grad()
    def load_patch_embedding(self, weight: Tensor, bias: Tensor) -> None:
        """Start from a 2D ViT's patch embedding: weight ``(E, 3, 16, 16)``, bias ``(E,)``."""
        conv = getattr(self.conv, "base_layer", self.conv)  # peft's name for it, if it carries LoRA
        conv.weight.copy_(inflate_patch_embedding(weight, conv.in_channels, self.slab_depth))
        assert conv.bias is not None
        conv.bias.copy_(bias)
