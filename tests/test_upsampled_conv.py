"""Convolution of upsampled maps on their own grids, against the same on the fine grid."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_dinomed3d.network_architecture.efficiency.upsampled_conv import ConcatConv3d, conv_of_upsampled, resize


@pytest.mark.parametrize(
    ("coarse", "fine"),
    [
        ((4, 8, 8), (4, 16, 16)),
        ((5, 8, 5), (5, 33, 20)),  # no whole factor
        ((7, 2, 4), (4, 16, 16)),  # another depth too, as with the released alignment
        ((3, 1, 1), (3, 8, 8)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_equals_the_convolution_of_the_upsampled_map(coarse: tuple[int, int, int], fine: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *coarse, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 4, 3, 3, 3, dtype=torch.double, requires_grad=True)
    onto = torch.randn(2, 3, *fine, dtype=torch.double)
    got = conv_of_upsampled(x, weight, onto)
    expected = onto + F.conv3d(resize(x, fine), weight, padding=1)
    torch.testing.assert_close(got, expected)
    direction = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), direction) for y in (got, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("coarse", [(4, 8, 8), (4, 14, 14)])  # mixed on its grid; too fine for that to be worthwhile
def test_joint_convolution_is_that_of_the_concatenation(coarse: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    conv, size = ConcatConv3d(40, 6), (4, 16, 16)
    maps = [torch.randn(1, 32, *coarse), torch.randn(1, 8, *size)]
    with torch.no_grad():
        joined = torch.cat([resize(x, size) for x in maps], dim=1)
        expected = F.conv3d(joined, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(conv(maps), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(conv([joined]), expected, rtol=1e-4, atol=1e-5)
