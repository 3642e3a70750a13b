"""Heads of stage 1's proxy task: they predict the central slice of a slab (DINO-Med3D, section 2.2.2)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.adapter import Adapter3D
from nnunetv2_dinomed3d.network_architecture.decoder import UPerNetDecoder
from nnunetv2_dinomed3d.network_architecture.encoder import NUM_FEATURE_MAPS
from nnunetv2_dinomed3d.network_architecture.options import DepthAlignment


class ProxyHead(nn.Module):
    """The linear head: a 1x1 convolution on the last feature map. The paper calls it a lightweight MLP head.

    Args:
        embed_dim: E.
        num_classes: N.

    Attributes:
        num_maps: how many of the encoder's maps it takes, the deepest.
    """

    num_maps = 1

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.seg_layers = nn.Conv3d(embed_dim, num_classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """A map ``(b, E, d, h, w)`` in a list to logits ``(b, N, d, *size)``, resized bilinearly in plane."""
        logits = rearrange(self.seg_layers(features[-1]), "b n d h w -> (b d) n h w")
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return rearrange(logits, "(b d) n h w -> b n d h w", b=len(features[-1]))


class UPerNetProxyHead(nn.Module):
    """The head of Table 3, row 6: stage 2's adapter and UPerNet on each slice, a volume one slice deep.

    Args:
        embed_dim: E.
        channels: of the adapter's levels.
        num_classes: N.
        token_stride, depth_alignment: the adapter's.

    Attributes:
        num_maps: how many of the encoder's maps it takes.
    """

    num_maps = NUM_FEATURE_MAPS

    def __init__(
        self, embed_dim: int, channels: int, num_classes: int, token_stride: int, depth_alignment: DepthAlignment
    ) -> None:
        super().__init__()
        self.adapter = Adapter3D(embed_dim, channels, token_stride, depth_alignment)
        self.decoder = UPerNetDecoder(channels, num_classes)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four maps ``(b, E, d, h, w)`` to logits ``(b, N, d, *size)``."""
        slices = [rearrange(feature, "b e d h w -> (b d) e 1 h w") for feature in features]
        logits = self.decoder(self.adapter(slices), (1, *size))
        return rearrange(logits, "(b d) n 1 h w -> b n d h w", b=len(features[-1]))
