"""UPerNet in 3D and the refinement that brings its result to full resolution (DINO-Med3D, sections 2.3.1, 2.3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.efficiency.dropout import Dropout
from nnunetv2_dinomed3d.network_architecture.efficiency.upsampled_conv import ConcatConv3d, resize
from nnunetv2_dinomed3d.network_architecture.efficiency.winograd import Conv3x3x3
from nnunetv2_dinomed3d.network_architecture.norm import InstanceNorm3d, group_norm

POOL_SCALES = (1, 2, 3, 6)


def _conv_norm_act(convolution: nn.Conv3d) -> nn.Sequential:
    return nn.Sequential(convolution, group_norm(convolution.out_channels), nn.PReLU())


class UPerNet3D(nn.Module):
    """Unified perceptual parsing (Xiao et al., ECCV 2018) on volumes.

    The coarsest level goes through pyramid pooling. From there down, each level's lateral is added to the (smoothed)
    level above it. All levels are resized to the finest and joined by one convolution.

    Args:
        channels: of each input level and of the result.
        num_maps: how many levels.
        dropout: on the joined features, element by element.
    """

    def __init__(self, channels: int, num_maps: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        pooled_channels = channels // len(POOL_SCALES)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool3d(scale), _conv_norm_act(nn.Conv3d(channels, pooled_channels, 1)))
            for scale in POOL_SCALES
        )
        self.bottleneck = _conv_norm_act(Conv3x3x3(channels + len(POOL_SCALES) * pooled_channels, channels))
        self.laterals = nn.ModuleList(_conv_norm_act(nn.Conv3d(channels, channels, 1)) for _ in range(num_maps - 1))
        self.smooth = nn.ModuleList(_conv_norm_act(Conv3x3x3(channels, channels)) for _ in range(num_maps - 1))
        self.fusion = nn.Sequential(_conv_norm_act(ConcatConv3d(num_maps * channels, channels)), Dropout(dropout))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Maps ``(b, channels, d_i, h_i, w_i)``, fine to coarse, to one on the finest grid."""
        coarsest = levels[-1]
        pooled = [resize(pool(coarsest), coarsest.shape[2:]) for pool in self.pools]
        outputs = [self.bottleneck(torch.cat([coarsest, *pooled], dim=1))]
        for i in reversed(range(len(levels) - 1)):
            lateral = self.laterals[i](levels[i])
            outputs.insert(0, self.smooth[i](lateral.add_(resize(outputs[0], lateral.shape[2:]))))
        return self.fusion(outputs)


class UPerNetDecoder(nn.Module):
    """UPerNet and the segmentation layer, without detail features: for the ablations.

    Args:
        channels: of the pyramid's levels.
        num_classes: N, segmentation heads.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.upernet = UPerNet3D(channels)
        self.seg_layers = nn.Conv3d(channels, num_classes, 1)

    def forward(self, levels: list[Tensor], size: tuple[int, int, int]) -> Tensor:
        """Pyramid (fine to coarse) to logits ``(b, N, *size)``, resized trilinearly; ``size`` is ``(d, h, w)``."""
        logits = self.seg_layers(self.upernet(levels))
        return F.interpolate(logits, size=size, mode="trilinear", align_corners=False)


class RefinementBlock(nn.Module):
    """Joins coarse decoder features with finer detail features.

    Args:
        in_channels: of the coarse features.
        detail_channels: of the detail features.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, detail_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConcatConv3d(in_channels + detail_channels, out_channels, bias=False),
            InstanceNorm3d(out_channels),
            nn.ReLU(inplace=True),
            Conv3x3x3(out_channels, out_channels, bias=False),
            InstanceNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor, detail: Tensor) -> Tensor:
        """``(b, in_channels, ...)`` and ``(b, detail_channels, d, h, w)`` to ``(b, out_channels, d, h, w)``."""
        return self.body([x, detail])


class Decoder(nn.Module):
    """UPerNet, two refinement blocks and the segmentation layer.

    Args:
        channels: of the pyramid's levels (256 in the paper).
        detail_channels: of the detail stream at full scale (16); 1/2 scale has twice as many.
        num_classes: N, segmentation heads.
    """

    def __init__(self, channels: int, detail_channels: int, num_classes: int) -> None:
        super().__init__()
        self.upernet = UPerNet3D(channels)
        self.refine_half = RefinementBlock(channels, 2 * detail_channels, 4 * detail_channels)
        self.refine_full = RefinementBlock(4 * detail_channels, detail_channels, 2 * detail_channels)
        self.seg_layers = nn.Conv3d(2 * detail_channels, num_classes, 1)

    def forward(self, levels: list[Tensor], half: Tensor, full: Tensor) -> Tensor:
        """Pyramid (fine to coarse) and detail at 1/2 and full scale to logits ``(b, N, d, h, w)`` on the full grid."""
        x = self.refine_half(self.upernet(levels), half)
        return self.segment(x, full)

    def segment(self, x: Tensor, full: Tensor) -> Tensor:
        """Features and detail at 1/2 and full scale to logits: one step, since recomputing keeps nothing between."""
        return self.seg_layers(self.refine_full(x, full))
