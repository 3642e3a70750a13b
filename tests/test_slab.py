"""ICE: what a slab's token means, and where it starts from."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_dinomed3d.network_architecture.slab_embedding import (
    InterSliceContextEmbedding,
    in_plane_scale,
    inflate_patch_embedding,
    padded_side,
)


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_slab_is_embedded_as_its_slice_in_the_volume(slab_depth: int, channels: int) -> None:
    """Otherwise stage 1 would train other features than stage 2 reads."""
    ice = InterSliceContextEmbedding(channels, 8, slab_depth)
    volume = torch.randn(2, channels, 6, 32, 48)
    embedded = ice(volume)
    assert embedded.shape == (2, 8, 6, 2, 3)
    before = slab_depth // 2
    padded = F.pad(volume, (0, 0, 0, 0, before, slab_depth - 1 - before))
    for d in range(6):
        slab = padded[:, :, d : d + slab_depth]
        assert torch.equal(slab[:, :, before], volume[:, :, d]), "the slab's central slice"
        torch.testing.assert_close(ice(slab, pad_depth=False)[:, :, 0], embedded[:, :, d])


def test_three_slices_are_stacked_as_rgb() -> None:
    """K = 3, C = 1 is exactly the 2D patch embedding on slices as colour channels, as the paper has it."""
    conv2d = torch.nn.Conv2d(3, 8, 16, stride=16)
    ice = InterSliceContextEmbedding(1, 8, 3)
    ice.load_patch_embedding(conv2d.weight, conv2d.bias)
    assert torch.equal(ice.conv.weight[:, 0], conv2d.weight)
    slab = torch.randn(2, 1, 3, 32, 32)
    torch.testing.assert_close(ice(slab, pad_depth=False)[:, :, 0], conv2d(slab[:, 0]))


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [1, 3])
def test_inflation_keeps_the_response_to_a_constant(slab_depth: int, channels: int) -> None:
    weight = torch.randn(8, 3, 16, 16)
    inflated = inflate_patch_embedding(weight, channels, slab_depth)
    assert inflated.shape == (8, channels, slab_depth, 16, 16)
    torch.testing.assert_close(inflated.sum((1, 2, 3, 4)), weight.sum((1, 2, 3)))


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


def test_a_slab_has_slices() -> None:
    with pytest.raises(ValueError, match=r"slab_depth is 0.*at least one"):
        InterSliceContextEmbedding(1, 8, 0)


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
