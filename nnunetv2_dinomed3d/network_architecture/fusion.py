"""Gated fusion (AGF) of the context and the detail stream (DINO-Med3D, stage 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PairConv(nn.Conv3d):
    """1x1x1 convolution of two maps side by side, without putting them there.

    Args:
        channels: of each map and of the result.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(2 * channels, channels, 1)

    def forward(self, *maps: Tensor) -> Tensor:
        """Both ``(b, channels, d, h, w)``, same shape out."""
        (first, second), (of_first, of_second) = maps, self.weight.chunk(2, dim=1)
        return F.conv3d(first, of_first, self.bias).add_(F.conv3d(second, of_second))


class GatedFusion(nn.Module):
    """``F = F_sem + sigmoid(conv1x1x1([F_sem, F_det])) * F_det``.

    Args:
        channels: of both inputs and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = PairConv(channels)

    def forward(self, semantic: Tensor, detail: Tensor) -> Tensor:
        """Both ``(b, channels, d, h, w)``; the detail is resized to the semantic grid where they differ."""
        if detail.shape[2:] != semantic.shape[2:]:
            detail = F.interpolate(detail, size=semantic.shape[2:], mode="trilinear", align_corners=False)
        return torch.addcmul(semantic, torch.sigmoid(self.gate(semantic, detail)), detail)
