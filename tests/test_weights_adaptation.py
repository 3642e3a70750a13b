"""Weights for a network with other channels, classes, slabs or scale: what is the same function, and what is named."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import ICE, is_lora
from nnunetv2_dinomed3d.weights.adaptation import Adaptation, Target, Trained, adapt
from nnunetv2_dinomed3d.weights.spreading import Channels
from tests.networks import nano, with_trained_lora

PATCH = (4, 160, 160)  # S = 4
SCALE_1, SCALE_2 = (4, 368, 32), (4, 200, 32)
INPUTS = frozenset(
    [*(f"{ICE}{name}weight" for name in ("", "base_layer.", "lora_A.default.")), "detail.scale_1.0.weight"]
)
HEADS = frozenset(f"{head}.seg_layers.{kind}" for head in ("proxy_head", "decoder") for kind in ("weight", "bias"))


def trained(patch: tuple[int, int, int] = PATCH, **settings: Any) -> DINOMed3D:
    """A network whose every number differs from a fresh one's, LoRA included."""
    network = with_trained_lora(nano(patch, **settings))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02)
    return network.eval()


def other(
    patch: tuple[int, int, int] = PATCH, channels: Channels | None = None, **settings: Any
) -> tuple[DINOMed3D, Target]:
    """A fresh network, and what an adaptation needs to know of it."""
    channels = channels or Channels(1)
    network = nano(patch, channels.total, **settings).eval()
    return network, Target(network.state_dict(), channels, INPUTS, HEADS)


def fill(network: DINOMed3D, result: Adaptation) -> DINOMed3D:
    network.load_state_dict(result.state)
    return network.eval()


def logits(network: DINOMed3D, volume: Tensor) -> Tensor:
    with torch.no_grad():
        return network(volume)


def volume(channels: int = 1, depth: int = 4) -> Tensor:
    return torch.randn(1, channels, depth, 24, 20, generator=torch.Generator().manual_seed(1))


def ends(state: Mapping[str, Tensor], result: Adaptation) -> None:
    """Each tensor of the network has one entry; of the checkpoint, each is in the network or named as not used."""
    assert sorted(e.name for e in result.of("taken", "spread", "left random")) == sorted(result.state)
    unused = {entry.name for entry in result.of("not used")}
    assert unused <= set(state)
    assert all(entry.note for entry in result.of("spread", "left random", "not used"))
    fitting = {entry.name for entry in result.of("taken", "spread")}
    assert not fitting & unused
    assert set(state) - unused - fitting <= {n for n in state if is_lora(n) or "base_layer" in n or ".3." in n}


def test_an_equal_network_takes_everything() -> None:
    network, target = other()
    old = trained()
    result = adapt(Trained(old.state_dict(), Channels(1)), target)
    ends(old.state_dict(), result)
    assert {entry.fate for entry in result.entries} == {"taken"}
    assert result.share == 1
    assert not any(entry.note for entry in result.entries)
    assert torch.equal(logits(fill(network, result), volume()), logits(old, volume()))


def test_more_channels_answer_a_repeated_image_as_before() -> None:
    network, target = other(channels=Channels(3))
    old = trained()
    result = adapt(Trained(old.state_dict()), target)
    ends(old.state_dict(), result)
    spread = {entry.name: entry.note for entry in result.of("spread")}
    assert spread == dict.fromkeys((f"{ICE}weight", "detail.scale_1.0.weight"), "1 to 3 image channels")
    weight = old.state_dict()[f"{ICE}weight"]
    assert torch.equal(result.state[f"{ICE}weight"], weight.expand(-1, 3, -1, -1, -1) / 3), "official weights' rule"
    expected = logits(old, volume())
    torch.testing.assert_close(logits(fill(network, result), volume().repeat(1, 3, 1, 1, 1)), expected)


def test_fewer_channels_answer_a_repeated_image_as_before() -> None:
    network, target = other(channels=Channels(2))
    old = trained(in_channels=4)
    result = adapt(Trained(old.state_dict(), Channels(4)), target)
    expected = logits(old, volume().repeat(1, 4, 1, 1, 1))
    torch.testing.assert_close(logits(fill(network, result), volume().repeat(1, 2, 1, 1, 1)), expected)


def test_a_cascade_starts_as_the_network_without() -> None:
    """Whatever the coarser segmentation says; from one to another cascade, its channels start anew."""
    network, target = other(channels=Channels(1, 2))
    old = trained()
    result = adapt(Trained(old.state_dict(), Channels(1)), target)
    assert {e.note for e in result.of("spread")} == {"0 to 2 channels of a coarser segmentation (zero)"}
    image = volume()
    whole = torch.cat([image, torch.ones(1, 2, *image.shape[2:])], dim=1)
    filled = fill(network, result)
    torch.testing.assert_close(logits(filled, whole), logits(old, image))

    back, target = other(channels=Channels(3))  # as many channels, and others
    again = adapt(Trained(filled.state_dict(), Channels(1, 2)), target)
    torch.testing.assert_close(logits(fill(back, again), image.repeat(1, 3, 1, 1, 1)), logits(old, image))


@pytest.mark.parametrize("before", [1, 2, 3])
def test_more_slices_predict_as_before(before: int) -> None:
    network, target = other(slab_depth=5)
    old = trained(slab_depth=before)
    result = adapt(Trained(old.state_dict(), Channels(1)), target)
    ends(old.state_dict(), result)
    assert [(e.name, e.note) for e in result.of("spread")] == [(f"{ICE}weight", f"K = {before} to 5 slices")]
    torch.testing.assert_close(logits(fill(network, result), volume()), logits(old, volume()))


@pytest.mark.parametrize(("before", "after"), [(5, 2), (4, 3), (3, 1)])
def test_fewer_slices_answer_equal_slices_as_before(before: int, after: int) -> None:
    network, target = other(slab_depth=after)
    old = trained(slab_depth=before)
    filled = fill(network, adapt(Trained(old.state_dict()), target))
    slab = torch.randn(1, 1, 1, 32, 32).expand(-1, -1, 5, -1, -1)
    with torch.no_grad():
        answers = [net.encoder.ice(slab[:, :, : net.options.slab_depth], pad_depth=False) for net in (old, filled)]
    torch.testing.assert_close(*answers)


def test_other_classes() -> None:
    _, target = other(num_classes=5)
    old = trained(num_classes=3)
    result = adapt(Trained(old.state_dict()), target)
    ends(old.state_dict(), result)
    assert {(e.name, e.note) for e in result.of("left random")} == {
        (name, "segmentation layer for other classes") for name in HEADS
    }
    assert {(e.name, e.note) for e in result.of("not used")} == {(name, "segmentation layer") for name in HEADS}
    assert all(torch.equal(result.state[name], target.state[name]) for name in HEADS)


def test_heads_that_a_training_draws_anew_are_left_out() -> None:
    """Also of as many classes: nobody shall predict with them."""
    _, fresh = other()
    target = Target(fresh.state, fresh.channels, fresh.inputs, HEADS, redrawn=HEADS)
    result = adapt(Trained(trained().state_dict()), target)
    assert set(result.state) == set(fresh.state) - HEADS
    assert {entry.name for entry in result.of("left random")} == HEADS


@pytest.mark.parametrize(
    ("before", "after", "taken", "random"),
    [
        (SCALE_1, SCALE_2, {"3.3.1": "3.3"}, {"0.3", "2.3"}),
        (SCALE_2, SCALE_1, {"3.3": "3.3.1"}, {"0.3", "1.3"}),
        (SCALE_2, PATCH, {"3.3.1": "3.3.1", "2.3.1": "2.3"}, {"1.3"}),
        (PATCH, SCALE_1, {"3.3": "3.3.1"}, {"0.3", "1.3"}),
    ],
)
def test_another_in_plane_scale(
    before: tuple[int, int, int], after: tuple[int, int, int], taken: dict[str, str], random: set[str]
) -> None:
    """Of the adapter's resampling, convolutions between the same strides in voxels stay; nothing else depends on S."""
    _, target = other(after)
    old = trained(before).state_dict()
    result = adapt(Trained(old), target)
    kinds = ("weight", "bias")
    for name, source in taken.items():
        for kind in kinds:
            assert torch.equal(result.state[f"adapter.levels.{name}.{kind}"], old[f"adapter.levels.{source}.{kind}"])
    left = {entry.name: entry.note for entry in result.of("left random")}
    assert set(left) == {f"adapter.levels.{name}.{kind}" for name in random for kind in kinds}
    assert set(left.values()) == {"resampling of another in-plane scale S or depth alignment"}


@pytest.mark.parametrize("slab_depth", [3, 5])
def test_lora_on_ice_becomes_part_of_a_network_without(slab_depth: int) -> None:
    network, target = other(slab_depth=slab_depth)
    old = trained(lora_on_ice=True)
    result = adapt(Trained(old.state_dict()), target)
    ends(old.state_dict(), result)
    (ice,) = (entry for entry in result.entries if entry.name == f"{ICE}weight")
    assert "with its LoRA added" in ice.note
    assert not result.of("not used")
    torch.testing.assert_close(logits(fill(network, result), volume()), logits(old, volume()))


def test_a_network_with_lora_on_ice_starts_it_anew() -> None:
    network, target = other(lora_on_ice=True)
    old = trained()
    result = adapt(Trained(old.state_dict()), target)
    assert {entry.note for entry in result.of("left random")} == {"LoRA, which starts anew"}
    torch.testing.assert_close(logits(fill(network, result), volume()), logits(old, volume()))


def test_what_stage_1_has_not_trained_is_not_taken() -> None:
    _, target = other()
    old = trained()
    old.set_stage(1)
    result = adapt(Trained(old.state_dict()), target)
    ends(old.state_dict(), result)
    assert {entry.module for entry in result.of("taken")} == {"encoder", "proxy_head", "setting"}
    assert not any(is_lora(entry.name) for entry in result.of("taken"))
    left = result.of("left random")
    assert {entry.note for entry in left} == {"the checkpoint is of stage 1, which does not train it"}
    assert {entry.name for entry in left} == {entry.name for entry in result.of("not used")}


@pytest.mark.parametrize("stage1_lora", [True, False])
def test_lora_of_stage_1_becomes_part_of_the_vit(stage1_lora: bool) -> None:
    """Its own stage 1 goes on as well as another trainer's."""
    network, target = other(stage1_lora=stage1_lora)
    old = trained(stage1_lora=True)
    old.set_stage(1)
    filled = fill(network, adapt(Trained(old.state_dict(), stage1_lora=True), target))
    assert filled.stage == 1
    torch.testing.assert_close(logits(filled, volume()), logits(old, volume()), rtol=1e-4, atol=1e-4)


def test_a_bias_goes_with_its_weight() -> None:
    state = {
        "encoder.weight": torch.zeros(4, 4),
        "encoder.conv.weight": torch.zeros(4, 3),
        "encoder.conv.bias": torch.zeros(4),
    }
    old = {
        "encoder.weight": torch.ones(4, 4),
        "encoder.conv.weight": torch.ones(4, 5),
        "encoder.conv.bias": torch.ones(4),
    }
    result = adapt(Trained(old), Target(state, Channels(1), frozenset()))
    notes = {(entry.name, entry.fate): entry.note for entry in result.entries}
    assert notes["encoder.conv.weight", "left random"] == "of the shape (4, 5) in the checkpoint"
    for fate in ("left random", "not used"):
        assert notes["encoder.conv.bias", fate] == "bias of a layer whose weight does not fit"


def test_a_tensor_with_two_names_counts_once() -> None:
    weight, alias = torch.ones(4, 4), torch.zeros(4, 4)
    state = {"encoder.weight": alias, "decoder.encoder.weight": alias, "decoder.weight": torch.zeros(2, 2)}
    old = {"encoder.weight": weight, "decoder.encoder.weight": weight.clone(), "decoder.weight": torch.ones(2, 2)}
    result = adapt(Trained(old), Target(state, Channels(1), frozenset()))
    assert [(entry.name, entry.fate) for entry in result.entries] == [
        ("encoder.weight", "taken"),
        ("decoder.weight", "taken"),
    ]
    assert all(torch.equal(result.state[name], old[name]) for name in state)


def test_another_network_is_refused() -> None:
    _, target = other()
    wider = {name: torch.zeros(*tensor.shape, 2) for name, tensor in trained().state_dict().items()}
    narrow = {name: tensor for name, tensor in trained().state_dict().items() if not name.startswith("encoder.vit")}
    del wider["_extra_state"]
    for state in (wider, narrow, {"model.weight": torch.zeros(3, 3)}, {}):
        with pytest.raises(ValueError, match=r"another network. Of the \d+ weights of encoder, 0 fit; encoder.vit"):
            adapt(Trained(state), target)


def test_numbers_that_are_not_finite() -> None:
    _, target = other()
    state = trained().state_dict()
    state["fusion.gate.weight"][0] = torch.nan
    with pytest.raises(ValueError, match=r"fusion\.gate\.weight holds NaN or infinity.*Name an earlier checkpoint"):
        adapt(Trained(state), target)


def test_the_checkpoint_stays_as_it_is() -> None:
    """And the result is no view of it, which would write a file as large as both."""
    _, target = other(slab_depth=5, lora_on_ice=True)
    old = trained(lora_on_ice=True, stage1_lora=True)
    old.set_stage(1)
    state = old.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    result = adapt(Trained(state, stage1_lora=True), target)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in result.state.values())
    assert not {t.data_ptr() for t in result.state.values()} & {t.data_ptr() for t in state.values()}
