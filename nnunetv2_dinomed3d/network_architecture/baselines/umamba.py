"""U-Mamba: nnU-Net's residual U-Net with Mamba layers (Ma et al., arXiv 2401.04722), in 2D and 3D.

Built from a description of the official code and compared with its outputs.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork, padded_size
from nnunetv2_dinomed3d.network_architecture.baselines.mamba import MambaLayer

FEATURES = (32, 64, 128, 256, 320, 320)

SLOPE = 1e-2
"""Of LeakyReLU."""

PerAxis = Sequence[int]


class ResidualBlock(nn.Module):
    """Two convolutions with InstanceNorm, and a shortcut, before the last LeakyReLU.

    Args:
        in_channels, out_channels: of the maps.
        kernel: of both convolutions, per axis.
        stride: of the first convolution, per axis. None is a stride of 1 and a shortcut without a convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: PerAxis, stride: PerAxis | None = None) -> None:
        super().__init__()
        convolution = convert_dim_to_conv_op(len(kernel))
        norm = get_matching_instancenorm(convolution)
        padding = tuple(side // 2 for side in kernel)
        self.conv1 = convolution(in_channels, out_channels, tuple(kernel), stride=stride or 1, padding=padding)
        self.norm1 = norm(out_channels, affine=True)
        self.conv2 = convolution(out_channels, out_channels, tuple(kernel), padding=padding)
        self.norm2 = norm(out_channels, affine=True)
        self.shortcut = nn.Identity() if stride is None else convolution(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, *size)`` to ``(B, out_channels, *size)``, each side divided by the stride."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), SLOPE, inplace=True)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.shortcut(x), SLOPE, inplace=True)


def residual_blocks(in_channels: int, out_channels: int, kernel: PerAxis, stride: PerAxis, count: int) -> nn.Sequential:
    """``count`` blocks, the first with the stride and a convolution as shortcut."""
    first = ResidualBlock(in_channels, out_channels, kernel, tuple(stride))
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, kernel) for _ in range(count - 1)))


class Encoder(nn.Module):
    """Stem and stages of residual blocks, a Mamba layer or nothing after each stage.

    Args:
        in_channels: of the image.
        features, kernel_sizes, strides, num_blocks: of the stages.
        mamba_layers: of the stages; `torch.nn.Identity` where there is none.
    """

    def __init__(
        self,
        in_channels: int,
        features: Sequence[int],
        kernel_sizes: Sequence[PerAxis],
        strides: Sequence[PerAxis],
        num_blocks: Sequence[int],
        mamba_layers: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        once = (1,) * len(kernel_sizes[0])
        self.stem = residual_blocks(in_channels, features[0], kernel_sizes[0], once, num_blocks[0])
        inputs = (features[0], *features[:-1])
        stages = zip(inputs, features, kernel_sizes, strides, num_blocks, strict=True)
        self.stages = nn.ModuleList(residual_blocks(*stage) for stage in stages)
        self.mamba_layers = nn.ModuleList(mamba_layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, C, *size)`` to the maps of the stages, the finest first."""
        x = self.stem(x)
        skips = []
        for stage, mamba in zip(self.stages, self.mamba_layers, strict=True):
            x = mamba(stage(x))
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Upsampling, residual blocks and a segmentation head per resolution, the coarsest first.

    Args:
        num_classes: N, segmentation heads.
        features, kernel_sizes: of the encoder's stages, the finest first.
        num_blocks: of the decoder's stages, the coarsest first.
    """

    def __init__(
        self, num_classes: int, features: Sequence[int], kernel_sizes: Sequence[PerAxis], num_blocks: Sequence[int]
    ) -> None:
        super().__init__()
        convolution = convert_dim_to_conv_op(len(kernel_sizes[0]))
        once = (1,) * len(kernel_sizes[0])
        below, widths, kernels = features[:0:-1], features[-2::-1], kernel_sizes[-2::-1]
        self.reductions = nn.ModuleList(convolution(*pair, 1) for pair in zip(below, widths, strict=True))
        self.stages = nn.ModuleList(
            residual_blocks(2 * width, width, kernel, once, count)
            for width, kernel, count in zip(widths, kernels, num_blocks, strict=True)
        )
        self.seg_layers = nn.ModuleList(convolution(width, num_classes, 1) for width in widths)

    def forward(self, skips: list[Tensor], all_heads: bool) -> list[Tensor]:
        """Maps of the encoder, the finest first, to logits, the finest first; of all resolutions or of the finest."""
        x = skips[-1]
        logits = []
        for i, skip in enumerate(reversed(skips[:-1])):
            # as upsampled first, with fewer voxels: the convolution is 1x1 and the upsampling copies
            up = F.interpolate(self.reductions[i](x), size=skip.shape[2:], mode="nearest")
            x = self.stages[i](torch.cat([up, skip], dim=1))
            if all_heads or i == len(self.stages) - 1:
                logits.append(self.seg_layers[i](x))
        return logits[::-1]


class UMamba(AnySizeNetwork):
    """U-Mamba Bot and Enc.

    With Mamba layers in the encoder, a stage that has no more voxels than channels takes its channels as tokens. Its
    weights then depend on the patch size, and inputs must have that size. Where there are no CUDA kernels of mamba-ssm,
    `Mamba` computes in PyTorch.

    Args:
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: of one sample, ``(D, H, W)`` or ``(H, W)``.
        mamba: one layer after the last stage (Bot), or one after every stage (Enc).
        features: channels of the stages, the finest first.
        kernel_sizes: of the stages, per axis; 3 by default.
        strides: of the stages, per axis; by default 1, then 2.
        num_blocks: of the stages. From the middle on, the encoder's stages have one, whatever is asked for.
        num_decoder_blocks: of the decoder's stages, the coarsest first; likewise.

    Raises:
        ValueError: features, kernel sizes and strides are not of equally many stages.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        *,
        mamba: Literal["bottleneck", "encoder"],
        features: Sequence[int] = FEATURES,
        kernel_sizes: Sequence[PerAxis] | None = None,
        strides: Sequence[PerAxis] | None = None,
        num_blocks: int | Sequence[int] = 2,
        num_decoder_blocks: int | Sequence[int] = 2,
    ) -> None:
        axes, stages = len(patch_size), len(features)
        kernel_sizes = kernel_sizes or [(3,) * axes] * stages
        strides = strides or [(1,) * axes, *[(2,) * axes] * (stages - 1)]
        if not len(kernel_sizes) == len(strides) == stages:
            raise ValueError(
                f"{stages} features, {len(kernel_sizes)} kernel_sizes and {len(strides)} strides: give one of each for "
                "every stage."
            )
        super().__init__([math.prod(steps) for steps in zip(*strides, strict=True)], min_cells=2)
        self.patch_size = tuple(patch_size)
        self.padded_patch = padded_size(patch_size, self.divisor, self.min_cells)
        voxels = _stage_voxels(self.padded_patch, strides)
        mamba_layers = _mamba_layers(mamba, features, voxels)
        in_encoder = _at_most_one_from(math.ceil(stages / 2), num_blocks, stages)
        in_decoder = _at_most_one_from(math.ceil(stages / 2), num_decoder_blocks, stages - 1)
        self.encoder = Encoder(in_channels, features, kernel_sizes, strides, in_encoder, mamba_layers)
        self.decoder = Decoder(num_classes, features, kernel_sizes, in_decoder)
        self.fixed_size = any(isinstance(layer, MambaLayer) and layer.channel_tokens for layer in mamba_layers)
        self.apply(InitWeights_He(SLOPE))

    def logits(self, x: Tensor) -> list[Tensor]:
        """``(B, C, *size)`` to logits, the finest first."""
        size = tuple(x.shape[2:])
        if self.fixed_size and size != self.padded_patch:
            raise ValueError(
                f"This U-Mamba was built for patches of {self.patch_size} and the input has {size}: its Mamba layers "
                "take channels as tokens, and their weights depend on the patch size."
            )
        return self.decoder(self.encoder(x), self.deep_supervision)


def _stage_voxels(size: Sequence[int], strides: Sequence[PerAxis]) -> list[int]:
    voxels = []
    for stride in strides:
        size = [side // step for side, step in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
    return voxels


def _mamba_layers(mamba: str, features: Sequence[int], voxels: Sequence[int]) -> list[nn.Module]:
    if mamba == "encoder":
        both = zip(features, voxels, strict=True)
        return [MambaLayer(channels, count if count <= channels else None) for channels, count in both]
    if mamba == "bottleneck":
        return [*(nn.Identity() for _ in features[:-1]), MambaLayer(features[-1])]
    raise ValueError(f"Mamba layers are in the 'encoder' or at the 'bottleneck', not {mamba!r}.")


def _at_most_one_from(first: int, num_blocks: int | Sequence[int], stages: int) -> list[int]:
    asked = [num_blocks] * stages if isinstance(num_blocks, int) else list(num_blocks)
    return [count if stage < first else 1 for stage, count in enumerate(asked)]
