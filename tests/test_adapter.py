"""The 3D adapter: grids of its levels, and that no token is lost on the way to them."""

import pytest
import torch
from torch import nn

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.adapter import LEVEL_STRIDES, Adapter3D
from nnunetv2_dinomed3d.network_architecture.options import DepthAlignment

SCALES = (1, 2, 4)


def convolutions_alone(adapter: Adapter3D) -> Adapter3D:
    """The adapter without what couples all positions (the norm) and what can hide one (the activation)."""
    for level in adapter.levels:
        for name, module in list(level.named_modules()):
            if isinstance(module, nn.InstanceNorm3d | nn.PReLU):
                parent, _, child = name.rpartition(".")
                setattr(level.get_submodule(parent), child, nn.Identity())
    return adapter


@pytest.mark.parametrize("alignment", ["exact", "released"])
@pytest.mark.parametrize("grid", [(3, 32, 32), (1, 10, 14), (2, 9, 7), (1, 1, 1)])
@pytest.mark.parametrize("scale", SCALES)
def test_every_token_reaches_the_pyramid(scale: int, grid: tuple[int, int, int], alignment: DepthAlignment) -> None:
    """This holds for every feature map: a convolution of stride 4 or 8 would never touch most tokens."""
    torch.manual_seed(0)
    adapter = convolutions_alone(Adapter3D(4, 4, 16 // scale, alignment))
    features = [torch.randn(1, 4, *grid, requires_grad=True) for _ in LEVEL_STRIDES]
    for feature, level in zip(features, adapter(features), strict=True):
        level.square().sum().backward()
        assert feature.grad is not None
        assert (feature.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_levels_have_strides_of_4_to_32_voxels(scale: int) -> None:
    adapter = Adapter3D(4, 8, 16 // scale, "exact")
    tokens = (5, 64 * scale // 16, 96 * scale // 16)
    levels = adapter([torch.randn(2, 4, *tokens) for _ in LEVEL_STRIDES])
    assert [tuple(level.shape) for level in levels] == [(2, 8, 5, 64 // s, 96 // s) for s in LEVEL_STRIDES]


@pytest.mark.parametrize("scale", SCALES)
def test_every_convolution_is_trained(scale: int) -> None:
    adapter = Adapter3D(4, 8, 16 // scale, "exact")
    levels = adapter([torch.randn(1, 4, 3, 16, 16) for _ in LEVEL_STRIDES])
    sum(level.square().sum() for level in levels).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_names_at_scale_1_are_those_of_the_released_checkpoints() -> None:
    with torch.device("meta"):
        network = DINOMed3D(1, 2, scale=1, vit_name="vit_small_patch16_dinov3")
    names = {name for name, _ in network.adapter.named_parameters() if name.split(".")[2] == "3"}
    assert names == {f"levels.{level}.3.{kind}" for level in (0, 1, 3) for kind in ("weight", "bias")}


def test_the_released_alignment_lengthens_the_fine_levels() -> None:
    """Checkpoints of the released code need it: kernels of 4 and 2 in depth without padding."""
    levels = Adapter3D(4, 8, 16, "released")([torch.randn(1, 4, 5, 4, 4) for _ in LEVEL_STRIDES])
    assert [level.shape[2] for level in levels] == [8, 6, 5, 5]
