"""Checkpoints of the released code, by its own numbers: same outputs, same parameter counts, or an error."""

from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.network_architecture import build_dinomed3d
from nnunetv2_dinomed3d.weights import (
    ReferenceCheckpoint,
    describe_reference,
    load_reference_checkpoint,
    read_pretrained,
)
from tests.released_checkpoints import (
    DEPTH,
    PATCH,
    VIT,
    E,
    drop,
    edit,
    move,
    network,
    parameters,
    released_shapes,
    states_of,
)

pytestmark = pytest.mark.own

# of the released stage 2 model with 2 classes and LoRA of rank 16: width, depth, all parameters, trainable ones
RELEASED = {
    "small": (384, 12, 47_229_828, 25_628_676),
    "base": (768, 12, 112_877_316, 27_207_684),
    "large": (1024, 24, 334_560_260, 31_406_084),
}


@pytest.fixture
def states(shared):
    return states_of(shared)


@pytest.fixture
def outputs(shared):
    return np.load(shared / "reference" / "outputs.npz")


def assert_near(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - torch.from_numpy(theirs)).abs().max() <= 1e-4


def slab_logits(model, outputs):
    """Logits ``(2, 3, 48, 64)`` of the reference's two slabs."""
    model.set_stage(1, single_slab_input=True)
    with torch.no_grad():
        return model(torch.from_numpy(outputs["input.stage1"])[:, None])[:, :, 0]


# ---- numbers ----


LORA_ON_ICE = pytest.mark.parametrize("lora_on_ice", [False, True])


@LORA_ON_ICE
def test_stage1_gives_the_released_logits(lora_on_ice, states, outputs):
    """The authors' stage 1 as the start of our stage 2: the features have to be theirs."""
    model = network(lora_on_ice=lora_on_ice)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_reference_checkpoint(model, {"model_state_dict": states[1], "epoch": 12}) == 1
    assert model.stage == 1
    assert model.weights_loaded
    for name, tensor in model.state_dict().items():
        filled = name.startswith(("encoder.", "proxy_head.")) and ".lora_" not in name
        if name != "_extra_state":
            assert torch.equal(tensor, before[name]) != filled, name
    assert_near(slab_logits(model, outputs), outputs["stage1.logits"])


@LORA_ON_ICE
def test_stage2_gives_the_released_intermediates_and_logits(lora_on_ice, states, outputs):
    """The authors' trained model predicts through our code what it predicts through theirs, at every step.

    With its LoRA on the patch embedding, or with that folded into ICE.
    """
    model = network(lora_on_ice=lora_on_ice)
    assert load_reference_checkpoint(model, {"model_state_dict": states[2]}) == 2
    assert model.stage == 2
    assert not any(tensor.any() for tensor in model.proxy_head.state_dict().values())
    got: dict[str, Any] = {}
    for name, module in {
        "encoder": model.encoder,
        "cnn_encoder": model.detail,
        "adapter_3d": model.adapter,
        "fusion_mid": model.fusion,
        "decoder.feat": model.decoder.upernet,
    }.items():
        module.register_forward_hook(lambda module, args, output, name=name: got.__setitem__(name, output))
    with torch.no_grad():
        logits = model(torch.from_numpy(outputs["input.stage2"]))
    for i in range(4):
        assert_near(got["encoder"][i], outputs[f"stage2.encoder.{i}"])
        assert_near(got["adapter_3d"][i], outputs[f"stage2.adapter_3d.{i}"])
    for i in range(3):
        assert_near(got["cnn_encoder"][i], outputs[f"stage2.cnn_encoder.c{i + 1}"])
    assert_near(got["fusion_mid"], outputs["stage2.fusion_mid"])
    assert_near(got["decoder.feat"], outputs["stage2.decoder.feat"])
    assert_near(logits, outputs["stage2.logits"])


def test_backbone_of_the_reference_as_metas_file(states, outputs, tmp_path, monkeypatch):
    """The way of every training: Meta's file, checked, into ICE and ViT. The numbers are the released."""
    meta = {name.removeprefix(VIT[1]): tensor for name, tensor in states[1].items() if name.startswith(VIT[1])}
    torch.save(meta, tmp_path / "vit.pth")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "vit.pth"))
    model = network()
    weights = read_pretrained("vit_small_patch16_dinov3", model.pretrained_shapes())
    assert weights.format == "meta"
    model.load_pretrained(weights.tensors)
    with torch.no_grad():
        model.proxy_head.seg_layers.weight.copy_(states[1]["head.weight"][..., None])
        model.proxy_head.seg_layers.bias.copy_(states[1]["head.bias"])
    assert_near(slab_logits(model, outputs), outputs["stage1.logits"])


def test_state_dict_without_its_file_loads_too(states):
    """The result of `read_reference` goes straight into the network."""
    assert load_reference_checkpoint(network(), states[2]) == 2


def test_bfloat16_checkpoint(states):
    """Halved to save disk, it still loads, in float32."""
    model = network()
    load_reference_checkpoint(model, {name: tensor.bfloat16() for name, tensor in states[2].items()})
    assert model.fusion.gate.weight.dtype == torch.float32


# ---- faults ----


QKV = f"{VIT[2]}blocks.2.attn.qkv."


@pytest.mark.parametrize(
    ("stage", "fault", "reason"),
    [
        (1, drop("head.bias"), r"proxy_head.seg_layers.bias: expected \(3,\), found no such tensor.*incomplete"),
        (1, move("head.bias", "head.bia"), r"2 tensors .*proxy_head.seg_layers.bias: expected \(3,\), found no such"),
        (1, drop(f"{VIT[1]}patch_embed.proj.weight"), r"ice.conv.weight: expected \(96, 1, 3, 16, 16\), found no such"),
        (1, drop(f"{VIT[1]}storage_tokens"), r"encoder.vit.reg_token: expected \(1, 4, 96\), found no such tensor"),
        (1, edit(f"{VIT[1]}norm.bias", lambda t: t[:8]), r"encoder.vit.norm.bias: expected \(96,\), found \(8,\)"),
        (2, drop("fusion_mid.gate.0.bias"), r"fusion.gate.bias: expected \(256,\), found no such tensor"),
        (2, drop("decoder_final.cls_seg.weight"), r"decoder.seg_layers.weight: .*found no such tensor"),
        (2, drop(f"{QKV}lora_B.default.weight"), r"2.attn.qkv.lora_B.default.weight: expected \(288, 4\), found no"),
        (2, drop(f"{PATCH}base_layer.weight"), r"patch_embed.proj.base_layer.weight .*\(E, K, 16, 16\), found no such"),
        (2, drop(f"{PATCH}lora_A.default.weight"), r"lora_A.default.weight .*expected \(4, 3, 16, 16\), found no such"),
        (2, drop(f"{PATCH}lora_B.default.weight"), r"lora_B.default.weight .*expected \(96, 4, 1, 1\), found no such"),
        (2, move("adapter_3d.id1.2.weight", "adapter_3d.id2.2.weight"), r"adapter.levels.2.2.weight: expected \(1,\)"),
        (2, lambda state: state.update(ema=torch.zeros(2)), r"1 tensor .* ema: expected no such tensor, found \(2,\)"),
        (
            2,
            edit("fusion_mid.gate.0.bias", lambda t: t * torch.nan),
            "fusion.gate.bias holds values that are not finite",
        ),
        (2, edit("fusion_mid.gate.0.bias", lambda t: t.char()), "fusion.gate.bias holds torch.int8"),
        (
            2,
            edit(f"{QKV}base_layer.bias", lambda t: t + 0.1),
            r"blocks.2.attn.qkv.base_layer.bias is not zero .*no qkv bias.*started without a DINOv3 file.*train anew",
        ),
        (2, lambda state: state.clear(), r"no checkpoint of the released DINO-Med3D code"),
    ],
)
def test_faulty_checkpoint(stage, fault, reason, states):
    """A damaged or changed checkpoint is refused by the tensor's name, and the network is still what it was."""
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fault(states[stage])
    with pytest.raises(ValueError, match=reason):
        load_reference_checkpoint(model, {"model_state_dict": states[stage]})
    assert model.stage == 2
    assert not model.weights_loaded
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            drop(f"{PATCH}lora_A.default.weight"),
            r"ice.conv.lora_A.default.weight: expected \(4, 1, 3, 16, 16\), found no",
        ),
        (
            drop(f"{PATCH}base_layer.weight"),
            r"ice.conv.base_layer.weight: expected \(96, 1, 3, 16, 16\), found no such",
        ),
    ],
)
def test_faulty_checkpoint_where_nothing_is_folded(fault, reason, states):
    fault(states[2])
    with pytest.raises(ValueError, match=reason):
        load_reference_checkpoint(network(lora_on_ice=True), states[2])


@LORA_ON_ICE
def test_another_k_is_told(lora_on_ice, states):
    with pytest.raises(ValueError, match=r"slabs have K = 3 slices, the network's 5"):
        load_reference_checkpoint(network(slab_depth=5, lora_on_ice=lora_on_ice), states[1])


WIDER = {"embed_dim": 192, "depth": DEPTH, "num_heads": 3}
DEEPER = {"embed_dim": E, "depth": 8, "num_heads": 3}


@pytest.mark.parametrize(
    ("stage", "options", "reason"),
    [
        (1, {"num_classes": 2}, r"\(2, 96, 1, 1, 1\), found \(3, 96, 1, 1, 1\)\. The checkpoint has 3 classes, .* 2;"),
        (2, {"num_classes": 5}, r"has 3 classes, the network 5; build it with the checkpoint's number of classes"),
        (2, {"vit_kwargs": WIDER}, "width 96 and depth 4, the network needs width 192 and depth 4; use the variant"),
        (1, {"vit_kwargs": DEEPER}, "width 96 and depth 4, the network needs width 96 and depth 8; use the variant"),
        (1, {"slab_depth": 5}, r"slabs have K = 3 slices, the network's 5; build it with the checkpoint's slab_depth"),
        (1, {"in_channels": 2}, r"of 1 image channel, the network of 2"),
        (2, {"lora_rank": 16}, r"found \(4, 96\)\. .*LoRA has rank 4, the network's 16"),
        (
            2,
            {"depth_alignment": "exact"},
            r'found \(256, 256, 4, 4, 4\)\. .*depth_alignment="released" and in-plane sc',
        ),
        (2, {"scale": 2}, 'depth_alignment="released" and in-plane scale 1'),
        (2, {"decoder_channels": 64}, r"expected \(64, 96, 1, 1, 1\), found \(256, 96, 1, 1, 1\)\. .*decoder widths"),
        (1, {"vit_name": "vit_small_plus_patch16_dinov3"}, "a plus-sized ViT"),
    ],
)
def test_network_of_another_kind(stage, options, reason, states):
    """The user learns what to build instead, not only that some tensor's shape differs."""
    model = network(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=reason):
        load_reference_checkpoint(model, states[stage])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- parameter totals ----


def trainable(name):
    """In the released stage 2 all but the ViT, of which only LoRA is."""
    return ".lora_" in name or not name.startswith(VIT[2])


def has_no_counterpart(name, lora_on_ice):
    """Unused in the released model, a bias of zeros, or folded into ICE."""
    return (
        name.startswith("decoder.cls.")
        or name.endswith(("mask_token", "qkv.base_layer.bias"))
        or (".patch_embed.proj.lora_" in name and not lora_on_ice)
    )


@LORA_ON_ICE
@pytest.mark.parametrize("variant", RELEASED)
def test_parameter_totals_are_the_released(variant, lora_on_ice, shared):
    """A layer too wide or too many shows here for every size, without its weights."""
    width, depth, total, trained = RELEASED[variant]
    listed = released_shapes(parameters(shared)[2], width, depth, rank=16, classes=2)
    assert sum(prod(shape) for _, shape in listed) == total
    assert sum(prod(shape) for name, shape in listed if trainable(name)) == trained

    with torch.device("meta"):
        model = build_dinomed3d(variant, 1, 2, (16, 512, 512), depth_alignment="released", lora_on_ice=lora_on_ice)
    ours = {name: p for name, p in model.named_parameters() if not name.startswith("proxy_head.")}
    kept = [(name, prod(shape)) for name, shape in listed if not has_no_counterpart(name, lora_on_ice)]
    assert sum(p.numel() for p in ours.values()) == sum(size for _, size in kept)
    assert sum(p.numel() for p in ours.values() if p.requires_grad) == sum(
        size for name, size in kept if trainable(name)
    )
    checkpoint = {name: torch.empty(shape, device="meta") for name, shape in listed}
    assert describe_reference(checkpoint) == ReferenceCheckpoint(2, 2, 3, width, depth, 16)
