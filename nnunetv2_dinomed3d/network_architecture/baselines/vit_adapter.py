"""ViT-Adapter with extractors only: four maps at strides 4 to 32 from a frozen ViT (Chen et al., ICLR 2023).

Dino U-Net's (Gao et al., arXiv 2508.20909): convolutions on the image give the queries, the ViT's maps are what they
read, and nothing is written back into the ViT.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines.deformable_attention import DeformableAttention, cell_centres

SCALES = 4
"""Maps of the adapter, and maps of the ViT that it takes."""

EXTRA_EXTRACTORS = 2
"""Extractors that the last interaction has more than the others."""

DROP_PATH = 0.3
"""How often an extractor's feed-forward network is left out in training, sample by sample."""

Size = tuple[int, int]


def _tokens(feature_map: Tensor) -> Tensor:
    return rearrange(feature_map, "b e h w -> b (h w) e")


def _maps(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Tokens ``(b, n, e)`` of several maps one after the other, back to maps ``(b, e, h, w)``."""
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [rearrange(part, "b (h w) e -> b e h w", h=size[0]) for part, size in zip(parts, sizes, strict=True)]


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, in_channels, h, w)`` to ``(b, out_channels, h / stride, w / stride)``."""
        return F.relu(self.norm(self.conv(x)), inplace=True)


class SpatialPrior(nn.Module):
    """Convolutions on the image: maps at strides 4, 8, 16 and 32, projected to the ViT's width.

    Args:
        channels: E, of each map.
        image_channels: of the image.
        width: of the convolutions at stride 4; at most four times as many further down.
    """

    def __init__(self, channels: int, image_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNormReLU(image_channels, width, 2),
            ConvNormReLU(width, width, 1),
            ConvNormReLU(width, width, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.downsampling = nn.ModuleList(ConvNormReLU(above, own, 2) for above, own in pairwise(widths))
        self.projections = nn.ModuleList(nn.Conv2d(own, channels, 1) for own in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(b, image channels, H, W)`` to four maps ``(b, E, h_i, w_i)``, fine to coarse."""
        levels = [self.stem(x)]
        for halving in self.downsampling:
            levels.append(halving(levels[-1]))
        return [projection(level) for projection, level in zip(self.projections, levels, strict=True)]


class ConvFFN(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution between its linear layers, one for all scales.

    Args:
        channels: E.
        ratio: hidden channels over E.
    """

    def __init__(self, channels: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.first = nn.Linear(channels, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.last = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor, sizes: Sequence[Size]) -> Tensor:
        """``(b, n, E)``, the tokens of maps of these sizes; same shape out."""
        hidden = [_tokens(self.depthwise(level)) for level in _maps(self.first(tokens), sizes)]
        return self.last(F.gelu(torch.cat(hidden, dim=1)))


class Extractor(nn.Module):
    """Queries read a map of the ViT by deformable attention; then a feed-forward network.

    Args:
        channels: E.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(channels, eps=1e-6)
        self.value_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attention = DeformableAttention(channels)
        self.ffn_norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn = ConvFFN(channels)
        self.drop_path = DropPath(DROP_PATH)

    def forward(self, queries: Tensor, places: Tensor, sizes: Sequence[Size], values: Tensor) -> Tensor:
        """The queries with what they read added.

        Args:
            queries: ``(b, n, E)``, the tokens of maps of these sizes.
            places: ``(n, 2)``, (x, y) of each query in [0, 1].
            sizes: ``(h_i, w_i)`` of the queries' maps.
            values: the ViT's map, ``(b, h, w, E)``.
        """
        queries = queries + self.attention(self.query_norm(queries), places, self.value_norm(values))
        return queries + self.drop_path(self.ffn(self.ffn_norm(queries), sizes))


class Interaction(nn.ModuleList):
    """Extractors that read the same map one after the other."""

    def forward(self, queries: Tensor, places: Tensor, sizes: Sequence[Size], values: Tensor) -> Tensor:
        """See `Extractor`."""
        for extractor in self:
            queries = extractor(queries, places, sizes, values)
        return queries


class ViTAdapter(nn.Module):
    """Spatial prior, one interaction for each of the ViT's four maps, and their sum at strides 4, 8, 16 and 32.

    The prior's maps at strides 8 to 32 are the queries; that at stride 4 joins at the end.

    Args:
        channels: E, of the ViT's maps and of the result's.
        image_channels: of the image that the prior sees.
    """

    def __init__(self, channels: int, image_channels: int = 3) -> None:
        super().__init__()
        self.prior = SpatialPrior(channels, image_channels)
        self.level_embedding = nn.Parameter(torch.empty(SCALES - 1, channels))
        nn.init.normal_(self.level_embedding)
        counts = [1] * (SCALES - 1) + [1 + EXTRA_EXTRACTORS]
        self.interactions = nn.ModuleList(Interaction(Extractor(channels) for _ in range(n)) for n in counts)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(SCALES))

    def forward(self, x: Tensor, vit_maps: Sequence[Tensor]) -> list[Tensor]:
        """The image ``(b, image channels, H, W)`` and the ViT's four maps ``(b, E, H / 16, W / 16)``, shallow to deep.

        Returns:
            Four maps ``(b, E, h_i, w_i)``, fine to coarse.
        """
        finest, *coarser = self.prior(x)
        coarser = self._interact(coarser, vit_maps)
        levels = [finest + self.up(coarser[0]), *coarser]
        return [
            norm(level + F.interpolate(vit_map, size=level.shape[2:], mode="bilinear", align_corners=False))
            for norm, level, vit_map in zip(self.norms, levels, vit_maps, strict=True)
        ]

    def _interact(self, levels: Sequence[Tensor], vit_maps: Sequence[Tensor]) -> list[Tensor]:
        """Three maps ``(b, E, h_i, w_i)`` that take up the ViT's maps one after the other."""
        sizes: list[Size] = [(level.shape[2], level.shape[3]) for level in levels]
        embedded = [_tokens(level) + own for level, own in zip(levels, self.level_embedding, strict=True)]
        queries = torch.cat(embedded, dim=1)
        places = cell_centres(sizes, like=queries)
        for interaction, vit_map in zip(self.interactions, vit_maps, strict=True):
            queries = interaction(queries, places, sizes, rearrange(vit_map, "b e h w -> b h w e"))
        return _maps(queries, sizes)
