"""nnFormer: a U-shaped transformer in windows of a volume (Zhou et al., TIP 2023, arXiv 2109.03201).

Built from a description of the official code and compared with its outputs. Maps are ``(B, D, H, W, C)`` inside.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork, padded_size
from nnunetv2_dinomed3d.network_architecture.baselines.window_attention import (
    Block,
    RelativePosition,
    SelfAttention,
    SkipAttention,
    SkipBlock,
    Windows,
)

CHANNELS_FIRST = "b d h w c -> b c d h w"
CHANNELS_LAST = "b c d h w -> b d h w c"

STEM_STRIDES = {1: (1, 1), 2: (2, 1), 4: (2, 2)}
"""The stem's stride on an axis -> the strides of its first and of its third convolution."""


@dataclass(frozen=True)
class Level:
    """One resolution of the U, the same for encoder and decoder.

    Attributes:
        channels, num_heads, window, depth: of its blocks and their number.
        grid: ``(D, H, W)`` tokens of the patch size.
    """

    channels: int
    num_heads: int
    window: int | Sequence[int]
    depth: int
    grid: tuple[int, ...]

    def windows(self, shifted: bool) -> Windows:
        """The windows of a block that asks for a shift or does not."""
        return Windows.on(self.grid, self.window, shifted)

    def block(self, index: int, relative_position: RelativePosition, drop_path: float) -> Block:
        """A block of self-attention; every second one asks for a shift."""
        attention = SelfAttention(self.channels, self.num_heads, self.windows(index % 2 == 1), relative_position)
        return Block(attention, self.channels, drop_path)


class Stem(nn.Module):
    """Four convolutions 3x3x3, the first and the third with strides; LayerNorm after each, GELU before all but the last
    LayerNorm."""

    def __init__(self, in_channels: int, channels: int, stride: Sequence[int]) -> None:
        super().__init__()
        first, third = zip(*(STEM_STRIDES[step] for step in stride), strict=True)
        half = channels // 2
        self.convolutions = nn.ModuleList(
            [
                nn.Conv3d(in_channels, half, 3, stride=first, padding=1),
                nn.Conv3d(half, half, 3, padding=1),
                nn.Conv3d(half, channels, 3, stride=third, padding=1),
                nn.Conv3d(channels, channels, 3, padding=1),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in (half, half, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """An image ``(B, C, D, H, W)`` to tokens ``(B, d, h, w, channels)``."""
        for i, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(rearrange(x, CHANNELS_FIRST) if i else x)
            x = norm(rearrange(x if i == 3 else F.gelu(x), CHANNELS_LAST))
        return x


class Downsampling(nn.Module):
    """GELU, LayerNorm and a convolution of stride 2 to twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.convolution = nn.Conv3d(channels, 2 * channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, H, W, C)`` to ``(B, D / 2, H / 2, W / 2, 2 C)``."""
        return rearrange(self.convolution(rearrange(self.norm(F.gelu(x)), CHANNELS_FIRST)), CHANNELS_LAST)


class Encoder(nn.Module):
    """Stem and levels.

    Args:
        in_channels: of the image.
        stem: its stride per axis.
        levels: the finest first.
        relative_position: see `window_attention.relative_positions`.
        drop_path: rate of the last block; it grows from 0 block by block.
    """

    def __init__(
        self,
        in_channels: int,
        stem: Sequence[int],
        levels: Sequence[Level],
        relative_position: RelativePosition,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, levels[0].channels, stem)
        rates = iter(_growing(drop_path, sum(level.depth for level in levels)))
        self.levels = nn.ModuleList(
            nn.Sequential(*(level.block(i, relative_position, next(rates)) for i in range(level.depth)))
            for level in levels
        )
        self.norms = nn.ModuleList(nn.LayerNorm(level.channels) for level in levels)
        self.downsampling = nn.ModuleList(Downsampling(level.channels) for level in levels[:-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(B, C, D, H, W)`` to the skips ``(B, d_i, h_i, w_i, c_i)``, the finest first; the last is the bottom."""
        x = self.stem(x)
        skips = []
        for i, (blocks, norm) in enumerate(zip(self.levels, self.norms, strict=True)):
            x = blocks(self.downsampling[i - 1](x) if i else x)
            skips.append(norm(x))
        return skips


class DecoderLevel(nn.Module):
    """LayerNorm and a transposed convolution up to this level, skip attention, further blocks."""

    def __init__(self, level: Level, relative_position: RelativePosition, drop_path: Sequence[float]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * level.channels)
        self.upsampling = nn.ConvTranspose3d(2 * level.channels, level.channels, 2, stride=2)
        attention = SkipAttention(level.channels, level.num_heads, level.windows(False), relative_position)
        further = (level.block(i, relative_position, drop_path[i]) for i in range(1, level.depth))
        self.blocks = nn.ModuleList([SkipBlock(attention, level.channels, drop_path[0]), *further])

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """``(B, D / 2, H / 2, W / 2, 2 C)`` and ``(B, D, H, W, C)`` to the latter's shape."""
        x = rearrange(self.upsampling(rearrange(self.norm(below), CHANNELS_FIRST)), CHANNELS_LAST)
        x = self.blocks[0](x, skip)
        for block in self.blocks[1:]:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Levels, the finest first, and a transposed convolution to logits for each of the finest ones.

    Args:
        num_classes: N, segmentation heads.
        stem: stride of the stem per axis, which the logits undo.
        levels: without the bottom.
        relative_position: see `window_attention.relative_positions`.
        drop_path: rate of the finest level's last block; it grows from 0 block by block, from the deepest level on.
        num_outputs: levels with logits.
    """

    def __init__(
        self,
        num_classes: int,
        stem: Sequence[int],
        levels: Sequence[Level],
        relative_position: RelativePosition,
        drop_path: float,
        num_outputs: int,
    ) -> None:
        super().__init__()
        rates = _growing(drop_path, sum(level.depth for level in levels))
        built: list[nn.Module] = []
        for level in levels:
            rates, own = rates[: -level.depth], rates[-level.depth :]
            built.append(DecoderLevel(level, relative_position, own))
        self.levels = nn.ModuleList(built)
        step = (stem[0], stem[1], stem[2])
        self.seg_layers = nn.ModuleList(
            nn.ConvTranspose3d(level.channels, num_classes, step, stride=step) for level in levels[:num_outputs]
        )

    def forward(self, skips: list[Tensor], num_outputs: int) -> list[Tensor]:
        """Skips ``(B, d_i, h_i, w_i, c_i)`` to logits ``(B, N, D / 2^i, H / 2^i, W / 2^i)``, both the finest first."""
        x = skips[-1]
        maps: list[Tensor] = []
        for level, skip in zip(reversed(self.levels), reversed(skips[:-1]), strict=True):
            x = level(x, skip)
            maps.insert(0, x)
        return [self.seg_layers[i](rearrange(maps[i], CHANNELS_FIRST)) for i in range(num_outputs)]


class NNFormer(AnySizeNetwork):
    """nnFormer, by default as the official code has it for the Synapse data set.

    A level halves the grid of the one above and has twice the channels. How large windows are, and so the shapes of the
    position biases, follows from the patch size; inputs of other sizes keep these windows.

    Args:
        in_channels: C.
        num_classes: N, segmentation heads.
        patch_size: ``(D, H, W)``.
        embed_dim: channels of the finest level.
        num_heads, window_sizes, depths: of each level, the finest first: heads, side of a window in tokens (one number
            or one per axis, see `window_attention.Windows.on`) and blocks.
        stem: stride of the stem on each axis, 1, 2 or 4.
        drop_path: the highest rate of stochastic depth.
        relative_position: "fixed", or "official" for weights that the official code trained: its index of relative
            positions is wrong (`window_attention.relative_positions`).
        num_outputs: outputs of deep supervision, each half the size of the one before; the official code builds one
            where it trains without.

    Raises:
        ValueError: levels differ in number, heads do not divide the channels, or the stem or the number of outputs is
            none of those above.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        *,
        embed_dim: int = 192,
        num_heads: Sequence[int] = (6, 12, 24, 48),
        window_sizes: Sequence[int | Sequence[int]] = (4, 4, 8, 4),
        depths: Sequence[int] = (2, 2, 2, 2),
        stem: Sequence[int] = (2, 4, 4),
        drop_path: float = 0.2,
        relative_position: RelativePosition = "fixed",
        num_outputs: int = 3,
    ) -> None:
        if not 1 <= num_outputs < len(depths):
            raise ValueError(f"{len(depths)} levels have 1 to {len(depths) - 1} outputs, not {num_outputs}.")
        if not set(stem) <= set(STEM_STRIDES):
            raise ValueError(f"The stem's strides are 1, 2 or 4, not {tuple(stem)}.")
        super().__init__([step * 2 ** (len(depths) - 1) for step in stem])
        tokens = [side // step for side, step in zip(padded_size(patch_size, self.divisor), stem, strict=True)]
        levels = [
            Level(embed_dim * 2**i, heads, window, depth, tuple(side // 2**i for side in tokens))
            for i, (heads, window, depth) in enumerate(zip(num_heads, window_sizes, depths, strict=True))
        ]
        for level in levels:
            if level.channels % level.num_heads:
                raise ValueError(f"{level.num_heads} heads do not divide {level.channels} channels.")
        self.encoder = Encoder(in_channels, stem, levels, relative_position, drop_path)
        self.decoder = Decoder(num_classes, stem, levels[:-1], relative_position, drop_path, num_outputs)

    def logits(self, x: Tensor) -> list[Tensor]:
        """``(B, C, D, H, W)`` to logits ``(B, N, D / 2^i, H / 2^i, W / 2^i)``, the finest first."""
        return self.decoder(self.encoder(x), len(self.decoder.seg_layers) if self.deep_supervision else 1)


def _growing(highest: float, count: int) -> list[float]:
    """Rates in equal steps from 0 to the highest."""
    return [highest * i / max(count - 1, 1) for i in range(count)]
