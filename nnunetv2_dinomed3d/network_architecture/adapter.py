"""3D adapter: four equally sized volumes of ViT features become a pyramid (DINO-Med3D, section 2.3.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.norm import InstanceNorm3d
from nnunetv2_dinomed3d.network_architecture.options import DepthAlignment

LEVEL_STRIDES = (4, 8, 16, 32)
"""In-plane strides of the pyramid's levels, in voxels."""


class MeanOfTokens(nn.Module):
    """Mean over squares of tokens in plane; at the far border, over the tokens that are there.

    Args:
        side: of a square, in tokens.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, d, h, w)`` to ``(b, c, d, ceil(h / side), ceil(w / side))``."""
        stride = (1, self.side, self.side)
        kernel = (1, min(self.side, x.shape[3]), min(self.side, x.shape[4]))  # PyTorch takes none larger than the map
        return F.avg_pool3d(x, kernel, stride, ceil_mode=True)


def _resample(channels: int, level_stride: int, token_stride: int, depth_alignment: DepthAlignment) -> nn.Module:
    """Convolutions from the token grid to a level's grid, in plane only; every token reaches it."""
    if level_stride < token_stride:
        factor = token_stride // level_stride
        kernel_depth, padding_depth = (factor, 0) if depth_alignment == "released" else (3, 1)
        return nn.ConvTranspose3d(
            channels,
            channels,
            (kernel_depth, factor, factor),
            stride=(1, factor, factor),
            padding=(padding_depth, 0, 0),
        )
    if level_stride == token_stride:
        return nn.Identity()
    halving = nn.Conv3d(channels, channels, 3, stride=(1, 2, 2), padding=1)
    if level_stride == 2 * token_stride:
        return halving
    # a convolution of stride 4 or 8 would never touch most tokens
    pool = level_stride // token_stride // 2
    return nn.Sequential(MeanOfTokens(pool), halving)


class Adapter3D(nn.Module):
    """Feature pyramid at in-plane strides 4, 8, 16 and 32; the depth stays.

    Args:
        in_channels: E, channels of each ViT feature map.
        channels: of each level.
        token_stride: voxels per token in plane, 16 / S.
        depth_alignment: "exact" keeps the depth D (kernel 3, padding 1 along it). "released" is the published code's:
            its transposed convolutions use their factor as kernel in depth, stride 1 and no padding, which makes
            D + 3 and D + 1 slices. Checkpoints that were trained so need it.
    """

    def __init__(self, in_channels: int, channels: int, token_stride: int, depth_alignment: DepthAlignment) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(in_channels, channels, 1, bias=False),
                InstanceNorm3d(channels),
                nn.PReLU(),
                _resample(channels, level_stride, token_stride, depth_alignment),
            )
            for level_stride in LEVEL_STRIDES
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Four maps ``(b, E, d, h, w)``, shallow to deep, to four ``(b, channels, d, h_i, w_i)``, fine to coarse."""
        return [level(feature) for level, feature in zip(self.levels, features, strict=True)]
