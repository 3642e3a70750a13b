"""Detail stream (HRSE): a small 3D CNN beside the ViT (DINO-Med3D, section 2.3.2)."""

from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.norm import InstanceNorm3d


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions with InstanceNorm, added to the input.

    Args:
        in_channels, out_channels: of the block.
        stride: in plane, of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        strides = (1, stride, stride)
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, strides, padding=1, bias=False),
            InstanceNorm3d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False),
            InstanceNorm3d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, strides, bias=False), InstanceNorm3d(out_channels)
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c_in, d, h, w)`` to ``(b, c_out, d, ceil(h / stride), ceil(w / stride))``."""
        return self.activation(self.body(x).add_(self.shortcut(x)))


class DetailEncoder(nn.Module):
    """HRSE: features at full, 1/2 and 1/4 in-plane scale, the depth kept throughout.

    Args:
        in_channels: C.
        channels: at full scale; doubled at each of the two others.
        out_channels: of the 1/4 scale's projection, the decoder's width.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.scale_1 = nn.Sequential(
            nn.Conv3d(in_channels, channels, 3, padding=1, bias=False),
            InstanceNorm3d(channels),
            nn.ReLU(inplace=True),
            ResidualBlock(channels, channels),
        )
        self.scale_2 = nn.Sequential(
            ResidualBlock(channels, 2 * channels, stride=2), ResidualBlock(2 * channels, 2 * channels)
        )
        self.scale_4 = nn.Sequential(
            ResidualBlock(2 * channels, 4 * channels, stride=2), ResidualBlock(4 * channels, 4 * channels)
        )
        self.projection = nn.Conv3d(4 * channels, out_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(b, C, d, h, w)`` to maps of ``channels``, ``2 * channels`` and ``out_channels`` at h, h / 2, h / 4."""
        full = self.scale_1(x)
        half = self.scale_2(full)
        return full, half, self.projection(self.scale_4(half))
