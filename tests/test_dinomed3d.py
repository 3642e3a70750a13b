"""The network of both stages: any size in, the right parameters trained, nothing lost between the stages."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from peft.tuners.lora import LoraLayer

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from tests.networks import nano, with_trained_lora

STAGE2_MODULES = ("adapter.", "detail.", "fusion.", "decoder.")


def step(network: DINOMed3D, x: torch.Tensor) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    network(x).square().mean().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    "patch_size",
    [
        (5, 40, 56),
        (3, 33, 17),  # divides by nothing
        (1, 48, 32),  # a single slice
        (4, 9, 7),  # in-plane extents under 16
        (1, 4, 4),  # one token: every norm sees one value per channel
        (2, 520, 24),  # scale 1
        (7, 200, 30),  # scale 2
    ],
)
@pytest.mark.parametrize("depth_alignment", ["exact", "released"])
def test_any_patch_size_trains_in_both_stages(patch_size: tuple[int, int, int], depth_alignment: str) -> None:
    network = nano(patch_size, depth_alignment=depth_alignment).train()
    x = torch.randn(1, 1, *patch_size)
    for stage in (1, 2):
        network.set_stage(stage)
        logits = network(x)
        assert logits.shape == (1, 3, *patch_size)
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("slab_depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("in_channels", [1, 4])
def test_any_slab_depth_and_channels(slab_depth: int, in_channels: int) -> None:
    network = nano(in_channels=in_channels, slab_depth=slab_depth).eval()
    assert network(torch.randn(2, in_channels, 3, 20, 20)).shape == (2, 3, 3, 20, 20)
    network.set_stage(1, single_slab_input=True)
    assert network(torch.randn(2, in_channels, slab_depth, 20, 20)).shape == (2, 3, 1, 20, 20)


def test_stage1_predicts_each_slice_as_its_slab() -> None:
    """Stage 1 is trained on slabs and validated on volumes: both must mean the same."""
    network = nano().eval()
    volume = torch.randn(1, 1, 6, 24, 40)
    network.set_stage(1)
    logits = network(volume)
    network.set_stage(1, single_slab_input=True)
    for d in range(1, 5):
        torch.testing.assert_close(network(volume[:, :, d - 1 : d + 2])[:, :, 0], logits[:, :, d], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [(2, 40, 40), (2, 201, 100), (2, 370, 20)])  # scale 4, 2, 1
@pytest.mark.parametrize("stage", [1, 2])
def test_logits_lie_over_their_voxels(patch_size: tuple[int, int, int], stage: Stage) -> None:
    """Padding to whole tokens must not stretch or shift: a network that sees the padding itself agrees with ours."""
    network = nano(patch_size).eval()
    network.set_stage(stage)
    token = 16 // network.scale
    x = torch.randn(1, 1, *patch_size)
    height, width = patch_size[1:]
    whole = torch.zeros(1, 1, patch_size[0], -(-height // token) * token, -(-width // token) * token)
    whole[..., :height, :width] = x
    if network.scale == 1:  # otherwise the enlarged border row meets a neighbour of zeros
        torch.testing.assert_close(network(whole)[..., :height, :width], network(x), rtol=1e-4, atol=1e-5)
    far = (slice(None), slice(None), slice(None), slice(0, height // 2), slice(0, width // 2))
    assert (network(whole)[far] - network(x)[far]).abs().mean() < 0.05 * network(x).std()


@pytest.mark.parametrize("stage", [1, 2])
def test_exactly_the_stages_parameters_get_gradients(stage: Stage) -> None:
    """A parameter without one breaks DDP; a LoRA without one is silently useless."""
    network = with_trained_lora(nano()).train()
    network.set_stage(stage)
    network(torch.randn(2, 1, 4, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        is_lora = ".lora_" in name
        if stage == 2:
            trained = is_lora or name.startswith(STAGE2_MODULES)
        else:
            trained = name.startswith(("encoder.", "proxy_head.")) and not is_lora and ".vit.norm." not in name
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name
        if is_lora and trained:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("stage", [1, 2])
def test_frozen_parameters_do_not_change_in_a_step(stage: Stage) -> None:
    network = nano().train()
    network.set_stage(stage)
    before = copy.deepcopy(network.state_dict())
    step(network, torch.randn(2, 1, 4, 32, 32))
    for name, parameter in network.named_parameters():
        changed = not torch.equal(before[name], parameter)
        # after one step from B = 0 a LoRA's A has no gradient yet, but weight decay
        assert changed == parameter.requires_grad, name


def test_the_frozen_vit_stays_in_eval_and_lora_dropout_does_not() -> None:
    """nnU-Net calls .train() every epoch; DINOv3's training-time randomness must not come back with it."""
    network = nano()
    network.train()
    assert not any(m.training for m in network.encoder.vit.blocks.modules() if not _is_lora_dropout(network, m))
    assert all(layer.lora_dropout.training for layer in network.encoder.lora_layers())
    assert network.decoder.training
    network.eval()
    assert not any(module.training for module in network.modules())
    network.set_stage(1)
    network.train()
    assert all(module.training for module in network.encoder.vit.modules() if not isinstance(module, LoraLayer))


def _is_lora_dropout(network: DINOMed3D, module: torch.nn.Module) -> bool:
    return any(module in layer.lora_dropout.modules() for layer in network.encoder.lora_layers())


def test_state_dict_has_the_same_keys_in_both_stages() -> None:
    network = nano()
    keys = list(network.state_dict())
    network.set_stage(1)
    assert list(network.state_dict()) == keys
    assert {key for key in keys if ".seg_layers." in key} == {
        f"{head}.seg_layers.{kind}" for head in ("proxy_head", "decoder") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_loaded_weights_predict_as_the_stage_they_are_of(stage: Stage) -> None:
    """A checkpoint of stage 1 given to nnUNetv2_predict must not run through an untrained decoder."""
    trained = nano()
    trained.set_stage(stage)
    step(trained.train(), torch.randn(1, 1, 4, 32, 32))
    loaded = build_dinomed3d("nano", 1, 3, (4, 32, 32))
    assert not loaded.weights_loaded
    loaded.load_state_dict(trained.state_dict())
    assert loaded.weights_loaded
    x = torch.randn(1, 1, 4, 32, 32)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize(("proxy", "num_maps"), [("linear", 1), ("upernet", 4)])
def test_stage_1_asks_for_the_maps_that_its_head_takes(proxy: str, num_maps: int) -> None:
    network = nano(proxy=proxy)
    maps = []
    network.encoder.register_forward_hook(lambda module, args, output: maps.append(len(output)))
    for stage in (1, 2):
        network.set_stage(stage)
        network(torch.randn(1, 1, 2, 16, 16))
    assert maps == [num_maps, 4]


def test_on_the_cpu_weights_are_channels_last_and_stay_trainable() -> None:
    network: Any = nano().eval()
    x = torch.randn(1, 1, 4, 32, 32)
    expected = network(x)
    with torch.inference_mode():  # as nnU-Net's predictor does
        network.to(torch.device("cpu"))
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
    weight = network.decoder.refine_full.body[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_inference()
    network(x).sum().backward()
    assert weight.grad is not None


ABLATIONS = {
    "frozen": {"train_encoder": False},
    "no detail": {"detail_stream": False},
    "UPerNet proxy": {"proxy": "upernet"},
    "LoRA in stage 1": {"stage1_lora": True},
    "LoRA in stage 1 and on ICE": {"stage1_lora": True, "lora_on_ice": True},
}


@pytest.mark.parametrize("depth_alignment", ["exact", "released"])
@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=ABLATIONS)
def test_ablations_train_what_they_have(ablation: dict, depth_alignment: str) -> None:
    """A parameter that is trained and gets no gradient would stop DDP."""
    network = nano((3, 33, 17), depth_alignment=depth_alignment, **ablation).train()
    for stage in (1, 2):
        network.set_stage(stage)
        network.zero_grad()
        logits = network(torch.randn(2, 1, 3, 33, 17))
        assert logits.shape == (2, 3, 3, 33, 17)
        logits.square().mean().backward()
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (stage, name)


def test_frozen_stage1_trains_the_head_alone() -> None:
    network = nano(train_encoder=False)
    network.set_stage(1)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "proxy_head.seg_layers.weight",
        "proxy_head.seg_layers.bias",
    }
    assert not network.train().encoder.vit.training


def test_without_detail_there_is_none() -> None:
    names = [name for name, _ in nano(detail_stream=False).named_parameters()]
    assert not any(name.startswith(("detail.", "fusion.", "decoder.refine")) for name in names)
    assert any(name.startswith("decoder.seg_layers.") for name in names), "skipped by -pretrained_weights"


def test_stage1_of_another_network_starts_stage_2() -> None:
    """Another number of classes does not matter; LoRA and all of stage 2 stay as they were."""
    source, target = nano(), build_dinomed3d("nano", 1, 5, (4, 32, 32))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    before = copy.deepcopy(target.state_dict())
    target.start_from_stage1(source.state_dict())
    assert target.weights_loaded
    for name, value in target.state_dict().items():
        taken = name.startswith("encoder.") and ".lora_" not in name
        assert torch.equal(value, source.state_dict()[name] if taken else before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"slab_depth": 5},
            r"1 tensor does not fit: ice\.conv\.weight: expected \(96, 1, 5, 16, 16\), found \(96, 1, 3",
        ),
        ({}, "vit.cls"),
    ],
)
def test_stage1_that_does_not_fit_is_refused(options: dict, message: str) -> None:
    state = nano().state_dict()
    if not options:
        del state["encoder.vit.cls_token"]
    target = nano(**options)
    with pytest.raises(ValueError, match=rf"{message}.*slab depth K or number of image channels"):
        target.start_from_stage1(state)
    assert not target.weights_loaded


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_dinomed3d("huge", 1, 2, (4, 32, 32)), "no variant 'huge'; there are nano, tiny, small"),
        (lambda: DINOMed3D(1, 2, scale=3), "scale is 3"),
        (lambda: nano(depth_alignment="other"), "depth_alignment is 'other'"),
        (lambda: nano(proxy="mlp"), "proxy is 'mlp'"),
        (lambda: nano().set_stage(cast(Stage, 3)), "stage is 3"),
        (lambda: nano().set_stage(2, single_slab_input=True), "stage 2 takes volumes"),
    ],
)
def test_wrong_arguments_say_so(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
