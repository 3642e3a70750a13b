"""Fidelity-aware projection of a ViT's wide maps to a U-Net's widths (Dino U-Net, Gao et al., arXiv 2508.20909)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Each channel times a number in (0, 1) made of all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, channels, h, w)``, same shape out."""
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))


class Refinement(nn.Module):
    """Projection to fewer channels, a depthwise-separable convolution, a 1x1 one and squeeze-and-excitation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, out_channels, 1)
        self.projection_norm = nn.InstanceNorm2d(out_channels, affine=True)
        self.depthwise = nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels)
        self.pointwise = nn.Conv2d(out_channels, out_channels, 1)
        self.pointwise_norm = nn.InstanceNorm2d(out_channels, affine=True)
        self.mixing = nn.Conv2d(out_channels, out_channels, 1)
        self.excitation = SqueezeExcitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in_channels, h, w)`` to ``(b, out_channels, h, w)``."""
        x = F.leaky_relu(self.projection_norm(self.projection(x)), inplace=True)
        x = F.leaky_relu(self.pointwise_norm(self.pointwise(self.depthwise(x))), inplace=True)
        return self.excitation(self.mixing(x))


class FidelityProjection(nn.Module):
    """Each scale: a basis of its own, modulated by one that all scales share (FiLM); refinement and a shortcut.

    Args:
        channels: E, of each input map.
        features: channels of each output map, fine to coarse.
        rank: channels of the bases.
    """

    def __init__(self, channels: int, features: Sequence[int], rank: int = 256) -> None:
        super().__init__()
        self.shared_basis = nn.Conv2d(channels, rank, 1)
        self.own_bases = nn.ModuleList(nn.Conv2d(channels, rank, 1) for _ in features)
        self.modulations = nn.ModuleList(nn.Conv2d(rank, 2 * rank, 1) for _ in features)
        self.refinements = nn.ModuleList(Refinement(rank, width) for width in features)
        self.shortcuts = nn.ModuleList(
            nn.Identity() if width == rank else nn.Conv2d(rank, width, 1) for width in features
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Maps ``(b, E, h_i, w_i)`` to ``(b, features[i], h_i, w_i)``, both fine to coarse."""
        parts = zip(self.own_bases, self.modulations, self.refinements, self.shortcuts, levels, strict=True)
        outputs = []
        for own_basis, modulation, refinement, shortcut, level in parts:
            scale, shift = modulation(self.shared_basis(level)).chunk(2, dim=1)
            modulated = scale * own_basis(level) + shift
            outputs.append(refinement(modulated) + shortcut(modulated))
        return outputs
