"""Deformable attention of one level, by `grid_sample` (Zhu et al., Deformable DETR, ICLR 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def cell_centres(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Centres (x, y) in [0, 1] of the cells of maps ``(h, w)``, each map's own in row order, ``(sum of h w, 2)``.

    Args:
        sizes: of the maps.
        like: a tensor of the dtype and device wanted.
    """
    centres = [
        torch.cartesian_prod(
            *((torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in size)
        )
        for size in sizes
    ]
    return torch.cat(centres).flip(-1)


def sampled_sum(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of a map at some points, bilinear and zero outside.

    Args:
        value: ``(n, d, h, w)``.
        locations: (x, y) of p points per query, in [0, 1] from edge to edge of the map, ``(n, q, p, 2)``.
        weights: ``(n, q, p)``.

    Returns:
        ``(n, d, q)``.
    """
    sampled = F.grid_sample(value, 2 * locations - 1, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (sampled * weights[:, None]).sum(-1)


class DeformableAttention(nn.Module):
    """Each query reads a map at a few points around its own place; offsets and weights are linear in the query.

    Locations are in float32 under autocast too: float16 would be coarse on large maps.

    Args:
        channels: E, of queries, map and result.
        heads: each with offsets and weights of its own.
        points: per head.
        ratio: channels of the values (all heads together) over E.
    """

    def __init__(self, channels: int, heads: int = 16, points: int = 4, ratio: float = 0.5) -> None:
        super().__init__()
        width = int(channels * ratio)
        if width % heads:
            raise ValueError(f"{width} channels of the values cannot be divided among {heads} heads.")
        self.heads, self.points = heads, points
        self.value = nn.Linear(channels, width)
        self.offsets = nn.Linear(channels, heads * points * 2)
        self.weights = nn.Linear(channels, heads * points)
        self.output = nn.Linear(width, channels)
        self._initialise()

    def _initialise(self) -> None:
        """As in Deformable DETR: equal weights; point p of a head is p cells away, in the head's own direction."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        with torch.no_grad():
            self.offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())

    def forward(self, query: Tensor, places: Tensor, values: Tensor) -> Tensor:
        """Queries ``(b, q, E)`` at places ``(q, 2)``, (x, y) in [0, 1], read ``(b, h, w, E)``; ``(b, q, E)`` out."""
        height, width = values.shape[1:3]
        value = rearrange(self.value(values), "b h w (m d) -> (b m) d h w", m=self.heads)
        offsets = rearrange(self.offsets(query), "b q (m p xy) -> xy (b m) q p", m=self.heads, xy=2)
        offset_x, offset_y = offsets.to(places.dtype)
        weights = rearrange(self.weights(query), "b q (m p) -> (b m) q p", m=self.heads).softmax(-1)
        locations = places[:, None] + torch.stack([offset_x / width, offset_y / height], -1)
        heads = sampled_sum(value.to(locations.dtype), locations, weights)
        return self.output(rearrange(heads, "(b m) d q -> b q (m d)", m=self.heads))
