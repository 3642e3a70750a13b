"""The slab encoder: what its ViT sees in training and prediction, and where its weights come from."""

import copy
from typing import Any

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.networks import nano

ENCODER = "nnunetv2_dinomed3d.network_architecture.encoder"
BLOCKS = 4


def training_nano(**options: Any) -> DINOMed3D:
    return nano((3, 32, 32), **options).train()


def tables(network: DINOMed3D, x: torch.Tensor) -> list[torch.Tensor]:
    """RoPE's tables that the blocks get in one forward pass."""
    seen = []
    hooks = [
        block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["rope"]), with_kwargs=True)
        for block in network.encoder.vit.blocks
    ]
    network(x)
    for hook in hooks:
        hook.remove()
    return seen


# ---- RoPE ----


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_rope_is_rescaled_in_stage_1s_training_only(stage: Stage, training: bool) -> None:
    network = nano(rope_rescale=2.0)
    for layer in network.encoder.lora_layers():
        layer.lora_dropout["default"] = torch.nn.Identity()
    network.set_stage(stage)
    network.train(training)
    volume = torch.randn(1, 1, 3, 64, 64)
    first, second = network.encoder(volume)[-1], network.encoder(volume)[-1]
    assert torch.equal(first, second) == (stage == 2 or not training)


def test_rope_rescaling_draws_a_factor_between_a_half_and_two() -> None:
    """Log-uniform, one for all coordinates, as DINOv3 was trained."""
    rope = nano(rope_rescale=2.0).train().encoder.vit.rope.rope.train()
    coordinates = torch.tensor([[0.5, -0.25]])
    factors = torch.stack([rope._apply_coord_augs(coordinates) / coordinates for _ in range(200)])
    assert torch.allclose(factors[..., 0], factors[..., 1])
    assert factors.min() >= 0.5
    assert factors.max() <= 2
    assert factors.log().mean().abs() < 0.15
    assert nano(rope_rescale=None).encoder.vit.rope.aug_active is False


def test_each_block_draws_its_own_rescaling() -> None:
    """DINOv3 was trained so; timm draws once for all blocks."""
    network = training_nano()
    network.set_stage(1)
    x = torch.randn(1, 1, 3, 64, 64)
    first, second = tables(network, x), tables(network, x)
    assert len(first) == BLOCKS
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i]), "blocks share a factor"
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "forward passes share factors"


@pytest.mark.parametrize(("stage", "frozen", "rescaled"), [(1, False, True), (2, False, False), (2, True, True)])
def test_where_rope_is_rescaled(stage: Stage, frozen: bool, rescaled: bool) -> None:
    """In stage 2 only where it is asked for, and then for all slices of a volume alike, however many there are."""
    network = training_nano(rope_rescale_frozen=frozen)
    network.set_stage(stage)
    network.train()
    seen = tables(network, torch.randn(1, 1, 3, 64, 64))
    assert len(seen) == BLOCKS
    assert torch.equal(seen[0], seen[1]) != rescaled
    network.eval()
    seen = tables(network, torch.randn(1, 1, 3, 64, 64))
    assert all(torch.equal(seen[0], table) for table in seen), "in evaluation nothing is drawn"


def test_all_slices_of_a_volume_have_the_same_rescaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen ViT takes slabs in passes, but not if each pass would draw its own factors."""
    monkeypatch.setattr(f"{ENCODER}.MAX_TOKENS_PER_PASS", 16)
    network = training_nano(rope_rescale_frozen=True)
    assert len(tables(network, torch.randn(1, 1, 5, 64, 64))) == BLOCKS


def test_evaluation_is_what_it_is_without_rescaling() -> None:
    """Bit for bit: prediction does not change with how training drew."""
    network, plain = training_nano(), training_nano(rope_rescale=None)
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 4, 40, 56)
    for stage in (1, 2):
        outputs = []
        for model in (network, plain):
            model.set_stage(stage)
            with torch.no_grad():
                outputs.append(model.eval()(x))
        assert torch.equal(*outputs)


@pytest.mark.parametrize(("stage", "frozen"), [(1, False), (2, True)])
def test_what_is_recomputed_has_the_factors_of_the_forward_pass(stage: Stage, frozen: bool) -> None:
    """Other factors in the recomputation would give gradients of another function."""
    network = training_nano(rope_rescale_frozen=frozen)
    network.set_stage(stage)
    for layer in network.encoder.lora_layers():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    other = copy.deepcopy(network)
    other.checkpoint_activations()
    x = torch.randn(2, 1, 3, 32, 32)
    losses = []
    for model in (network.train(), other.train()):
        torch.manual_seed(1)
        losses.append(model(x).square().mean())
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    compared = 0
    for name, parameter in network.encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(other.encoder.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-7)
            compared += 1
    assert compared


@pytest.mark.end_to_end
def test_training_with_rescaling_in_stage_2_compiles_whole() -> None:
    network = training_nano(rope_rescale_frozen=True, lora_on_ice=True)
    network.checkpoint_activations()
    torch.compile(network, backend="aot_eager", fullgraph=True)(torch.randn(1, 1, 3, 32, 32)).mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


# ---- slabs in passes ----


def slabs_per_pass(network: DINOMed3D) -> list[int]:
    """Numbers of slabs that the ViT gets at a time, from now on."""
    seen: list[int] = []
    network.encoder.vit.blocks[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return seen


@pytest.mark.parametrize("training", [False, True])
def test_a_frozen_vit_takes_slabs_in_passes(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    network = nano().eval()
    x = torch.randn(2, 1, 5, 32, 32)
    expected = network(x)
    monkeypatch.setattr(f"{ENCODER}.MAX_TOKENS_PER_PASS", 4 * 8 * 8 + 3)
    seen = slabs_per_pass(network)
    logits = network.train(training)(x)
    assert seen == [4, 4, 2]
    assert training or torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_stage_1_trains_on_all_slabs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE's rescaling is one for a forward pass."""
    network = nano().train()
    network.set_stage(1, single_slab_input=True)
    monkeypatch.setattr(f"{ENCODER}.MAX_TOKENS_PER_PASS", 4)
    seen = slabs_per_pass(network)
    network(torch.randn(6, 1, 3, 32, 32))
    assert seen == [6]


# ---- weights ----


def test_pretrained_weights_fill_ice_and_vit() -> None:
    network = nano()
    weights = {name: torch.randn(shape) for name, shape in network.pretrained_shapes().items()}
    network.load_pretrained(weights)
    assert network.weights_loaded
    assert torch.equal(network.encoder.ice.conv.weight[:, 0], weights["patch_embed.proj.weight"])
    qkv = network.encoder.vit.blocks[2].attn.qkv.get_base_layer().weight
    assert torch.equal(qkv, weights["blocks.2.attn.qkv.weight"])


@pytest.mark.parametrize("fault", ["missing", "left over", "shape"])
def test_incomplete_pretrained_weights_are_refused(fault: str) -> None:
    network = nano()
    weights = {name: torch.zeros(shape) for name, shape in network.pretrained_shapes().items()}
    if fault == "missing":
        del weights["blocks.1.norm1.weight"]
    elif fault == "left over":
        weights["blocks.1.extra"] = torch.zeros(1)
    else:
        weights["blocks.1.norm1.weight"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"1 tensor does not fit: blocks\.1\."):
        network.load_pretrained(weights)
    assert not network.weights_loaded


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_stage_1_goes_over_with_and_without_lora_on_ice(source: bool, target: bool) -> None:
    """A stage 1 of one trainer starts another's stage 2: in stage 1 there is no LoRA."""
    theirs, ours = training_nano(lora_on_ice=source), training_nano(lora_on_ice=target)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1)
    ours.start_from_stage1(theirs.state_dict())
    convs: list[Any] = [network.encoder.ice.conv for network in (theirs, ours)]
    convs = [getattr(conv, "base_layer", conv) for conv in convs]
    assert torch.equal(convs[0].weight, convs[1].weight)
    assert torch.equal(convs[0].bias, convs[1].bias)


def test_starts_from_a_2d_vit() -> None:
    network, plain = training_nano(lora_on_ice=True), training_nano()
    torch.manual_seed(1)
    weights = {name: torch.randn(shape) for name, shape in plain.pretrained_shapes().items()}
    assert network.pretrained_shapes() == plain.pretrained_shapes()
    for model in (network, plain):
        model.load_pretrained(weights)
    conv: Any = network.encoder.ice.conv
    assert torch.equal(conv.base_layer.weight, plain.encoder.ice.conv.weight)


def test_weights_without_lora_on_ice_are_refused_with_the_reason() -> None:
    """Such as those of the `_released` trainer before it had one; nnUNetv2_predict loads them into its network."""
    with pytest.raises(ValueError, match=r"without LoRA on the patch embedding.*version that wrote them"):
        training_nano(lora_on_ice=True).load_state_dict(training_nano().state_dict())
