"""Tests of U-Mamba: against the official code's outputs, sizes, 2D, channels as tokens, training, weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.weights.official import load_official
from nnunetv2_dinomed3d.weights.official.umamba import renamed
from tests.reference_baselines import difference, needs_reference, official_state, outputs, outputs_of, parameters

BOTH = ["UMambaBot", "UMambaEnc"]
FOLDERS = {"UMambaBot": "umamba_bot", "UMambaEnc": "umamba_enc"}
PATCH = (8, 24, 16)


def small() -> dict[str, Any]:
    """The configuration of the reference values, in lists as nnU-Net's plans have it."""
    return {
        "features": [8, 16, 32, 64],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "num_blocks": [2, 2, 2, 2],
        "num_decoder_blocks": [2, 2, 2],
    }


def places(network: Any) -> dict[str, nn.Module]:
    """Name of a reference array -> module that gives it."""
    encoder, decoder = network.encoder, network.decoder
    return {
        "stem": encoder.stem,
        "bottleneck.mamba": encoder.mamba_layers[-1],
        "decoder.upsample.0": decoder.reductions[0],
        **{f"encoder.stage.{i}": stage for i, stage in enumerate(encoder.stages)},
        **{f"encoder.mamba.{i}": layer for i, layer in enumerate(encoder.mamba_layers)},
        **{f"decoder.stage.{i}": stage for i, stage in enumerate(decoder.stages)},
    }


@torch.no_grad()
def results(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """What our network with the official weights gives, by the names of the reference arrays."""
    network: Any = build_baseline(name, 1, 2, PATCH, **small()).to(dtype)
    load_official(network, official_state(FOLDERS[name], dtype))
    network.eval().deep_supervision = True
    with outputs_of(places(network)) as found:
        logits = network(outputs(FOLDERS[name])[f"input.{FOLDERS[name]}"].to(dtype))
    found["decoder.upsample.0"] = F.interpolate(found["decoder.upsample.0"], scale_factor=2, mode="nearest")
    return {**found, **{f"logits.{i}": output for i, output in enumerate(logits)}}


@needs_reference
@pytest.mark.parametrize(("name", "tolerance"), [("UMambaBot", 1e-4), ("UMambaEnc", 1e-3)])
def test_outputs_are_those_of_the_official_code(name: str, tolerance: float) -> None:
    found, expected = results(name, torch.float32), outputs(FOLDERS[name])
    names = [key for key in expected if not key.startswith(("input.", "f64."))]
    assert len(names) >= 13
    differences = {key: difference(found[key], expected[key]) for key in names}
    assert max(differences.values()) <= tolerance, differences


@needs_reference
def test_outputs_in_float64_are_those_of_the_official_code() -> None:
    found, expected = results("UMambaEnc", torch.float64), outputs("umamba_enc")
    assert max(difference(found[f"logits.{i}"], expected[f"f64.logits.{i}"]) for i in range(3)) <= 1e-5


@needs_reference
@pytest.mark.parametrize("name", BOTH)
def test_second_names_of_the_same_tensors_are_dropped(name: str) -> None:
    state = official_state(FOLDERS[name])
    seconds = {f"decoder.{key}": tensor for key, tensor in state.items() if key.startswith("encoder.")}
    for key, tensor in state.items():
        seconds[key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")] = tensor
    network = build_baseline(name, 1, 2, PATCH, **small())
    load_official(network, {**seconds, **state})
    assert torch.equal(
        network.state_dict()["encoder.stages.0.1.conv2.weight"], state["encoder.stages.0.1.conv2.conv.weight"]
    )


@needs_reference
@pytest.mark.parametrize("name", BOTH)
def test_a_state_dict_that_does_not_fit_is_refused(name: str) -> None:
    with torch.device("meta"):
        network = build_baseline(name, 1, 2, PATCH, **small())
    state = official_state(FOLDERS[name])
    key = "encoder.stages.0.1.conv1.conv.weight"
    with pytest.raises(ValueError, match=r"stages\.0\.1\.conv1\.weight: expected .* found no such tensor"):
        load_official(network, {other: tensor for other, tensor in state.items() if other != key})
    with pytest.raises(ValueError, match=r"left\.over: expected no such tensor"):
        load_official(network, {**state, "left.over": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"conv1\.weight: expected \(8, 8, 1, 3, 3\), found \(2, 3\)"):
        load_official(network, {**state, key: torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="same name"):
        renamed({**state, "encoder.stages.0.1.conv1.weight": torch.zeros(1)})
    other = official_state(FOLDERS[BOTH[1 - BOTH.index(name)]])
    with pytest.raises(ValueError, match="do not fit"):
        load_official(network, other)


@pytest.mark.parametrize(("name", "total"), [("UMambaBot", 42_120_394), ("UMambaEnc", 42_750_922)])
def test_the_full_size_has_the_official_parameters_and_runs_on_the_meta_device(name: str, total: int) -> None:
    with torch.device("meta"):
        network: Any = build_baseline(name, 1, 2, (128, 128, 128))
        network.deep_supervision = True
        outputs = network(torch.empty(2, 1, 128, 128, 128))
    assert parameters(network) == total
    assert [tuple(output.shape) for output in outputs] == [(2, 2, side, side, side) for side in (128, 64, 32, 16, 8)]


@pytest.mark.parametrize(("name", "total"), [("UMambaBot", 453_030), ("UMambaEnc", 437_206)])
def test_parameters_of_the_reference_values_size(name: str, total: int) -> None:
    with torch.device("meta"):
        assert parameters(build_baseline(name, 1, 2, PATCH, **small())) == total


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_patches_of_any_size(name: str) -> None:
    """Padded to a multiple of the strides; in 2D, too."""
    network: Any = build_baseline(name, 2, 3, (5, 21, 15), **small())
    assert network.divisor == (4, 8, 8)
    assert network(torch.randn(1, 2, 5, 21, 15)).shape == (1, 3, 5, 21, 15)
    flat: Any = build_baseline(name, 2, 3, (37, 50), features=(8, 16, 32))
    assert flat.divisor == (4, 4)
    flat.deep_supervision = True
    assert [tuple(output.shape) for output in flat(torch.randn(2, 2, 37, 50))] == [(2, 3, 37, 50), (2, 3, 18, 25)]


@torch.no_grad()
def test_inputs_of_another_size_where_channels_are_tokens_are_refused() -> None:
    network = build_baseline("UMambaEnc", 1, 2, PATCH, **small())
    network(torch.randn(1, 1, 7, 22, 13))  # the same when padded
    with pytest.raises(ValueError, match=r"built for patches of \(8, 24, 16\) and the input has \(8, 24, 24\)"):
        network(torch.randn(1, 1, 8, 24, 24))


@torch.no_grad()
def test_inputs_of_another_size_where_voxels_are_tokens() -> None:
    sizes = [(8, 32, 48), (16, 24, 16)]
    for network in (
        build_baseline("UMambaBot", 1, 2, PATCH, **small()),
        build_baseline("UMambaEnc", 1, 2, (16, 64, 64), **small()),  # 4 x 8 x 8 voxels in the last stage
    ):
        assert [tuple(network(torch.randn(1, 1, *size)).shape[2:]) for size in sizes] == sizes


def test_a_stage_with_as_many_voxels_as_channels_takes_channels_as_tokens() -> None:
    """The numbers of voxels are those of the padded patch."""
    with torch.device("meta"):
        network: Any = build_baseline("UMambaEnc", 1, 2, (15, 32, 27), features=(8, 16, 32, 32))
    layers = network.encoder.mamba_layers
    assert [layer.channel_tokens for layer in layers] == [False, False, False, True]
    assert layers[3].norm.normalized_shape == (32,)  # 2 x 4 x 4
    with torch.device("meta"):
        network = build_baseline("UMambaEnc", 1, 2, (15, 32, 35), features=(8, 16, 32, 32))
    assert not any(layer.channel_tokens for layer in network.encoder.mamba_layers)


def test_the_smallest_patch_trains() -> None:
    """An instance norm cannot be trained on the one voxel that it would have at the bottom."""
    for name in BOTH:
        network = build_baseline(name, 1, 2, (3, 5, 7), **small()).train()
        network(torch.randn(1, 1, 3, 5, 7)).square().mean().backward()


def test_from_the_middle_on_stages_have_one_block() -> None:
    with torch.device("meta"):
        network: Any = build_baseline("UMambaBot", 1, 2, (64, 64, 64))
        many: Any = build_baseline("UMambaBot", 1, 2, PATCH, **{**small(), "num_blocks": 3, "num_decoder_blocks": 4})
    assert [len(stage) for stage in network.encoder.stages] == [2, 2, 2, 1, 1, 1]
    assert [len(stage) for stage in network.decoder.stages] == [2, 2, 2, 1, 1]
    assert len(many.encoder.stem) == 3
    assert [len(stage) for stage in many.encoder.stages] == [3, 3, 1, 1]
    assert [len(stage) for stage in many.decoder.stages] == [4, 4, 1]


def test_the_plans_are_not_changed() -> None:
    configuration = small()
    build_baseline("UMambaEnc", 1, 2, PATCH, **configuration)
    assert configuration == small()


def test_stages_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="3 features, 3 kernel_sizes and 2 strides"):
        build_baseline("UMambaEnc", 1, 2, (8, 16, 16), features=(4, 8, 8), strides=[[1, 1, 1], [2, 2, 2]])


def test_mamba_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'decoder'"):
        build_baseline("UMambaBot", 1, 2, PATCH, mamba="decoder")


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_deep_supervision_adds_coarser_outputs_to_the_same_network(name: str) -> None:
    network = build_baseline(name, 1, 2, PATCH, **small()).eval()
    x = torch.randn(1, 1, *PATCH)
    alone, names = network(x), network.state_dict().keys()
    network.deep_supervision = True
    several = network(x)
    assert network.state_dict().keys() == names
    torch.testing.assert_close(several[0], alone, rtol=0, atol=0)
    assert [tuple(output.shape[2:]) for output in several] == [PATCH, (8, 12, 8), (4, 6, 4)]


@pytest.mark.parametrize("name", BOTH)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    network = build_baseline(name, 1, 2, PATCH, **small()).train()
    network.deep_supervision = True
    sum(output.square().mean() for output in network(torch.randn(2, 1, *PATCH))).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [key for key in without if not key.endswith(("conv1.bias", "conv2.bias"))] == []  # a norm takes these away
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_convolutions_are_initialised_as_nnunet_does() -> None:
    torch.manual_seed(0)
    network: Any = build_baseline("UMambaEnc", 1, 2, PATCH, **small())
    convolution = network.encoder.stages[3][0].conv2
    assert convolution.weight.std().item() == pytest.approx((2 / (1 + 1e-4) / (64 * 27)) ** 0.5, rel=0.02)
    assert not any(p.any() for key, p in network.named_parameters() if key.endswith(("conv1.bias", "shortcut.bias")))
    assert bool((network.encoder.mamba_layers[0].mamba.D == 1).all())


@torch.no_grad()
@pytest.mark.parametrize("name", BOTH)
def test_precisions(name: str) -> None:
    torch.manual_seed(0)
    network = build_baseline(name, 1, 2, PATCH, **small()).eval()
    x = torch.randn(1, 1, *PATCH)
    exact = copy.deepcopy(network).double()(x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(network(x).double(), exact, rtol=0, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (network(x).double() - exact).abs().mean() < 0.5 * exact.std()


def test_compiled() -> None:
    """The scan is left out: its loop would be unrolled."""
    torch.manual_seed(0)
    network = build_baseline("UMambaEnc", 1, 2, (16, 16), features=(4, 8)).train()
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, backend="eager")
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(compiled(x), network(x))
