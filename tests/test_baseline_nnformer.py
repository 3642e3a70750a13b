"""Tests of nnFormer: against the official code's outputs, any size, windows and their reduction, training, weights."""

import copy
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.network_architecture.baselines.window_attention import Windows, relative_positions
from nnunetv2_dinomed3d.weights.official import load_official
from nnunetv2_dinomed3d.weights.official.nnformer import renamed
from tests.reference_baselines import difference, needs_reference, official_state, outputs, outputs_of, parameters

SMALL: dict[str, Any] = {"embed_dim": 24, "num_heads": (2, 4, 8, 16), "window_sizes": (4, 8, 4, 4)}
"""The configuration of the reference values, at their patch size."""
PATCH = (32, 96, 64)
TINY: dict[str, Any] = {"embed_dim": 8, "num_heads": (1, 2, 2, 4), "window_sizes": (4, 4, 4, 4)}
TINY_PATCH = (32, 64, 64)


def places(network: Any) -> dict[str, nn.Module]:
    """Name of a reference array -> module that gives it."""
    encoder, decoder = network.encoder, network.decoder
    return {
        "stem": encoder.stem,
        "encoder.0.block.0": encoder.levels[0][0],
        "encoder.1.block.0": encoder.levels[1][0],
        "encoder.1.block.1": encoder.levels[1][1],
        "encoder.1.downsample": encoder.downsampling[1],
        "decoder.1.upsample": decoder.levels[1].upsampling,
        "decoder.1.block.0": decoder.levels[1].blocks[0],
        **{f"encoder.{i}": norm for i, norm in enumerate(encoder.norms)},
        **{f"decoder.{i}": level for i, level in enumerate(decoder.levels)},
    }


def as_reference(x: Tensor, expected: Tensor) -> Tensor:
    """``(B, D, H, W, C)`` in the reference's layout."""
    return rearrange(x, "b d h w c -> b (d h w) c" if expected.ndim == 3 else "b d h w c -> b c d h w")


def tiny(**configuration: Any) -> Any:
    torch.manual_seed(0)
    return build_baseline("nnFormer", 1, 2, TINY_PATCH, **{**TINY, **configuration})


@needs_reference
@torch.no_grad()
@pytest.mark.parametrize("relative_position", ["official", "fixed"])
def test_outputs_are_those_of_the_official_code(relative_position: str) -> None:
    network: Any = build_baseline("nnFormer", 1, 2, PATCH, **SMALL, relative_position=relative_position)
    load_official(network, official_state("nnformer", setting="deep_supervision"))
    network.eval().deep_supervision = True
    arrays = outputs("nnformer")
    with outputs_of(places(network)) as found:
        logits = network(arrays["input.nnformer"])
    found["decoder.1.upsample"] = rearrange(found["decoder.1.upsample"], "b c d h w -> b d h w c")
    del arrays["input.nnformer"]
    fixed = relative_position == "fixed"
    expected = {
        name.removeprefix("fixed."): array for name, array in arrays.items() if name.startswith("fixed.") == fixed
    }
    results = {name: as_reference(found[name], expected[name]) for name in found.keys() & expected.keys()}
    results |= {f"logits.{i}": output for i, output in enumerate(logits)}
    assert results.keys() == expected.keys()
    differences = {name: difference(results[name], expected[name]) for name in expected}
    assert max(differences.values()) <= 1e-4, differences


@needs_reference
@torch.no_grad()
def test_a_network_with_one_output_loads_and_gives_the_same() -> None:
    network: Any = build_baseline("nnFormer", 1, 2, PATCH, **SMALL, relative_position="official", num_outputs=1)
    state = official_state("nnformer", setting="no_deep_supervision")
    index = "model_down.layers.0.blocks.0.attn.relative_position_index"
    load_official(network, {**state, index: torch.zeros(64, 64, dtype=torch.long)})
    network.eval().deep_supervision = True
    arrays = outputs("nnformer")
    (logits,) = network(arrays["input.nnformer"])
    assert difference(logits, arrays["logits.0"]) <= 1e-4


@needs_reference
def test_a_state_dict_that_does_not_fit_is_refused() -> None:
    with torch.device("meta"):
        network = build_baseline("nnFormer", 1, 2, PATCH, **SMALL)
    state = official_state("nnformer", setting="deep_supervision")
    name = "decoder.layers.1.blocks.0.attn.kv.weight"
    with pytest.raises(ValueError, match=r"attention\.kv\.weight: expected .* found no such tensor"):
        load_official(network, {key: tensor for key, tensor in state.items() if key != name})
    with pytest.raises(ValueError, match=r"left\.over: expected no such tensor"):
        load_official(network, {**state, "left.over": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"attention\.kv\.weight: expected \(96, 48\), found \(2, 3\)"):
        load_official(network, {**state, name: torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="same name"):
        renamed({**state, "decoder.seg_layers.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("channels", "classes", "configuration", "total"),
    [
        (1, 2, {}, 149_538_078),
        (1, 2, {"num_outputs": 1}, 149_464_346),
        (1, 14, {}, 150_054_210),
        (4, 4, {}, 149_631_876),
    ],
)
def test_parameters_of_the_full_size(channels: int, classes: int, configuration: dict[str, Any], total: int) -> None:
    with torch.device("meta"):
        network = build_baseline("nnFormer", channels, classes, (64, 128, 128), **configuration)
    assert parameters(network) == total


@pytest.mark.parametrize(("configuration", "total"), [({}, 2_422_858), ({"num_outputs": 1}, 2_413_638)])
def test_parameters_of_the_reference_values_size(configuration: dict[str, Any], total: int) -> None:
    with torch.device("meta"):
        assert parameters(build_baseline("nnFormer", 1, 2, PATCH, **SMALL, **configuration)) == total


def test_the_full_size_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        network: Any = build_baseline("nnFormer", 1, 2, (64, 128, 128))
        network.deep_supervision = True
        outputs = network(torch.empty(2, 1, 64, 128, 128))
        outputs[0].sum().backward()
    assert [tuple(x.shape) for x in outputs] == [(2, 2, 64, 128, 128), (2, 2, 32, 64, 64), (2, 2, 16, 32, 32)]


@torch.no_grad()
@pytest.mark.parametrize("size", [(20, 50, 34), (32, 64, 96), (3, 5, 7)])
def test_inputs_of_any_size(size: tuple[int, int, int]) -> None:
    """Also of sizes other than the patch that the windows were chosen for."""
    network = build_baseline("nnFormer", 2, 3, (20, 50, 34), **TINY)
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_a_patch_of_few_slices() -> None:
    """At the bottom it has one, where windows are single tokens."""
    network: Any = build_baseline("nnFormer", 1, 2, (14, 64, 64), **TINY)
    network.deep_supervision = True
    outputs = network(torch.randn(1, 1, 14, 64, 64))
    assert [tuple(output.shape[2:]) for output in outputs] == [(14, 64, 64), (7, 32, 32), (4, 16, 16)]
    sum(output.square().mean() for output in outputs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
def test_deep_supervision_adds_coarser_outputs_to_the_same_network() -> None:
    network = tiny().eval()
    x = torch.randn(1, 1, *TINY_PATCH)
    alone, names = network(x), network.state_dict().keys()
    network.deep_supervision = True
    several = network(x)
    assert network.state_dict().keys() == names
    torch.testing.assert_close(several[0], alone, rtol=0, atol=0)
    assert [tuple(output.shape[2:]) for output in several] == [TINY_PATCH, (16, 32, 32), (8, 16, 16)]


def test_gradients_reach_every_parameter() -> None:
    network = tiny().train()
    network.deep_supervision = True
    sum(output.square().mean() for output in network(torch.randn(4, 1, *TINY_PATCH))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_precisions() -> None:
    network = tiny().eval()
    x = torch.randn(1, 1, *TINY_PATCH)
    exact = copy.deepcopy(network).double()(x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(network(x).double(), exact, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x).double(), exact, rtol=0, atol=0.1)


def test_stochastic_depth_grows_towards_the_bottom_and_on_to_the_finest_logits() -> None:
    network = tiny()
    encoder = [block.drop_path.drop_prob for blocks in network.encoder.levels for block in blocks]
    decoder = [block.drop_path.drop_prob for level in reversed(network.decoder.levels) for block in level.blocks]
    assert encoder == pytest.approx(torch.linspace(0, 0.2, 8).tolist())
    assert decoder == pytest.approx(torch.linspace(0, 0.2, 6).tolist())


def test_windows_of_the_default_configuration() -> None:
    with torch.device("meta"):
        network: Any = build_baseline("nnFormer", 1, 2, (64, 128, 128))
    windows = [[block.attention.windows for block in blocks] for blocks in network.encoder.levels]
    assert [[w.size for w in level] for level in windows] == [[(side,) * 3] * 2 for side in (4, 4, 8, 4)]
    assert [[w.shift[0] for w in level] for level in windows] == [[0, 2], [0, 2], [0, 0], [0, 0]]
    decoder = [[block.attention.windows for block in level.blocks] for level in network.decoder.levels]
    assert decoder == windows[:3]


@pytest.mark.parametrize(
    ("grid", "window", "size", "shift"),
    [
        ((8, 9, 10), 4, (4, 4, 4), (2, 2, 2)),
        ((4, 9, 10), 4, (4, 4, 4), (0, 0, 0)),
        ((3, 9, 10), 4, (3, 3, 3), (0, 0, 0)),
        ((3, 9, 10), (4, 5, 5), (3, 5, 5), (0, 2, 2)),
        ((8, 5, 10), (3, 5, 5), (3, 5, 5), (1, 0, 2)),
    ],
)
def test_windows_are_reduced_to_the_grid(
    grid: tuple[int, ...], window: int | tuple[int, ...], size: tuple[int, ...], shift: tuple[int, ...]
) -> None:
    assert Windows.on(grid, window, shifted=True) == Windows(size, shift)  # type: ignore[arg-type]
    assert Windows.on(grid, window, shifted=False) == Windows(size, (0, 0, 0))  # type: ignore[arg-type]


def test_cutting_into_windows_is_undone() -> None:
    windows = Windows((3, 4, 2), (1, 0, 1))
    x = torch.randn(2, 7, 4, 5, 6)
    torch.testing.assert_close(windows.joined(windows.cut(windows.shifted(x), 3), (7, 4, 5)), x)


def test_tokens_that_the_shift_brought_together_do_not_see_each_other() -> None:
    """Those of a window that are neighbours in the map do."""
    windows, grid = Windows((4, 4, 4), (2, 0, 2)), (8, 4, 8)
    place = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1)[None]
    tokens = windows.cut(windows.shifted(place))
    apart = ((tokens[:, :, :, None] - tokens[:, :, None]).abs() >= torch.tensor((4, 4, 4))).any(-1)
    assert torch.equal(windows.strangers(grid, torch.device("cpu")), apart)


@pytest.mark.parametrize(("side", "rows"), [(2, 19), (4, 115), (8, 547)])
def test_each_offset_has_its_own_row_unless_the_official_formula_is_asked_for(side: int, rows: int) -> None:
    fixed, official = (relative_positions((side,) * 3, formula) for formula in ("fixed", "official"))
    assert set(fixed.flatten().tolist()) == set(range((2 * side - 1) ** 3))
    assert (fixed == fixed[0, 0]).sum() == side**3
    assert official.unique().numel() == rows


def test_windows_that_are_no_cubes() -> None:
    network = tiny(window_sizes=((3, 5, 5), 4, (2, 4, 4), 4))
    network.deep_supervision = True
    network(torch.randn(1, 1, *TINY_PATCH))[0].sum().backward()
    with pytest.raises(ValueError, match="official"):
        relative_positions((3, 5, 5), "official")


@pytest.mark.parametrize(
    "configuration",
    [
        {"num_outputs": 0},
        {"num_outputs": 4},
        {"stem": (2, 3, 4)},
        {"num_heads": (1, 2, 3, 4)},
        {"depths": (2, 2, 2)},
        {"relative_position": "unheard of"},
    ],
)
def test_configurations_that_are_refused(configuration: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        tiny(**configuration)


@torch.no_grad()
def test_other_depths_and_stems() -> None:
    network = tiny(num_heads=(1, 2, 4), window_sizes=(4, 4, 4), depths=(3, 1, 2), stem=(1, 2, 4), num_outputs=2).eval()
    network.deep_supervision = True
    assert [tuple(x.shape[2:]) for x in network(torch.randn(1, 1, 5, 9, 17))] == [(5, 9, 17), (2, 4, 8)]
