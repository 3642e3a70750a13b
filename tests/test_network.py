"""The network of both stages: any size in, the right parameters trained, nothing lost between the stages."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer

from nnunetv2_dinomed3d.network_architecture import VARIANTS, DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.encoder import SlabEncoder

TINY_VIT = {"embed_dim": 96, "depth": 4, "num_heads": 3, "init_values": 0.1}
STAGE2_MODULES = ("adapter.", "detail.", "fusion.", "decoder.")


def tiny(patch_size: tuple[int, int, int] = (4, 32, 32), in_channels: int = 1, **options) -> DINOMed3D:
    torch.manual_seed(0)
    return build_dinomed3d("nano", in_channels, 3, patch_size, **options)


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
    network = tiny(patch_size, depth_alignment=depth_alignment).train()
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
    network = tiny(in_channels=in_channels, slab_depth=slab_depth).eval()
    assert network(torch.randn(2, in_channels, 3, 20, 20)).shape == (2, 3, 3, 20, 20)
    network.set_stage(1, bare_slabs=True)
    assert network(torch.randn(2, in_channels, slab_depth, 20, 20)).shape == (2, 3, 1, 20, 20)


def test_stage1_predicts_each_slice_as_its_slab() -> None:
    """Stage 1 is trained on slabs and validated on volumes: both must mean the same."""
    network = tiny().eval()
    volume = torch.randn(1, 1, 6, 24, 40)
    network.set_stage(1)
    logits = network(volume)
    network.set_stage(1, bare_slabs=True)
    for d in range(1, 5):
        torch.testing.assert_close(network(volume[:, :, d - 1 : d + 2])[:, :, 0], logits[:, :, d], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch_size", [(2, 40, 40), (2, 201, 100), (2, 370, 20)])  # scale 4, 2, 1
@pytest.mark.parametrize("stage", [1, 2])
def test_logits_lie_over_their_voxels(patch_size: tuple[int, int, int], stage: int) -> None:
    """Padding to whole tokens must not stretch or shift: a network that sees the padding itself agrees with ours."""
    network = tiny(patch_size).eval()
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
def test_exactly_the_stages_parameters_get_gradients(stage: int) -> None:
    """A parameter without one breaks DDP; a LoRA without one is silently useless."""
    network = tiny().train()
    network.set_stage(stage)
    with torch.no_grad():  # LoRA starts with B = 0, which would hide A's gradient
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
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
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("stage", [1, 2])
def test_frozen_parameters_do_not_change_in_a_step(stage: int) -> None:
    network = tiny().train()
    network.set_stage(stage)
    before = copy.deepcopy(network.state_dict())
    step(network, torch.randn(2, 1, 4, 32, 32))
    for name, parameter in network.named_parameters():
        changed = not torch.equal(before[name], parameter)
        # after one step from B = 0 a LoRA's A has no gradient yet, but weight decay
        assert changed == parameter.requires_grad, name


def test_the_frozen_vit_stays_in_eval_and_lora_dropout_does_not() -> None:
    """nnU-Net calls .train() every epoch; DINOv3's training-time randomness must not come back with it."""
    network = tiny()
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
    network = tiny()
    keys = list(network.state_dict())
    network.set_stage(1)
    assert list(network.state_dict()) == keys
    assert {key for key in keys if ".seg_layers." in key} == {
        f"{head}.seg_layers.{kind}" for head in ("proxy_head", "decoder") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_loaded_weights_predict_as_the_stage_they_are_of(stage: int) -> None:
    """A checkpoint of stage 1 given to nnUNetv2_predict must not run through an untrained decoder."""
    trained = tiny()
    trained.set_stage(stage)
    step(trained.train(), torch.randn(1, 1, 4, 32, 32))
    loaded = build_dinomed3d("nano", 1, 3, (4, 32, 32))
    assert not loaded.has_weights
    loaded.load_state_dict(trained.state_dict())
    assert loaded.has_weights
    x = torch.randn(1, 1, 4, 32, 32)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))


@pytest.mark.parametrize(
    ("vit_name", "per_block"), [("vit_small_patch16_dinov3", 4), ("vit_small_plus_patch16_dinov3", 5)]
)
def test_lora_is_on_every_linear_layer_of_the_blocks(vit_name: str, per_block: int) -> None:
    """peft skips names that it does not find: a SwiGLU MLP has others."""
    encoder = SlabEncoder(1, 3, vit_name, TINY_VIT, 4, 4, 0.1)
    assert len(encoder.lora_layers()) == 4 * per_block
    linear = [m for m in encoder.vit.blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 3 * len(encoder.lora_layers()), "base layer, A and B"


def test_merged_lora_predicts_the_same_and_leaves_no_trace() -> None:
    network = tiny().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
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
    network = tiny().eval()
    merged = []
    layer = network.encoder.lora_layers()[0]
    layer.register_forward_hook(lambda *_: merged.append(layer.merged))
    with torch.set_grad_enabled(gradients):
        network(torch.randn(1, 1, 2, 16, 16))
    assert merged == [not gradients]
    assert not layer.merged


@pytest.mark.parametrize("stage", [1, 2])
def test_checkpointed_vit_gives_the_same_gradients(stage: int) -> None:
    x = torch.randn(1, 1, 4, 32, 32)
    gradients = []
    for checkpointed in (False, True):
        network = tiny().eval()  # no dropout
        network.set_stage(stage)
        network.checkpoint_activations(checkpointed)
        network.train()
        for layer in network.encoder.lora_layers():
            layer.lora_dropout.eval()
        network.decoder.eval()
        network(x).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def slices_seen(network: DINOMed3D) -> list[int]:
    """How many slices the ViT gets at a time, from now on."""
    seen: list[int] = []
    network.encoder.vit.blocks[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return seen


@pytest.mark.parametrize("training", [False, True])
def test_a_frozen_vit_takes_slices_in_chunks(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    network = tiny().eval()
    x = torch.randn(2, 1, 5, 32, 32)
    expected = network(x)
    monkeypatch.setattr("nnunetv2_dinomed3d.network_architecture.encoder.TOKENS_AT_ONCE", 4 * 8 * 8 + 3)
    seen = slices_seen(network)
    logits = network.train(training)(x)
    assert seen == [4, 4, 2]
    assert training or torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_stage_1_trains_on_all_slabs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE's rescaling is one for a forward pass."""
    network = tiny().train()
    network.set_stage(1, bare_slabs=True)
    monkeypatch.setattr("nnunetv2_dinomed3d.network_architecture.encoder.TOKENS_AT_ONCE", 4)
    seen = slices_seen(network)
    network(torch.randn(6, 1, 3, 32, 32))
    assert seen == [6]


@pytest.mark.parametrize(("proxy", "levels"), [("linear", 1), ("upernet", 4)])
def test_stage_1_asks_for_the_maps_that_its_head_takes(proxy: str, levels: int) -> None:
    network = tiny(proxy=proxy)
    maps = []
    network.encoder.register_forward_hook(lambda module, args, output: maps.append(len(output)))
    for stage in (1, 2):
        network.set_stage(stage)
        network(torch.randn(1, 1, 2, 16, 16))
    assert maps == [levels, 4]


def test_on_the_cpu_weights_are_channels_last_and_stay_trainable() -> None:
    network = tiny().eval()
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


def test_autocast_float16_becomes_bfloat16_and_logits_stay_float32() -> None:
    """nnU-Net's autocast is float16, in which attention can overflow."""
    network = tiny()
    seen = []
    network.decoder.upernet.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        logits = network(torch.randn(1, 1, 4, 32, 32))
    assert logits.dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_vit_is_float32_where_bfloat16_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.network_architecture.dinomed3d.has_bfloat16", lambda device_type: False)
    network = tiny()
    features = []
    network.encoder.register_forward_hook(lambda module, args, output: features.extend(output))
    with torch.autocast("cpu", dtype=torch.float16):
        network(torch.randn(1, 1, 4, 32, 32))
    assert {feature.dtype for feature in features} == {torch.float32}


ABLATIONS = {
    "frozen": {"train_encoder": False},
    "no detail": {"detail_stream": False},
    "UPerNet proxy": {"proxy": "upernet"},
}


@pytest.mark.parametrize("depth_alignment", ["exact", "released"])
@pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=ABLATIONS)
def test_ablations_train_what_they_have(ablation: dict, depth_alignment: str) -> None:
    """A parameter that is trained and gets no gradient would stop DDP."""
    network = tiny((3, 33, 17), depth_alignment=depth_alignment, **ablation).train()
    for stage in (1, 2):
        network.set_stage(stage)
        network.zero_grad()
        logits = network(torch.randn(2, 1, 3, 33, 17))
        assert logits.shape == (2, 3, 3, 33, 17)
        logits.square().mean().backward()
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (stage, name)


def test_frozen_stage1_trains_the_head_alone() -> None:
    network = tiny(train_encoder=False)
    network.set_stage(1)
    assert {name for name, parameter in network.named_parameters() if parameter.requires_grad} == {
        "proxy_head.seg_layers.weight",
        "proxy_head.seg_layers.bias",
    }
    assert not network.train().encoder.vit.training


def test_upernet_proxy_sees_one_slice_at_a_time() -> None:
    """It stands for a 2D head: beyond the slab no other slice may have a say."""
    network = tiny(proxy="upernet").eval()
    network.set_stage(1)
    volume = torch.randn(1, 1, 7, 32, 32)
    changed = volume.clone()
    changed[:, :, 5:] += 1
    difference = (network(volume) - network(changed)).abs().amax((0, 1, 3, 4))
    assert (difference[:4] < 1e-5).all()
    assert (difference[4:] > 1e-3).all()


def test_without_detail_there_is_none() -> None:
    names = [name for name, _ in tiny(detail_stream=False).named_parameters()]
    assert not any(name.startswith(("detail.", "fusion.", "decoder.refine")) for name in names)
    assert any(name.startswith("decoder.seg_layers.") for name in names), "skipped by -pretrained_weights"


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_rope_is_rescaled_in_stage_1s_training_only(stage: int, training: bool) -> None:
    network = tiny(rope_rescale=2.0)
    for layer in network.encoder.lora_layers():
        layer.lora_dropout["default"] = torch.nn.Identity()
    network.set_stage(stage)
    network.train(training)
    volume = torch.randn(1, 1, 3, 64, 64)
    first, second = network.encoder(volume)[-1], network.encoder(volume)[-1]
    assert torch.equal(first, second) == (stage == 2 or not training)


def test_rope_rescaling_draws_a_factor_between_a_half_and_two() -> None:
    """Log-uniform, one for all coordinates, as DINOv3 was trained."""
    rope = tiny(rope_rescale=2.0).train().encoder.vit.rope.rope.train()
    coordinates = torch.tensor([[0.5, -0.25]])
    factors = torch.stack([rope._apply_coord_augs(coordinates) / coordinates for _ in range(200)])
    assert torch.allclose(factors[..., 0], factors[..., 1])
    assert factors.min() >= 0.5
    assert factors.max() <= 2
    assert factors.log().mean().abs() < 0.15
    assert tiny(rope_rescale=None).encoder.vit.rope.aug_active is False


def test_stage1_of_another_network_starts_stage_2() -> None:
    """Another number of classes does not matter; LoRA and all of stage 2 stay as they were."""
    source, target = tiny(), build_dinomed3d("nano", 1, 5, (4, 32, 32))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    before = copy.deepcopy(target.state_dict())
    target.load_stage1(source.state_dict())
    assert target.has_weights
    for name, value in target.state_dict().items():
        taken = name.startswith("encoder.") and ".lora_" not in name
        assert torch.equal(value, source.state_dict()[name] if taken else before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slab_depth": 5}, r"1 tensors.*ice\.conv\.weight: expected \(96, 1, 5, 16, 16\), got \(96, 1, 3"),
        ({}, "vit.cls"),
    ],
)
def test_stage1_that_does_not_fit_is_refused(options: dict, message: str) -> None:
    state = tiny().state_dict()
    if not options:
        del state["encoder.vit.cls_token"]
    target = tiny(**options)
    with pytest.raises(ValueError, match=rf"{message}.*slab depth K or number of image channels"):
        target.load_stage1(state)
    assert not target.has_weights


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants(variant: str) -> None:
    width, depth = {
        "nano": (96, 4),
        "tiny": (192, 12),
        "small": (384, 12),
        "small_plus": (384, 12),
        "base": (768, 12),
        "large": (1024, 24),
        "huge_plus": (1280, 32),
    }[variant]
    with torch.device("meta"):
        network = build_dinomed3d(variant, 1, 2, (16, 128, 128)).to("meta")  # timm computes RoPE's periods on the CPU
    assert (network.encoder.embed_dim, len(network.encoder.vit.blocks)) == (width, depth)
    assert network.encoder.feature_blocks == [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1]
    for stage in (1, 2):
        network.set_stage(stage)
        assert network(torch.empty(1, 1, 16, 128, 128, device="meta")).shape == (1, 2, 16, 128, 128)
    shapes = network.pretrained_shapes()
    assert shapes["patch_embed.proj.weight"] == (width, 3, 16, 16)
    assert not any("lora" in name or "base_layer" in name for name in shapes)


def test_pretrained_weights_fill_ice_and_vit() -> None:
    network = tiny()
    weights = {name: torch.randn(shape) for name, shape in network.pretrained_shapes().items()}
    network.load_pretrained(weights)
    assert network.has_weights
    assert torch.equal(network.encoder.ice.conv.weight[:, 0], weights["patch_embed.proj.weight"])
    qkv = network.encoder.vit.blocks[2].attn.qkv.get_base_layer().weight
    assert torch.equal(qkv, weights["blocks.2.attn.qkv.weight"])


@pytest.mark.parametrize("fault", ["missing", "left over", "shape"])
def test_incomplete_pretrained_weights_are_refused(fault: str) -> None:
    network = tiny()
    weights = {name: torch.zeros(shape) for name, shape in network.pretrained_shapes().items()}
    if fault == "missing":
        del weights["blocks.1.norm1.weight"]
    elif fault == "left over":
        weights["blocks.1.extra"] = torch.zeros(1)
    else:
        weights["blocks.1.norm1.weight"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"1 tensors do not fit.*blocks\.1\."):
        network.load_pretrained(weights)
    assert not network.has_weights


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_dinomed3d("huge", 1, 2, (4, 32, 32)), "no variant 'huge'; there are nano, tiny, small"),
        (lambda: DINOMed3D(1, 2, scale=3), "scale is 3"),
        (lambda: DINOMed3D(1, 2, depth_alignment="other"), "depth_alignment is 'other'"),
        (lambda: DINOMed3D(1, 2, proxy="mlp"), "proxy is 'mlp'"),
        (lambda: tiny().set_stage(3), "stage is 3"),
        (lambda: tiny().set_stage(2, bare_slabs=True), "stage 2 takes volumes"),
    ],
)
def test_wrong_arguments_say_so(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
