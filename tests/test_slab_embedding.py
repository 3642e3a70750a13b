"""ICE: what a slab's token means, and where it starts from."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_dinomed3d.network_architecture.slab_embedding import InterSliceContextEmbedding, inflate_patch_embedding


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
    assert conv2d.bias is not None
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


def test_a_slab_has_slices() -> None:
    with pytest.raises(ValueError, match=r"slab_depth is 0.*at least one"):
        InterSliceContextEmbedding(1, 8, 0)
