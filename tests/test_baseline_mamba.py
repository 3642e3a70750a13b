"""Tests of the Mamba layer of U-Mamba and its scan."""

import logging
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.mamba.modeling_mamba import MambaMixer

from nnunetv2_dinomed3d.network_architecture.baselines import mamba
from nnunetv2_dinomed3d.network_architecture.baselines.mamba import Mamba, MambaLayer, has_kernels, selective_scan

LENGTHS = (1, 2, 3, 5, 8, 9, 27, 28, 65, 130)


def scan_inputs(length: int) -> list[Tensor]:
    """delta, x, A, B, C and the state before, in float64."""
    torch.manual_seed(length)
    shapes = [(2, length, 6), (2, length, 6), (6, 4), (2, length, 4), (2, length, 4), (2, 4, 6)]
    delta, x, a, *rest = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (F.softplus(delta), x, -a.exp(), *rest)]


def token_by_token(delta: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The scan as the paper writes it."""
    results = []
    for t in range(x.shape[1]):
        state = torch.exp(delta[:, t, None] * a.T) * state + (delta * x)[:, t, None] * b[:, t, :, None]
        results.append((state * c[:, t, :, None]).sum(1))
    return torch.stack(results, 1), state


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.autograd.grad(outputs, inputs, [torch.randn(y.shape, dtype=y.dtype) for y in outputs])


def largest_difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(float((f - e).detach().abs().max()) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("length", LENGTHS)
def test_scan_is_that_of_the_paper(length: int) -> None:
    """With the gradients of everything, of lengths that make one, two and three levels of segments."""
    inputs = scan_inputs(length)
    found, expected = selective_scan(*inputs), token_by_token(*inputs)
    assert largest_difference(found, expected) < 1e-12
    assert largest_difference(gradients(found, inputs), gradients(expected, inputs)) < 1e-10


def test_scan_leaves_its_inputs_alone() -> None:
    inputs = scan_inputs(30)
    copies = [tensor.clone() for tensor in inputs]
    outputs = selective_scan(*inputs)
    sum(y.sum() for y in outputs).backward()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("states", [2**20, 20 * 2 * 48 * 16, 2 * 48 * 16, 1])
def test_result_is_that_of_transformers_in_pieces_of_any_length(monkeypatch, states: int) -> None:
    """The pieces here have all 37 tokens, 20, 1, and fewer than the convolution sees."""
    monkeypatch.setattr(mamba, "PIECE_ON_CPU", states)
    torch.manual_seed(0)
    mixer = Mamba(24)
    tokens = torch.randn(2, 37, 24, requires_grad=True)
    inputs = [tokens, *mixer.parameters()]
    found, expected = mixer(tokens), MambaMixer.forward(mixer, tokens)
    assert largest_difference((found,), (expected,)) < 1e-6
    assert largest_difference(gradients((found,), inputs), gradients((expected,), inputs)) < 1e-4


class LargestTensor(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes) if sizes else self.elements
        return result


def test_no_tensor_holds_the_states_of_a_long_sequence(monkeypatch) -> None:
    monkeypatch.setattr(mamba, "PIECE_ON_CPU", 2**16)
    tokens = torch.randn(1, 4000, 8, requires_grad=True)
    with LargestTensor() as largest:
        Mamba(8)(tokens).sum().backward()
    assert largest.elements < 2**16 * 1.3 < 4000 * 16 * 16  # segments are filled up


def test_initial_weights_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    mixer = Mamba(64)
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert bool((mixer.D == 1).all())
    step = F.softplus(mixer.dt_proj.bias)
    assert 1e-3 * 0.999 < step.min() < 2e-3
    assert 5e-2 < step.max() < 1e-1 * 1.001
    assert 0.4 < mixer.dt_proj.weight.abs().max() <= 4**-0.5  # of rank 4


@pytest.mark.parametrize(("width", "parameters"), [(32, 9_920), (320, 675_200)])
def test_parameters_of_mamba(width: int, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in Mamba(width).parameters()) == parameters


def test_voxels_are_tokens_in_the_order_of_the_axes() -> None:
    torch.manual_seed(0)
    layer, x = MambaLayer(6), torch.randn(2, 6, 2, 3, 5)
    tokens = x.permute(0, 2, 3, 4, 1).reshape(2, 30, 6)
    expected = layer.mamba(layer.norm(tokens)).reshape(2, 2, 3, 5, 6).permute(0, 4, 1, 2, 3)
    assert torch.equal(layer(x), expected)


def test_channels_are_tokens_where_asked() -> None:
    torch.manual_seed(0)
    layer, x = MambaLayer(40, voxels=12), torch.randn(2, 40, 3, 4)
    expected = layer.mamba(layer.norm(x.flatten(2))).reshape(x.shape)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing_inside(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = MambaLayer(8), torch.randn(1, 8, 4, 4, 4).to(dtype)
    expected = layer(x.float())
    with torch.autocast("cpu", dtype=dtype):
        found = layer(x)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))


def test_float64_stays() -> None:
    layer = MambaLayer(8).double()
    assert layer(torch.randn(1, 8, 4, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("without_data", [partial(torch.device, "meta"), FakeTensorMode])
def test_a_long_sequence_without_data_takes_no_time(without_data: Callable[[], Any]) -> None:
    """As where memory is estimated."""
    with without_data():
        layer, x = MambaLayer(32), torch.empty(2, 32, 128, 128, 128, requires_grad=True)
        y = layer(x)
        y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_nothing_is_logged_about_kernels(caplog, capfd) -> None:
    """Transformers would warn, once in a process, that mamba-ssm is missing."""
    layer: nn.Module = MambaLayer(8)
    with caplog.at_level(logging.DEBUG):
        layer.train()(torch.randn(1, 8, 4, 4)).sum().backward()
        layer.eval()(torch.randn(1, 8, 4, 4))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_kernels_are_used_only_if_both_packages_can_be_imported(monkeypatch) -> None:
    interface = "mamba_ssm.ops.selective_scan_interface"
    for name in ("mamba_ssm", "mamba_ssm.ops", interface, "causal_conv1d"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[interface], "mamba_inner_fn", print, raising=False)
    assert has_kernels.__wrapped__()
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    assert not has_kernels.__wrapped__()
