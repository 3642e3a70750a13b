"""LoRA: on the right layers, merged for prediction without a trace, on ICE if asked for."""

import copy
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.encoder import SlabEncoder
from tests.networks import nano, with_trained_lora

TINY_VIT = {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 0.1}


def training_nano(**options: Any) -> DINOMed3D:
    return nano((3, 32, 32), **options).train()


@pytest.mark.parametrize(
    ("vit_name", "per_block"), [("vit_small_patch16_dinov3", 4), ("vit_small_plus_patch16_dinov3", 5)]
)
def test_lora_is_on_every_linear_layer_of_the_blocks(vit_name: str, per_block: int) -> None:
    """peft skips names that it does not find: a SwiGLU MLP has others."""
    encoder = SlabEncoder(1, 3, vit_name, TINY_VIT, lora_rank=4, lora_alpha=4, lora_dropout=0.1)
    assert len(encoder.lora_layers()) == 4 * per_block
    linear = [m for m in encoder.vit.blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 3 * len(encoder.lora_layers()), "base layer, A and B"


def test_merged_lora_predicts_the_same_and_leaves_no_trace() -> None:
    network = with_trained_lora(nano()).eval()
    x = torch.randn(1, 1, 4, 32, 32)
    plain, before = network(x), copy.deepcopy(network.state_dict())
    with network.merged_lora():
        assert not torch.equal(
            network.state_dict()["encoder.vit.blocks.0.attn.qkv.base_layer.weight"],
            before["encoder.vit.blocks.0.attn.qkv.base_layer.weight"],
        )
        torch.testing.assert_close(network(x), plain, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(x), plain)


@pytest.mark.parametrize("gradients", [False, True])
def test_lora_is_merged_whenever_there_are_no_gradients(gradients: bool) -> None:
    network = nano().eval()
    merged = []
    layer = network.encoder.lora_layers()[0]
    layer.register_forward_hook(lambda *_: merged.append(layer.merged))
    with torch.set_grad_enabled(gradients):
        network(torch.randn(1, 1, 2, 16, 16))
    assert merged == [not gradients]
    assert not layer.merged


def test_lora_on_ice_is_trained_in_stage_2_and_off_in_stage_1() -> None:
    network = training_nano(lora_on_ice=True)
    assert isinstance(network.encoder.ice.conv, LoraLayer)
    assert len(network.encoder.lora_layers()) == len(training_nano().encoder.lora_layers()) + 1
    x = torch.randn(1, 1, 3, 32, 32)
    network(x).square().mean().backward()
    trained = {name for name, p in network.encoder.ice.named_parameters() if p.grad is not None}
    assert trained == {"conv.lora_A.default.weight", "conv.lora_B.default.weight"}
    assert network.encoder.ice.conv.lora_dropout["default"].training
    network.zero_grad(set_to_none=True)
    network.set_stage(1)
    network(x).square().mean().backward()
    trained = {name for name, p in network.encoder.ice.named_parameters() if p.grad is not None}
    assert trained == {"conv.base_layer.weight", "conv.base_layer.bias"}


def test_lora_on_ice_is_w_plus_b_a() -> None:
    """On every slab of a volume, its first and last slice included, and merged as unmerged."""
    network, plain = training_nano(lora_on_ice=True).eval(), training_nano().eval()
    conv: Any = network.encoder.ice.conv
    torch.nn.init.normal_(conv.lora_B["default"].weight, std=0.05)
    state = {name: w for name, w in network.state_dict().items() if not name.startswith("encoder.ice.")}
    a, b = conv.lora_A["default"].weight, conv.lora_B["default"].weight[..., 0, 0, 0]
    folded = conv.base_layer.weight + conv.scaling["default"] * torch.einsum("er,rckhw->eckhw", b, a)
    ice = {"encoder.ice.conv.weight": folded, "encoder.ice.conv.bias": conv.base_layer.bias}
    plain.load_state_dict({**state, **ice})
    x = torch.randn(1, 1, 4, 32, 48)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
        with network.merged_lora(), network.cached_slab_features():
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_without_it_no_name_changes() -> None:
    """Checkpoints of the other trainers are what they were."""
    names = {name for name in training_nano().state_dict() if name.startswith("encoder.ice.")}
    assert names == {"encoder.ice.conv.weight", "encoder.ice.conv.bias"}
