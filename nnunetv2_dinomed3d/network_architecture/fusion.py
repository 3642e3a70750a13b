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
        # the two halves of the convolution, so that nothing is concatenated
        of_semantic, of_detail = self.gate.weight.split(semantic.shape[1], dim=1)
        gate = F.conv3d(semantic, of_semantic, self.gate.bias).add_(F.conv3d(detail, of_detail)).sigmoid_()
        return torch.addcmul(semantic, gate, detail)
