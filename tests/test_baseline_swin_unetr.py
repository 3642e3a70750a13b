"""Tests of SwinUNETR and of VoCo's network."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from nnunetv2_dinomed3d.network_architecture.baselines.any_size import AnySizeNetwork
from nnunetv2_dinomed3d.weights.official import load_official
from tests.reference_baselines import difference, needs_reference, official_state, outputs, outputs_of, parameters

TOLERANCE = 1e-4

PAPER_SIZES = [  # name, channels, classes, changes, parameters
    ("SwinUNETR", 1, 2, {}, 62_186_708),
    ("SwinUNETR", 1, 14, {}, 62_187_296),
    ("SwinUNETR", 4, 3, {}, 62_191_941),
    ("VoCo_B", 1, 2, {}, 72_762_068),
    ("VoCo_L", 1, 2, {}, 290_390_852),
    ("VoCo_L", 1, 21, {}, 290_392_695),
    ("VoCo_L_v1", 1, 2, {}, 248_089_412),
    ("VoCo_B", 1, 2, {"feature_size": 192}, 1_160_841_764),
]


def tiny(name: str, in_channels: int = 1, num_classes: int = 2, **changes) -> Any:
    return build_baseline(name, in_channels, num_classes, (64, 32, 64), feature_size=12, **changes)


def parts(network: Any) -> dict[str, nn.Module]:
    """Modules by the names of the reference's arrays."""
    monai = network.network
    stage2 = monai.swinViT.layers2[0]
    names = {
        "swin.layers2.block.0": stage2.blocks[0],
        "swin.layers2.block.1": stage2.blocks[1],
        "encoder10": monai.encoder10,
        **{f"decoder{level}": getattr(monai, f"decoder{level}") for level in (5, 4, 3, 2)},
    }
    return names if not monai.swinViT.use_v2 else {**names, "swin.residual.1": monai.swinViT.layers2c[0]}


@needs_reference
@pytest.mark.parametrize("folder", ["swinunetr", "voco"])
def test_the_official_network_is_met(folder):
    expected = outputs(folder)
    network = tiny("SwinUNETR" if folder == "swinunetr" else "VoCo_B", merging="legacy").eval()
    load_official(network, official_state(folder))
    image = expected.pop(f"input.{folder}")
    with outputs_of(parts(network)) as found, torch.no_grad():
        found["logits"] = network(image)
        for number, state in enumerate(network.network.swinViT(image, True)):
            found[f"swin.{number}"] = state
    network.set_merging("all")
    with torch.no_grad():
        found["new_order.logits"] = network(image)
    for name, array in expected.items():
        value = found[name].movedim(-1, 1) if ".block." in name else found[name]
        assert difference(value, array) <= TOLERANCE, name


@pytest.mark.parametrize(("name", "channels", "classes", "changes", "total"), PAPER_SIZES)
def test_parameters(name, channels, classes, changes, total):
    with torch.device("meta"):
        network = build_baseline(name, channels, classes, (64, 64, 64), **changes)
    assert parameters(network) == total


def test_any_size_and_number_of_channels():
    network = tiny("VoCo_B", 3, 4).train()
    logits = network(torch.randn(1, 3, 20, 33, 31))
    assert logits.shape == (1, 4, 20, 33, 31)
    logits.mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_patch_of_one_cell_can_be_trained():
    assert tiny("SwinUNETR").train()(torch.randn(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)


def test_deep_supervision_is_a_list_of_one():
    network = tiny("SwinUNETR").eval()
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        alone = network(image)
        names = list(network.state_dict())
        network.deep_supervision = True
        assert torch.equal(network(image)[0], alone)
    assert list(network.state_dict()) == names


def test_a_state_dict_sets_the_order_of_its_octants():
    written, read = tiny("SwinUNETR", merging="legacy"), tiny("SwinUNETR")
    read.load_state_dict(written.state_dict())
    assert read.merging == "legacy"
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.no_grad():
        assert torch.equal(read.eval()(image), written.eval()(image))
        read.set_merging("all")
        assert not torch.equal(read(image), written(image))


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="'all' or 'legacy'"):
        tiny("SwinUNETR", merging="new")


def test_meta():
    with torch.device("meta"):
        network = tiny("VoCo_B")
        assert network(torch.empty(2, 1, 40, 56, 40)).shape == (2, 2, 40, 56, 40)


def official(network: AnySizeNetwork) -> dict[str, Tensor]:
    """MONAI's own state dict."""
    return {
        name.removeprefix("network."): value for name, value in network.state_dict().items() if "_extra" not in name
    }


def test_the_official_index_is_dropped():
    network = tiny("SwinUNETR")
    index = "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    load_official(network, {**official(network), index: torch.zeros(343, 343, dtype=torch.long)})


def missing(state):
    del state["out.conv.conv.bias"]


def left_over(state):
    state["norm.weight"] = torch.ones(3)


def other_shape(state):
    state["out.conv.conv.bias"] = torch.ones(3)


@pytest.mark.parametrize("spoil", [missing, left_over, other_shape])
def test_a_state_dict_that_does_not_fit_is_refused(spoil):
    network = tiny("SwinUNETR")
    state = official(network)
    spoil(state)
    with pytest.raises(ValueError, match=r"1 tensor does not fit: network\."):
        load_official(network, state)
