"""The faster 3x3x3 convolution, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.measure import flops
from nnunetv2_dinomed3d.network_architecture.efficiency import winograd
from nnunetv2_dinomed3d.network_architecture.efficiency.winograd import Conv3x3x3, conv3d


@pytest.mark.parametrize("size", [(8, 24, 24), (9, 22, 21), (7, 30, 20), (16, 16, 17)])  # not all multiples of four
@pytest.mark.parametrize("values_per_pass", [1, 2**20])  # four slices at once, all
@torch.no_grad()
def test_equals_the_convolution(
    size: tuple[int, int, int], values_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "MAX_VALUES_PER_PASS", values_per_pass)
    torch.manual_seed(0)
    conv, x = Conv3x3x3(128, 130), torch.randn(2, 128, *size)
    assert conv.bias is not None
    expected = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
    scale = expected.abs().max()
    assert flops(lambda: conv(x)) < 0.6 * 2 * 27 * 128 * 130 * 2 * x[0, 0].numel()
    assert (conv(x) - expected).abs().max() < 1e-5 * scale
    assert (conv3d(x, conv.weight) - (expected - conv.bias.double()[:, None, None, None])).abs().max() < 1e-5 * scale


@torch.no_grad()
def test_the_layout_is_that_of_the_convolution() -> None:
    """The next layers are faster on channels-last maps, and have to see that these are."""
    conv, x = Conv3x3x3(128, 128), torch.randn(1, 128, 8, 24, 24).to(memory_format=torch.channels_last_3d)
    assert conv(x).stride() == F.conv3d(x, conv.weight, conv.bias, padding=1).stride()


@pytest.mark.parametrize("kind", ["gradients", "float64", "few channels", "few voxels", "two slices"])
def test_elsewhere_it_is_the_convolution_itself(kind: str) -> None:
    channels = 64 if kind == "few channels" else 128
    size = {"few voxels": (4, 8, 8), "two slices": (2, 48, 48)}.get(kind, (8, 24, 24))
    dtype = torch.float64 if kind == "float64" else torch.float32
    conv, x = Conv3x3x3(channels, channels).to(dtype), torch.randn(1, channels, *size, dtype=dtype)
    with torch.set_grad_enabled(kind == "gradients"):
        assert torch.equal(conv(x), F.conv3d(x, conv.weight, conv.bias, padding=1))
        assert flops(lambda: conv(x)) == 2 * 27 * channels**2 * x[0, 0].numel()
