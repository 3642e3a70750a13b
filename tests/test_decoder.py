"""UPerNet and refinement: sizes, what they are made of, dropout."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_dinomed3d.network_architecture.decoder import Decoder, RefinementBlock, UPerNet3D, UPerNetDecoder

PYRAMID = [(5, 8, 12), (5, 4, 6), (5, 2, 3), (5, 1, 2)]


def pyramid(channels: int, sizes: list[tuple[int, int, int]] = PYRAMID) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size) for size in sizes]


@pytest.mark.parametrize("sizes", [PYRAMID, [(8, 8, 8), (6, 4, 4), (5, 2, 2), (5, 1, 1)], [(1, 1, 1)] * 4])
def test_upernet_joins_the_levels_on_the_finest_grid(sizes: list[tuple[int, int, int]]) -> None:
    """Also of levels of other depths, as of the released alignment, and of one token."""
    assert UPerNet3D(32)(pyramid(32, sizes)).shape == (2, 32, *sizes[0])


def test_every_level_reaches_the_result() -> None:
    levels = [level.requires_grad_() for level in pyramid(32)]
    UPerNet3D(32)(levels).square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in levels)


def test_logits_have_the_full_size() -> None:
    half, full = torch.randn(2, 16, 5, 16, 24), torch.randn(2, 8, 5, 32, 48)
    assert Decoder(32, 8, 3)(pyramid(32), half, full).shape == (2, 3, 5, 32, 48)
    assert UPerNetDecoder(32, 3)(pyramid(32), (5, 32, 48)).shape == (2, 3, 5, 32, 48)


@torch.no_grad()
def test_refinement_is_two_convolutions_of_both_side_by_side() -> None:
    torch.manual_seed(0)
    block: Any = RefinementBlock(32, 8, 16)
    x, detail = torch.randn(1, 32, 4, 8, 8), torch.randn(1, 8, 4, 16, 16)
    joined = torch.cat([F.interpolate(x, size=detail.shape[2:], mode="trilinear"), detail], dim=1)
    for convolution in (block.body[0], block.body[3]):
        joined = F.relu(F.instance_norm(F.conv3d(joined, convolution.weight, padding=1)))
    torch.testing.assert_close(block(x, detail), joined, rtol=1e-4, atol=1e-4)


def test_dropout_of_upernet_is_element_wise() -> None:
    """Whole channels are not dropped, as in the released code."""
    torch.manual_seed(0)
    dropout = UPerNet3D(64).fusion[1].train()
    dropped = (dropout(torch.ones(1, 64, 4, 8, 8)) == 0).float().mean((0, 2, 3, 4))
    assert 0.05 < dropped.mean() < 0.15
    assert dropped.max() < 1
