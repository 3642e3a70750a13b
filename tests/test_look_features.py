"""Features and gate are the network's own, on any size of volume, and the network is left as it was."""

import pytest
import torch

from nnunetv2_dinomed3d.look.features import (
    Windows,
    encoder_features,
    feature_colours,
    fusion_gate,
    principal_components,
)
from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from tests.look_models import stir_lora

pytestmark = pytest.mark.own


@pytest.fixture
def network() -> DINOMed3D:
    torch.manual_seed(0)
    network = build_dinomed3d("nano", 1, 2, (4, 32, 32))
    stir_lora(network)
    return network


@pytest.mark.parametrize("shape", [(5, 40, 70), (3, 20, 70), (9, 32, 32)])
def test_windows_cover_a_slice(shape: tuple[int, int, int]) -> None:
    volume = torch.randn(1, *shape)
    windows = Windows(volume, (4, 32, 32))
    for index in (0, shape[0] // 2, shape[0] - 1):
        patches, place = windows.patches(index)
        assert all(patch.shape == (1, 1, 4, 32, 32) for patch in patches)
        assert torch.equal(windows.join([patch[0, :, place] for patch in patches]), volume[:, index])
        slabs = windows.slabs(index, 3)
        assert all(slab.shape == (1, 1, 3, 32, 32) for slab in slabs)
        assert torch.equal(windows.join([slab[0, :, 1] for slab in slabs]), volume[:, index])
        if index == 0:
            assert all(slab[0, :, 0].abs().max() == 0 for slab in slabs), "zero slices are outside"


@pytest.mark.parametrize("lora", [False, True])
def test_features_are_the_encoders(network: DINOMed3D, lora: bool) -> None:
    """Of a volume of the patch's size, as the encoder gives them in one go, its boundary slices included."""
    volume = torch.randn(1, 4, 32, 32)
    windows = Windows(volume, (4, 32, 32))
    found = encoder_features(network, windows, [0, 2, 3], lora)
    assert (network.stage, network.training) == (2, True), "the network is as it was"
    network.eval()
    network.set_stage(2 if lora else 1)
    seen = []
    network.encoder.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(volume[None])
    for parts, index in zip(found, [0, 2, 3], strict=True):
        torch.testing.assert_close(parts[0], seen[0][-1][0, :, index], rtol=1e-4, atol=1e-4)


def test_gate_is_the_fusions(network: DINOMed3D) -> None:
    network.eval()
    with torch.no_grad():
        network.fusion.gate.weight.zero_()
        network.fusion.gate.bias.fill_(1.0)
    windows = Windows(torch.randn(1, 5, 40, 36), (4, 32, 32))
    gates = fusion_gate(network, windows, [0, 4])
    for gate in gates:
        torch.testing.assert_close(gate, torch.full((40, 36), torch.sigmoid(torch.tensor(1.0)).item()))
    with torch.no_grad():
        torch.nn.init.normal_(network.fusion.gate.weight)
    assert fusion_gate(network, windows, [0])[0].std() > 1e-3


def test_principal_components() -> None:
    """Of points along known directions; the sign does not depend on the solver's mood."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 8)).Q[:, :3]
    tokens = torch.randn(500, 3) * torch.tensor([9.0, 3.0, 1.0]) @ directions.T + 5
    axes = principal_components(tokens)
    assert (axes * directions).sum(dim=0).abs() == pytest.approx(torch.ones(3), abs=0.05)
    assert (axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all()
    torch.testing.assert_close(principal_components(tokens.flip(0)), axes, rtol=1e-3, atol=1e-3)


def test_colours_tell_regions_apart() -> None:
    """Tokens of two kinds get two colours, at the place of their voxels."""
    windows = Windows(torch.zeros(1, 1, 32, 64), (1, 32, 64))
    part = torch.zeros(8, 2, 4)
    part[:, :, 2:] = torch.arange(8.0)[:, None, None]
    (colours,) = feature_colours([[part + 1e-3 * torch.randn(part.shape)]], windows, 16)
    assert colours.shape == (32, 64, 3)
    assert (colours[:, :32, 0].mean() - colours[:, 32:, 0].mean()).abs() > 0.9
