"""Gated fusion (AGF) of the context and the detail stream (DINO-Med3D, stage 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """``F = F_sem + sigmoid(conv1x1x1([F_sem, F_det])) * F_det``.

    Args:
        channels: of both inputs and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, semantic: Tensor, detail: Tensor) -> Tensor:
        """Both ``(b, channels, d, h, w)``; the detail is resized to the semantic grid where they differ."""
        if detail.shape[2:] != semantic.shape[2:]:
            detail = F.interpolate(detail, size=semantic.shape[2:], mode="trilinear", align_corners=False)
        gate = torch.sigmoid(self.gate(torch.cat([semantic, detail], dim=1)))
        return semantic + gate * detail
