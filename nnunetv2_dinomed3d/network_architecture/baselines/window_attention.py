"""nnFormer's attention in shifted windows of a volume, and its blocks (Zhou et al., TIP 2023).

Maps are ``(B, D, H, W, C)`` throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines.any_size import padded_size

RelativePosition = Literal["fixed", "official"]
Triple = tuple[int, int, int]

MASKED = -100.0
"""What is added to the scores of two tokens that the shift alone brought into one window."""

AXES = "(nd wd) (nh wh) (nw ww)"
WINDOWS = "(b nd nh nw) heads (wd wh ww) c"


@dataclass(frozen=True)
class Windows:
    """How a map is cut into windows.

    Attributes:
        size: of a window, in tokens per axis.
        shift: of the windows against the map's corner, in tokens per axis.
    """

    size: Triple
    shift: Triple

    @classmethod
    def on(cls, grid: Sequence[int], window: int | Sequence[int], shifted: bool) -> "Windows":
        """The windows of a block, shifted by half a window if at all.

        Where the grid's shortest side is no longer than the window, windows are cubes of that side, without shift. A
        window of three numbers is reduced axis by axis instead: to the side where that is no longer than the window,
        without shift on this axis.

        Args:
            grid: ``(D, H, W)`` tokens, those of the patch size.
            window: side of a cube, or one side per axis.
            shifted: whether the block asks for a shift.
        """
        shortest = (min(grid),) * 3
        sides, wanted = (shortest, (window,) * 3) if isinstance(window, int) else (grid, window)
        depth, height, width = (min(side, most) for side, most in zip(sides, wanted, strict=True))
        shift = [most // 2 if shifted and side > most else 0 for side, most in zip(sides, wanted, strict=True)]
        return cls((depth, height, width), (shift[0], shift[1], shift[2]))

    @property
    def is_shifted(self) -> bool:
        """Whether the windows are shifted on any axis."""
        return any(self.shift)

    def shifted(self, x: Tensor) -> Tensor:
        """Zeros at the end of each axis up to whole windows, then the shift: windows now start at the corner."""
        grid = x.shape[1:4]
        depth, height, width = (new - old for new, old in zip(padded_size(grid, self.size), grid, strict=True))
        if depth or height or width:
            x = F.pad(x, (0, 0, 0, width, 0, height, 0, depth))
        return torch.roll(x, [-shift for shift in self.shift], (1, 2, 3)) if self.is_shifted else x

    def cut(self, x: Tensor, num_heads: int = 1) -> Tensor:
        """Whole windows ``(B, D, H, W, heads * c)`` to ``(B * windows, heads, tokens, c)``."""
        depth, height, width = self.size
        return rearrange(x, f"b {AXES} (heads c) -> {WINDOWS}", heads=num_heads, wd=depth, wh=height, ww=width)

    def joined(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """Undo `cut` and `shifted`: ``(B * windows, heads, tokens, c)`` to ``(B, *grid, heads * c)``."""
        depth, height, width = grid
        counts = [whole // side for whole, side in zip(padded_size(grid, self.size), self.size, strict=True)]
        sides = dict(zip(("nd", "nh", "nw", "wd", "wh"), (*counts, *self.size[:2]), strict=True))
        x = rearrange(tokens, f"{WINDOWS} -> b {AXES} (heads c)", **sides)
        x = torch.roll(x, self.shift, (1, 2, 3)) if self.is_shifted else x
        return x[:, :depth, :height, :width]

    def strangers(self, grid: Sequence[int], device: torch.device) -> Tensor:
        """Whether two tokens of a shifted window lie apart in the map, ``(windows, 1, tokens, tokens)``.

        Args:
            grid: of what `shifted` returns.
            device: of the result.
        """
        region = torch.zeros(tuple(grid), dtype=torch.int, device=device)
        for axis, (length, side, shift) in enumerate(zip(grid, self.size, self.shift, strict=True)):
            if shift:
                place = torch.arange(length, device=device).view([-1 if i == axis else 1 for i in range(3)])
                region = 3 * region + (place >= length - side) + (place >= length - shift)
        tokens = self.cut(rearrange(region, "d h w -> 1 d h w 1"))
        return tokens != rearrange(tokens, "n 1 t 1 -> n 1 1 t")


def relative_positions(size: Triple, formula: RelativePosition) -> Tensor:
    """Row of the bias table for each pair of tokens of a window, ``(tokens, tokens)``, query first.

    Args:
        size: of the window.
        formula: "fixed" gives each of the offsets its own row. "official" is the official code's, which has 3 w - 1 for
            (2 w - 1)^2: it gives unlike offsets the same row and leaves most rows without use.

    Raises:
        ValueError: the official formula for a window that is no cube, or an unknown one.
    """
    if formula not in ("fixed", "official") or (formula == "official" and len(set(size)) > 1):
        raise ValueError(f"There are no {formula} relative positions for windows of {size}.")
    places = torch.cartesian_prod(*(torch.arange(side, device="cpu") for side in size))
    depth, height, width = (places[:, None] - places + torch.tensor(size, device="cpu") - 1).unbind(-1)
    rows, columns = 2 * size[1] - 1, 2 * size[2] - 1
    return depth * (rows * columns if formula == "fixed" else 3 * size[0] - 1) + height * columns + width


class WindowAttention(nn.Module):
    """What both attentions share: heads in windows, a learnt bias by relative position, the output's projection.

    Args:
        channels: of the map.
        num_heads: of attention.
        windows: how the map is cut.
        relative_position: see `relative_positions`.
    """

    position_rows: Tensor

    def __init__(self, channels: int, num_heads: int, windows: Windows, relative_position: RelativePosition) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.windows = windows
        depth, height, width = (2 * side - 1 for side in windows.size)
        self.position_bias = nn.Parameter(torch.empty(depth * height * width, num_heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_buffer("position_rows", relative_positions(windows.size, relative_position), persistent=False)
        self.projection = nn.Linear(channels, channels)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: Sequence[int]) -> Tensor:
        """Three maps as `Windows.shifted` leaves them, the scores' softmax and the projection: ``(B, *grid, C)``."""
        bias = rearrange(self.position_bias[self.position_rows], "i j heads -> 1 heads i j").contiguous()
        if self.windows.is_shifted:
            strangers = self.windows.strangers(query.shape[1:4], query.device)
            bias = repeat(torch.where(strangers, bias + MASKED, bias), "n ... -> (b n) ...", b=len(query))
        query, key, value = (self.windows.cut(x, self.num_heads) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.projection(self.windows.joined(attended, grid))


class SelfAttention(WindowAttention):
    """Attention of a map to itself."""

    def __init__(self, channels: int, num_heads: int, windows: Windows, relative_position: RelativePosition) -> None:
        super().__init__(channels, num_heads, windows, relative_position)
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, H, W, C)``, same shape out."""
        query, key, value = self.qkv(self.windows.shifted(x)).chunk(3, dim=-1)
        return self.attend(query, key, value, x.shape[1:4])


class SkipAttention(WindowAttention):
    """Attention of the decoder's map to the encoder's; the query has no projection."""

    def __init__(self, channels: int, num_heads: int, windows: Windows, relative_position: RelativePosition) -> None:
        super().__init__(channels, num_heads, windows, relative_position)
        self.kv = nn.Linear(channels, 2 * channels)

    def forward(self, query: Tensor, skip: Tensor) -> Tensor:
        """Two maps ``(B, D, H, W, C)`` to one."""
        key, value = self.kv(self.windows.shifted(skip)).chunk(2, dim=-1)
        return self.attend(self.windows.shifted(query), key, value, query.shape[1:4])


class ResidualBlock(nn.Module):
    """What both blocks share: pre-norm attention and pre-norm MLP, each with a shortcut.

    Args:
        attention: of the block.
        channels: of the map.
        drop_path: probability that a sample passes attention or MLP by, in training.
    """

    def __init__(self, attention: WindowAttention, channels: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = attention
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def finished(self, shortcut: Tensor, attended: Tensor) -> Tensor:
        """The sum after attention, then the MLP and its own sum."""
        x = shortcut + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Block(ResidualBlock):
    """A transformer block of one map; its attention is `SelfAttention`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D, H, W, C)``, same shape out."""
        return self.finished(x, self.attention(self.norm1(x)))


class SkipBlock(ResidualBlock):
    """A decoder level's first block: `SkipAttention` from the upsampled map to the skip, one norm for both."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Two maps ``(B, D, H, W, C)`` to one; the shortcut is their sum."""
        return self.finished(x + skip, self.attention(self.norm1(x), self.norm1(skip)))
