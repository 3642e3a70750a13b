"""The token grid: how far slices are enlarged, and how they are padded."""

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.token_grid import (
    enlarge_in_plane,
    in_plane_scale,
    pad_in_plane,
    padded_side,
)


@pytest.mark.parametrize(
    ("patch_size", "scale"),
    [
        ((40, 56, 40), 4),  # hippocampus: 224 pixels
        ((24, 256, 256), 2),  # 512 pixels in plane, 24,576 tokens
        ((48, 256, 256), 2),  # exactly 49,152 tokens
        ((49, 256, 256), 1),
        ((16, 362, 20), 2),  # 724 pixels are nearer to 512 than 362 are, as a ratio
        ((16, 363, 20), 1),
        ((16, 181, 20), 4),
        ((16, 182, 20), 2),
        ((49, 128, 128), 2),  # 50,176 tokens at 4
        ((4, 130, 20), 4),  # the longer side counts
        ((1, 16, 16), 4),
        ((16, 512, 512), 1),  # the paper's
        ((128, 512, 512), 1),  # 1 is always allowed
    ],
)
def test_in_plane_scale(patch_size: tuple[int, int, int], scale: int) -> None:
    assert in_plane_scale(patch_size) == scale


@pytest.mark.parametrize(("side", "scale", "padded"), [(40, 1, 48), (40, 2, 40), (41, 2, 48), (41, 4, 44), (1, 4, 4)])
def test_padded_side_is_whole_tokens(side: int, scale: int, padded: int) -> None:
    assert padded_side(side, scale) == padded


@pytest.mark.parametrize(
    "patch_size",
    [  # of nnU-Net's default planner: Pancreas, Colon, ACDC, BraTS, Heart, HepaticVessel, Spleen, AMOS, Prostate
        *[(40, 224, 224), (56, 192, 160), (20, 256, 224), (128, 128, 128), (80, 192, 160), (64, 192, 192)],
        *[(64, 192, 160), (64, 160, 224), (48, 192, 192), (20, 320, 256)],
    ],
)
def test_stock_patches_have_enough_tokens(patch_size: tuple[int, int, int]) -> None:
    """The paper's slices have 32 x 32; with fewer than about 16 a side, the ViT sees next to nothing."""
    scale = in_plane_scale(patch_size)
    assert max(patch_size[1:]) * scale / 16 >= 16


def test_padding_is_zeros_at_the_far_borders() -> None:
    x = torch.randn(1, 2, 3, 5, 6)
    padded = pad_in_plane(x, (8, 7))
    assert padded.shape == (1, 2, 3, 8, 7)
    assert torch.equal(padded[..., :5, :6], x)
    assert padded.count_nonzero() == x.count_nonzero()


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_slices_are_enlarged_on_their_own(scale: int) -> None:
    """A constant stays one, and no slice sees another."""
    x = torch.arange(6.0).reshape(2, 1, 3, 1, 1).expand(2, 1, 3, 5, 6)
    enlarged = enlarge_in_plane(x, scale)
    assert enlarged.shape == (2, 1, 3, 5 * scale, 6 * scale)
    assert torch.equal(enlarged, x[..., :1, :1].expand_as(enlarged))
