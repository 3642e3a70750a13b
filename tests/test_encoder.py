"""The slab encoder in training: RoPE's rescaling of each block, and LoRA on the patch embedding."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d

BLOCKS = 4


def nano(**options) -> DINOMed3D:
    torch.manual_seed(0)
    return build_dinomed3d("nano", 1, 2, (3, 32, 32), **options).train()


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


def test_each_block_draws_its_own_rescaling() -> None:
    """As in DINOv3's training; timm draws once for all blocks."""
    network = nano()
    network.set_stage(1)
    x = torch.randn(1, 1, 3, 64, 64)
    first, second = tables(network, x), tables(network, x)
    assert len(first) == BLOCKS
    assert not any(torch.equal(a, b) for i, a in enumerate(first) for b in first[:i]), "blocks share a factor"
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "forward passes share factors"


@pytest.mark.parametrize(("stage", "frozen", "rescaled"), [(1, False, True), (2, False, False), (2, True, True)])
def test_where_rope_is_rescaled(stage: int, frozen: bool, rescaled: bool) -> None:
    """In stage 2 only where it is asked for, and then for all slices of a volume alike, however many there are."""
    network = nano(rope_rescale_frozen=frozen)
    network.set_stage(stage)
    network.train()
    seen = tables(network, torch.randn(1, 1, 3, 64, 64))
    assert len(seen) == BLOCKS
    assert torch.equal(seen[0], seen[1]) != rescaled
    network.eval()
    seen = tables(network, torch.randn(1, 1, 3, 64, 64))
    assert all(torch.equal(seen[0], table) for table in seen), "in evaluation nothing is drawn"


def test_all_slices_of_a_volume_have_the_same_rescaling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen ViT takes slices in chunks: not where each chunk would draw its own factors."""
    monkeypatch.setattr("nnunetv2_dinomed3d.network_architecture.encoder.TOKENS_AT_ONCE", 16)
    network = nano(rope_rescale_frozen=True)
    assert len(tables(network, torch.randn(1, 1, 5, 64, 64))) == BLOCKS


def test_evaluation_is_what_it_is_without_rescaling() -> None:
    """Bit for bit: prediction does not change with how training drew."""
    network, plain = nano(), nano(rope_rescale=None)
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
def test_what_is_recomputed_has_the_factors_of_the_forward_pass(stage: int, frozen: bool) -> None:
    """Other factors in the recomputation would give gradients of another function."""
    network = nano(rope_rescale_frozen=frozen)
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


def test_training_with_rescaling_in_stage_2_compiles_whole() -> None:
    network = nano(rope_rescale_frozen=True, lora_on_ice=True)
    network.checkpoint_activations()
    torch.compile(network, backend="aot_eager", fullgraph=True)(torch.randn(1, 1, 3, 32, 32)).mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


# ---- LoRA on the patch embedding ----


def test_lora_on_ice_is_trained_in_stage_2_and_off_in_stage_1() -> None:
    network = nano(lora_on_ice=True)
    assert isinstance(network.encoder.ice.conv, LoraLayer)
    assert len(network.encoder.lora_layers()) == len(nano().encoder.lora_layers()) + 1
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
    network, plain = nano(lora_on_ice=True).eval(), nano().eval()
    conv = network.encoder.ice.conv
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
        with network.merged_lora(), network.slices_encoded_once():
            torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_without_it_no_name_changes() -> None:
    """Checkpoints of the other trainers are what they were."""
    names = {name for name in nano().state_dict() if name.startswith("encoder.ice.")}
    assert names == {"encoder.ice.conv.weight", "encoder.ice.conv.bias"}


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize("target", [True, False])
def test_stage_1_goes_over_with_and_without_lora_on_ice(source: bool, target: bool) -> None:
    """A stage 1 of one trainer starts another's stage 2: in stage 1 there is no LoRA."""
    theirs, ours = nano(lora_on_ice=source), nano(lora_on_ice=target)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(1)
    ours.load_stage1(theirs.state_dict())
    convs = [getattr(network.encoder.ice.conv, "base_layer", network.encoder.ice.conv) for network in (theirs, ours)]
    assert torch.equal(convs[0].weight, convs[1].weight)
    assert torch.equal(convs[0].bias, convs[1].bias)


def test_starts_from_a_2d_vit() -> None:
    network, plain = nano(lora_on_ice=True), nano()
    torch.manual_seed(1)
    weights = {name: torch.randn(shape) for name, shape in plain.pretrained_shapes().items()}
    assert network.pretrained_shapes() == plain.pretrained_shapes()
    for model in (network, plain):
        model.load_pretrained(weights)
    assert torch.equal(network.encoder.ice.conv.base_layer.weight, plain.encoder.ice.conv.weight)


def test_weights_without_lora_on_ice_are_refused_with_the_reason() -> None:
    """Such as those of the `_released` trainer before it had one; nnUNetv2_predict loads them into its network."""
    with pytest.raises(ValueError, match=r"without LoRA on the patch embedding.*version that wrote them"):
        nano(lora_on_ice=True).load_state_dict(nano().state_dict())
