"""Tests of Dino U-Net: the official code's numbers, its frozen ViT, its channels, and loading of weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.network_architecture.baselines.deformable_attention import (
    DeformableAttention,
    cell_centres,
    sampled_sum,
)
from nnunetv2_dinomed3d.network_architecture.baselines.dino_unet import DinoUNet, default_blocks
from nnunetv2_dinomed3d.network_architecture.baselines.fidelity_projection import FidelityProjection, SqueezeExcitation
from nnunetv2_dinomed3d.weights.official import load_official
from tests.reference_baselines import difference, needs_reference, official_state, outputs, outputs_of

REFERENCE_VIT = {"embed_dim": 96, "depth": 4, "num_heads": 3}
SMALL_VIT = {"embed_dim": 64, "depth": 4, "num_heads": 2, "init_values": 0.1}
BACKBONE = "encoder.dinov3_adapter.backbone."
BIAS = f"{BACKBONE}blocks.1.attn.qkv.bias"


def small(in_channels: int = 1, patch_size: tuple[int, int] = (64, 96), **configuration: Any) -> DinoUNet:
    torch.manual_seed(0)
    configuration = {"vit_kwargs": SMALL_VIT, "features": (8, 8, 16, 32), **configuration}
    network = build_baseline("DinoUNet_S", in_channels, 2, patch_size, **configuration)
    assert isinstance(network, DinoUNet)
    return network


def reference_network() -> DinoUNet:
    network = build_baseline("DinoUNet_S", 1, 2, (64, 96), vit_kwargs=REFERENCE_VIT)
    assert isinstance(network, DinoUNet)
    return network.eval()


def image(channels: int = 1, size: tuple[int, int] = (64, 96), batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def finest(network: DinoUNet, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(x)
    assert isinstance(logits, Tensor)
    return logits


def count(module: nn.Module, trainable: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trainable)


@pytest.fixture(scope="module")
def computed() -> dict[str, Tensor]:
    """What our network computes of the reference's input, by the reference's names."""
    network: Any = reference_network()
    load_official(network, official_state("dinounet"))
    encoder, decoder = network.encoder, network.decoder
    interactions = encoder.adapter.interactions
    modules = {
        "interaction.0.attn": interactions[0][0].attention,
        "interaction.0": interactions[0][-1],
        "interaction.3": interactions[3][-1],
        "decoder.0": decoder.stages[0],
        "decoder.1": decoder.stages[1],
    }
    x = outputs("dinounet")["input.dinounet"]
    colours = x.expand(-1, 3, -1, -1)
    with torch.no_grad(), outputs_of(modules) as seen:
        seen["logits"] = network(x)
        prior, vit = encoder.adapter.prior(colours), encoder.vit(colours)
        levels = encoder.adapter(colours, vit)
        lists = {
            "spm.c{}": [rearrange(level, "b e h w -> b (h w) e") for level in prior],
            "vit.{}": [rearrange(level, "b e h w -> b (h w) e") for level in vit],
            "adapter.f{}": levels,
            "fapm.{}": encoder.projection(levels),
            "skip.{}": encoder(colours, colours),
        }
        for name, tensors in lists.items():
            first = 1 if name in ("spm.c{}", "adapter.f{}") else 0
            seen |= {name.format(i): tensor for i, tensor in enumerate(tensors, first)}
    return seen


NAMES = [
    *("spm.c2", "spm.c3", "spm.c4", "vit.0", "vit.3", "interaction.0.attn", "interaction.0", "interaction.3"),
    *("adapter.f1", "adapter.f2", "adapter.f3", "adapter.f4", "fapm.0", "fapm.1", "fapm.2", "fapm.3"),
    *("skip.2", "skip.3", "decoder.0", "decoder.1", "logits"),
]


@needs_reference
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_official_code_s(name: str, computed: dict[str, Tensor]) -> None:
    assert difference(computed[name], outputs("dinounet")[name]) < 1e-4


@needs_reference
def test_every_array_of_the_reference_is_compared() -> None:
    assert {*NAMES, "input.dinounet"} == outputs("dinounet").keys()


@pytest.mark.parametrize(
    ("size", "width", "depth", "total", "trainable", "vit"),
    [
        ("S", 384, 12, 27_796_100, 6_194_948, 21_601_152),
        ("B", 768, 12, 98_851_652, 13_182_020, 85_669_632),
        ("L", 1024, 24, 323_124_164, 19_969_988, 303_154_176),
    ],
)
def test_parameters_of_the_full_sizes(size: str, width: int, depth: int, total: int, trainable: int, vit: int) -> None:
    """The official ViT has two things more: a mask token, of pretraining, and a qkv bias, which is zero."""
    with torch.device("meta"):
        network: Any = build_baseline(f"DinoUNet_{size}", 1, 2, (512, 512))
        assert finest(network, torch.empty(1, 1, 512, 333)).shape == (1, 2, 512, 333)
    missing = width + depth * 3 * width
    assert count(network) + missing == total
    assert count(network.encoder.vit) + missing == vit
    assert count(network, trainable=True) == trainable
    assert count(network.decoder) == 754_662


def test_parameters_of_the_reference_s_size() -> None:
    assert count(reference_network()) + 96 + 4 * 3 * 96 == 3_993_332


@pytest.mark.parametrize(("channels", "size"), [(1, (64, 96)), (2, (50, 70)), (3, (33, 128))])
def test_logits_have_the_image_s_size(channels: int, size: tuple[int, int]) -> None:
    assert finest(small(channels, size), image(channels, size)).shape == (2, 2, *size)


def test_channels_stand_for_colours() -> None:
    network, a, b, c = small(3).eval(), image(), 2 * image(), 3 * image()
    of = {count: small(count).eval() for count in (1, 2)}
    torch.testing.assert_close(finest(of[1], a), finest(network, torch.cat([a, a, a], 1)))
    torch.testing.assert_close(finest(of[2], torch.cat([a, b], 1)), finest(network, torch.cat([a, b, a], 1)))
    cut = small(5, channels="first_three").eval()
    torch.testing.assert_close(finest(cut, torch.cat([a, b, c, c, a], 1)), finest(network, torch.cat([a, b, c], 1)))


def test_no_channel_is_lost_unless_asked_for() -> None:
    images = torch.cat([image(), 2 * image(), 3 * image(), 4 * image()], 1)
    changed = images.clone()
    changed[:, 3] += 1
    every, cut = small(4).eval(), small(4, channels="first_three").eval()
    assert every.encoder.adapter.prior.stem[0].conv.in_channels == 4
    assert not torch.equal(finest(every, images), finest(every, changed))
    assert torch.equal(finest(cut, images), finest(cut, changed))


def test_of_many_channels_the_vit_sees_the_mean() -> None:
    network = small(4).eval()
    with outputs_of({"vit": network.encoder.vit.model.patch_embed}) as found:
        finest(network, image(4))
        of_many = found["vit"]
        network.encoder.vit(image(4).mean(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(of_many, found["vit"])


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="'all' or 'first_three'"):
        small(4, channels="last_three")
    with pytest.raises(ValueError, match="takes 1 channels, and the image has 3"):
        small(1)(image(3))


@torch.no_grad()
def test_deep_supervision_is_a_list_of_one() -> None:
    network: Any = small().eval()
    keys, alone = network.state_dict().keys(), network(image())
    network.deep_supervision = True
    logits = network(image())
    assert isinstance(logits, list)
    assert len(logits) == 1
    assert torch.equal(logits[0], alone)
    assert network.state_dict().keys() == keys


def test_gradients_reach_every_trainable_parameter() -> None:
    """Those of the two unused heads are zeros: `DistributedDataParallel` stops at a parameter without a gradient."""
    network: Any = small().train()
    network.deep_supervision = True
    for module in network.modules():
        if isinstance(module, DeformableAttention):  # which start with zeros, and pass no gradient to the query's norm
            nn.init.normal_(module.offsets.weight)
            nn.init.normal_(module.weights.weight)
        elif isinstance(module, SqueezeExcitation):  # whose few hidden numbers may all be negative
            assert module.squeeze.bias is not None
            nn.init.ones_(module.squeeze.bias)
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    network(image())[0].square().mean().backward()
    unused = {f"decoder.seg_layers.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    for name, parameter in network.named_parameters():
        if name.startswith("encoder.vit."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert bool((parameter.grad == 0).all()) == (name in unused), name


def test_the_vit_stays_frozen() -> None:
    """In training mode only RoPE changes: its coordinates are scaled anew in every forward pass, here by up to two."""
    network: Any = small().train()
    vit, x = network.encoder.vit, image(3)
    assert [name for name, module in vit.model.named_modules() if module.training] == ["rope"]
    first, second = vit(x), vit(x)
    assert not torch.equal(first[0], second[0])
    assert not any(level.requires_grad for level in first)
    factors = torch.stack([vit.model.rope._apply_coord_augs(torch.ones(1)) for _ in range(400)]).log2()
    assert -1 <= factors.min() < -0.9
    assert 0.9 < factors.max() <= 1
    network.eval()
    assert torch.equal(vit(x)[0], vit(x)[0])


def test_drop_path_drops_feed_forward_networks_of_samples() -> None:
    network: Any = small().train()
    extractor = network.encoder.adapter.interactions[0][0]
    tokens, values = torch.randn(400, 4, 64), torch.randn(400, 2, 2, 64)
    places = cell_centres([(2, 2)], like=tokens)
    with torch.no_grad():
        attended = tokens + extractor.attention(extractor.query_norm(tokens), places, extractor.value_norm(values))
        dropped = (extractor(tokens, places, [(2, 2)], values) == attended).all(2).all(1)
    assert 0.2 < dropped.float().mean() < 0.4


def test_default_blocks() -> None:
    assert [default_blocks(depth) for depth in (4, 12, 24)] == [(0, 1, 2, 3), (2, 5, 8, 11), (4, 11, 17, 23)]


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"backbone": "huge"}, "no backbone 'huge'; there are small, base, large"),
        ({"blocks": (0, 1, 2)}, "4 of 0 to 3"),
        ({"blocks": (0, 1, 3, 2)}, "4 of 0 to 3, in order"),
        ({"blocks": (1, 2, 3, 4)}, "4 of 0 to 3"),
        ({"vit_kwargs": SMALL_VIT | {"embed_dim": 40, "num_heads": 1}}, "among 16 heads"),
    ],
)
def test_a_wrong_configuration_is_refused(configuration: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**configuration)


def test_maps_are_those_of_the_blocks_asked_for() -> None:
    deep = SMALL_VIT | {"depth": 6}
    network: Any = small(vit_kwargs=deep, blocks=(0, 2, 3, 4)).eval()
    vit, x = network.encoder.vit, image(3)
    with torch.no_grad():
        expected = vit.model.forward_intermediates(x, indices=6, norm=True, intermediates_only=True)
    for found, block in zip(vit(x), (0, 2, 3, 4), strict=True):
        torch.testing.assert_close(found, expected[block])


def test_a_patch_of_32_pixels_trains() -> None:
    """Its coarsest map would be one pixel, for which InstanceNorm and BatchNorm raise."""
    assert small().train()(image(size=(20, 32), batch=1)).shape == (1, 2, 20, 32)


def test_autocast() -> None:
    network, x = small().eval(), image()
    expected = finest(network, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = finest(network, x)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_float64() -> None:
    network, x = small().eval(), image()
    expected = finest(network, x)
    torch.testing.assert_close(finest(network.double(), x.double()), expected.double(), rtol=1e-3, atol=1e-4)


def test_deformable_attention_samples_as_deformable_detr() -> None:
    detr = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    batch, heads, width, height, wide, queries, points = 2, 3, 5, 4, 7, 6, 4
    values = torch.randn(batch, height * wide, heads, width)
    locations = 1.6 * torch.rand(batch, queries, heads, 1, points, 2) - 0.3  # some outside the map
    weights = torch.rand(batch, queries, heads, 1, points)
    shapes = [(height, wide)]
    expected = detr.MultiScaleDeformableAttention()(
        values, torch.tensor(shapes), shapes, torch.tensor([0]), locations, weights, 64
    )
    found = sampled_sum(
        rearrange(values, "b (h w) m d -> (b m) d h w", h=height),
        rearrange(locations, "b q m 1 p xy -> (b m) q p xy"),
        rearrange(weights, "b q m 1 p -> (b m) q p"),
    )
    torch.testing.assert_close(rearrange(found, "(b m) d q -> b q (m d)", m=heads), expected)


@torch.no_grad()
def test_deformable_attention_starts_around_the_query() -> None:
    """Each head in its own direction: the first to the right, point p by p cells; the fifth of 16 upwards in y."""
    attention = DeformableAttention(64)
    offsets = rearrange(attention.offsets.bias, "(m p xy) -> m p xy", m=16, xy=2)
    steps, zeros = torch.arange(1.0, 5.0), torch.zeros(4)
    torch.testing.assert_close(offsets[0], torch.stack([steps, zeros], 1))
    torch.testing.assert_close(offsets[4], torch.stack([zeros, steps], 1))
    assert torch.equal(cell_centres([(1, 2), (2, 1)], steps), torch.tensor([[1, 2], [3, 2], [2, 1], [2, 3]]) / 4)


def test_projection_without_a_shortcut_s_convolution_where_the_width_is_the_rank() -> None:
    projection = FidelityProjection(8, (4, 16), rank=16)
    assert [sum(1 for _ in shortcut.parameters()) for shortcut in projection.shortcuts] == [2, 0]


def test_load_pretrained_is_strict() -> None:
    network: Any = small()
    weights = {name: torch.randn(shape) for name, shape in network.pretrained_shapes().items()}
    network.load_pretrained(weights)
    assert network.weights_loaded
    assert torch.equal(network.encoder.vit.model.blocks[1].attn.qkv.weight, weights["blocks.1.attn.qkv.weight"])
    name = "blocks.0.norm1.weight"
    without = {key: tensor for key, tensor in weights.items() if key != name}
    for wrong in (without, weights | {"other": torch.ones(1)}, weights | {name: torch.ones(1)}):
        with pytest.raises(ValueError, match=r"1 tensor does not fit.*another backbone"):
            network.load_pretrained(wrong)


@needs_reference
def test_aliases_and_buffers_of_an_official_checkpoint_are_dropped() -> None:
    official = official_state("dinounet")
    block = "decoder.stages.0.convs.1"
    more = {
        "decoder.encoder.ups.0.up2.bias": official["encoder.ups.0.up2.bias"],
        f"{block}.all_modules.0.weight": official[f"{block}.conv.weight"],
        f"{block}.all_modules.1.bias": official[f"{block}.norm.bias"],
        f"{BACKBONE}rope_embed.periods": torch.ones(8),
        "encoder.dinov3_adapter.norm1.num_batches_tracked": torch.tensor(7),
    }
    network: Any = reference_network()
    load_official(network, official | more)
    norms = network.encoder.adapter.norms
    assert [int(norm.num_batches_tracked) for norm in norms] == [7, 0, 0, 0]
    assert torch.equal(norms[3].running_var, official["encoder.dinov3_adapter.norm4.running_var"])


def _without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@needs_reference
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: _without(state, "encoder.dinov3_adapter.norm1.running_mean"), "do not fit"),
        (lambda state: _without(state, f"{BACKBONE}cls_token"), "cls_token.*no such tensor"),
        (lambda state: _without(state, "decoder.seg_layers.0.bias"), "seg_layers.0.bias.*no such tensor"),
        (lambda state: state | {"encoder.fapm.more": torch.ones(1)}, "expected no such tensor"),
        (lambda state: state | {f"{BACKBONE}more": torch.ones(1)}, "expected no such tensor"),
        (lambda state: state | {"encoder.fapm.shared_basis.bias": torch.ones(1)}, r"found \(1,\)"),
        (lambda state: state | {"encoder.adapter.up.bias": torch.ones(96)}, "Two tensors are encoder.adapter.up.bias"),
        (lambda state: state | {BIAS: torch.ones(288)}, "bias is not zero"),
    ],
)
def test_load_official_refuses_what_does_not_fit(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_official(reference_network(), change(official_state("dinounet")))


@needs_reference
def test_a_qkv_bias_that_the_official_mask_hides_is_none() -> None:
    bias, mask = torch.zeros(288), torch.ones(288)
    bias[96:192] = 1
    mask[96:192] = 0
    load_official(reference_network(), official_state("dinounet") | {BIAS: bias, f"{BIAS}_mask": mask})
