"""The convolution with fewer multiplications and its gradients, against PyTorch's."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import flops, saved_bytes
from benchmarks.networks import shapes_only
from nnunetv2_dinomed3d.network_architecture.efficiency import winograd
from nnunetv2_dinomed3d.network_architecture.efficiency.checkpointing import apply_checkpointing
from nnunetv2_dinomed3d.network_architecture.efficiency.winograd import Conv3x3x3, conv3d, counted_as_on_the_cpu

SIZE = (8, 24, 24)
KERNELS = ((3, 3, 3), (3, 1, 1))


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv3d(x, weight, bias, padding=[side // 2 for side in weight.shape[2:]])


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < tolerance * expected.abs().max()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is convolved goes the way with fewer multiplications."""
    monkeypatch.setattr(winograd, "_is_worthwhile", lambda x, weight: True)


def assert_equals_the_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Result and gradients, against float64."""
    operands = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    double = [operand.detach().double().requires_grad_() for operand in operands]
    got, expected = conv3d(*operands), reference(*double)
    assert_close(got, expected)
    direction = torch.randn_like(got)
    gradients = torch.autograd.grad(got, operands, direction)
    for gradient, of_double in zip(gradients, torch.autograd.grad(expected, double, direction.double()), strict=True):
        assert_close(gradient, of_double)
    with torch.no_grad():
        assert torch.equal(conv3d(*operands), got)
        assert_close(conv3d(x, weight), reference(*double[:2]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_rounding_is_small_with_many_channels(kernel: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    assert_equals_the_convolution(torch.randn(1, 128, *SIZE).relu(), torch.randn(130, 128, *kernel), torch.randn(130))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(8, 12, 12), (9, 22, 5), (7, 6, 20), (16, 16, 17)])  # not all multiples of four
@pytest.mark.parametrize("values_per_pass", [1, 2**20])  # four slices at once, all
def test_any_size_in_any_number_of_passes(
    kernel: tuple[int, int, int], size: tuple[int, int, int], values_per_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "MAX_VALUES_PER_PASS", values_per_pass)
    torch.manual_seed(0)
    assert_equals_the_convolution(torch.randn(2, 12, *size), torch.randn(10, 12, *kernel), torch.randn(10))


@pytest.mark.parametrize(("kernel", "share"), zip(KERNELS, (0.4, 0.7), strict=True))
def test_it_takes_a_quarter_or_half_of_the_multiplications(kernel: tuple[int, int, int], share: float) -> None:
    """Of the result and of both gradients; the transforms are the rest."""
    x, weight = torch.randn(1, 128, 16, 24, 24, requires_grad=True), torch.randn(128, 128, *kernel, requires_grad=True)
    direct = 2 * weight.numel() * x[0, 0].numel()
    assert flops(lambda: reference(x, weight).sum().backward()) == 3 * direct
    assert flops(lambda: conv3d(x, weight).sum().backward()) < share * 3 * direct
    with torch.no_grad():
        assert flops(lambda: conv3d(x, weight)) < share * direct


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", [(5, 4, 3), (4, 1, 2), (1, 6, 1)])
def test_gradients_are_the_derivatives(kernel: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    shapes = (2, 3, *size), (2, 3, *kernel), (2,)
    operands = [torch.randn(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    torch.testing.assert_close(conv3d(*operands), reference(*operands))
    assert torch.autograd.gradcheck(conv3d, operands)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: Literal["input", "weight", "bias"]) -> None:
    torch.manual_seed(0)
    conv, x = Conv3x3x3(128, 128), torch.randn(1, 128, *SIZE, requires_grad=frozen != "input")
    conv.weight.requires_grad_(frozen != "weight")
    assert conv.bias is not None
    conv.bias.requires_grad_(frozen != "bias")
    trained = [tensor for tensor in (x, conv.weight, conv.bias) if tensor.requires_grad]
    direction = torch.randn(1, 128, *SIZE)
    got = torch.autograd.grad(conv(x), trained, direction)
    expected = torch.autograd.grad(reference(x, conv.weight, conv.bias), trained, direction)
    for gradient, of_reference in zip(got, expected, strict=True):
        assert_close(gradient, of_reference, 2e-5)  # both are rounded


def test_no_more_is_kept_for_the_backward_pass() -> None:
    conv, x = Conv3x3x3(128, 128), torch.randn(1, 128, *SIZE)
    kept = saved_bytes(lambda: conv3d(x.relu(), conv.weight, conv.bias))
    assert 0 < kept <= saved_bytes(lambda: reference(x.relu(), conv.weight, conv.bias))


@pytest.mark.parametrize("kept", ["convolutions", "costly convolutions"])
def test_it_can_be_recomputed(kept: Literal["convolutions", "costly convolutions"]) -> None:
    torch.manual_seed(0)
    part, x = nn.Sequential(nn.Softplus(), Conv3x3x3(128, 128), nn.Softplus()), torch.randn(1, 128, *SIZE)
    operands = [x.requires_grad_(), *part.parameters()]
    expected = torch.autograd.grad(part(x).square().sum(), operands)
    apply_checkpointing(nn.ModuleDict({"part": part}), {"part": kept})
    for gradient, unrecomputed in zip(torch.autograd.grad(part(x).square().sum(), operands), expected, strict=True):
        assert torch.equal(gradient, unrecomputed)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_is_channels_last(channels_last: bool) -> None:
    """The next layers are faster on such maps, and may change them in place."""
    torch.manual_seed(0)
    conv, x = Conv3x3x3(128, 128), torch.randn(1, 128, *SIZE)
    expected = reference(x, conv.weight, conv.bias)
    got = conv(x.to(memory_format=torch.channels_last_3d) if channels_last else x)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    got.relu_().sum().backward()
    assert_close(got, expected.relu())


ELSEWHERE = ["float64", "bfloat16", "autocast", "few channels", "high and few channels", "few voxels", "two slices"]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_elsewhere_it_is_the_convolution_itself(kind: str) -> None:
    channels = 32 if kind == "few channels" else 64 if kind == "high and few channels" else 128
    sizes = {"few voxels": (4, 8, 8), "two slices": (2, 48, 48), "high and few channels": (4, 128, 128)}
    size = sizes.get(kind, SIZE)
    dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    conv, x = Conv3x3x3(channels, channels).to(dtype), torch.randn(1, channels, *size, dtype=dtype)
    with torch.autocast("cpu", enabled=kind == "autocast"), torch.no_grad():
        assert torch.equal(conv(x), reference(x, conv.weight, conv.bias))
        assert flops(lambda: conv(x)) == 2 * 27 * channels**2 * x[0, 0].numel()


def test_a_compiled_network_has_the_convolution_itself() -> None:
    conv, x = Conv3x3x3(128, 128), torch.randn(1, 128, *SIZE)
    program = torch.export.export(conv, (x,))
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert operators == [torch.ops.aten.conv3d.default]


def test_without_values_it_may_be_meant_for_a_gpu() -> None:
    """Plans count a step on tensors without values; only who says so counts it as the CPU computes it."""
    with shapes_only():
        conv, x = Conv3x3x3(128, 128), torch.empty(1, 128, *SIZE)
        meant_for_any = flops(lambda: conv(x))
        with counted_as_on_the_cpu():
            assert flops(lambda: conv(x)) < 0.5 * meant_for_any
    assert meant_for_any == 2 * 27 * 128**2 * x[0, 0].numel()
