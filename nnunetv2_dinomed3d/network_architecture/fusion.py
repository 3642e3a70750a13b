"""Adaptive gated fusion (AGF) of context and detail stream (DINO-Med3D, section 2.3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.efficiency.upsampled_conv import ConcatConv1x1


class GatedFusion(nn.Module):
    """``F = F_sem + G * F_det`` (Eq. 3) with the gate ``G = sigmoid(conv1x1x1([F_sem, F_det]))`` (Eq. 2).

    Args:
        channels: of both inputs and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = ConcatConv1x1(channels)

    def forward(self, semantic: Tensor, detail: Tensor) -> Tensor:
        """Both ``(b, channels, d, h, w)``; the detail is resized to the semantic grid if they differ."""
        if detail.shape[2:] != semantic.shape[2:]:
            detail = F.interpolate(detail, size=semantic.shape[2:], mode="trilinear", align_corners=False)
        return torch.addcmul(semantic, torch.sigmoid(self.gate([semantic, detail])), detail)
