"""Activation checkpointing: what is kept for the backward pass, what is computed again; nothing else changes."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.measure import flops, saved_bytes
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.efficiency.checkpointing import apply_checkpointing
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.networks import nano, with_trained_lora


def network(*layers: nn.Module) -> nn.ModuleDict:
    """Layers under the name ``part``."""
    return nn.ModuleDict({"part": nn.Sequential(*layers)})


@pytest.mark.parametrize(
    ("convolution", "again"),
    [
        (nn.Conv3d(128, 2, 3, padding=1), False),  # costly: 3456 multiplications a value
        (nn.Conv3d(64, 2, 3, padding=1), True),
        (nn.Conv3d(256, 2, 1), True),
        (nn.ConvTranspose3d(2, 256, (3, 4, 4), stride=(1, 4, 4)), True),  # few for one value for all its kernel
    ],
)
def test_only_costly_convolutions_are_kept(convolution: nn.Conv3d | nn.ConvTranspose3d, again: bool) -> None:
    parts = network(convolution, nn.Softplus())
    apply_checkpointing(parts, {"part": "costly convolutions"})
    x = torch.randn(1, convolution.in_channels, 2, 4, 4, requires_grad=True)
    forward = flops(lambda: convolution(x.detach()))
    step = flops(lambda: parts["part"](x).sum().backward())
    assert step == (4 if again else 3) * forward  # twice as much for both gradients as for the result
    torch.testing.assert_close(x.grad, torch.autograd.grad(nn.Softplus()(convolution(x)).sum(), x)[0])


@pytest.mark.parametrize("first", [[], [nn.Conv3d(4, 4, 1)]])
def test_of_cheap_layers_only_the_results_of_convolutions_are_kept(first: list[nn.Module]) -> None:
    layers = [*first, nn.Softplus(), nn.Sequential(nn.Conv3d(4, 4, 1), nn.Softplus()), nn.Tanh()]
    parts, x = network(*layers), torch.randn(1, 4, 4, 8, 8)
    kept = saved_bytes(lambda: parts["part"](x))
    step = flops(lambda: parts["part"](x).sum().backward())
    apply_checkpointing(parts, {"part": "convolutions"})
    convolutions = len(first) + 1
    assert saved_bytes(lambda: parts["part"](x)) == convolutions * x.nbytes < kept
    assert flops(lambda: parts["part"](x).sum().backward()) == step


def test_a_later_policy_replaces_the_earlier() -> None:
    parts, x = network(nn.Conv3d(4, 4, 1), nn.Softplus(), nn.Tanh()), torch.randn(1, 4, 4, 8, 8)
    kept = saved_bytes(lambda: parts["part"](x))
    apply_checkpointing(parts, {"part": "costly convolutions"})
    assert saved_bytes(lambda: parts["part"](x)) < kept
    apply_checkpointing(parts, {})
    assert saved_bytes(lambda: parts["part"](x)) == kept


def test_a_copy_recomputes_with_its_own_weights() -> None:
    """Otherwise it would go on computing with those of the network that it was copied from."""
    original = nano().eval()
    x = torch.randn(1, 1, 4, 32, 32)
    copied = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.zero_()
    assert torch.equal(copied(x), nano().eval()(x))
    assert not torch.equal(original(x), copied(x))


def gradients(network: DINOMed3D, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """In training mode, without dropout."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    network(x).square().mean().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"proxy": "upernet"}, {"detail_stream": False}], ids=str)
@pytest.mark.parametrize("stage", [1, 2])
def test_checkpointed_networks_have_the_same_gradients(stage: Stage, options: dict[str, Any]) -> None:
    x, found, kept = torch.randn(1, 1, 4, 32, 32), [], []
    for checkpointed in (False, True):
        network = with_trained_lora(nano(rope_rescale=None, **options))
        network.set_stage(stage)
        network.checkpoint_activations(checkpointed)
        kept.append(saved_bytes(partial(network.train(), x)))
        found.append(gradients(network, x))
    assert kept[1] < kept[0]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
