"""The network that is exported gives the trained one's logits, without LoRA and stage 1's head, also in float16."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from nnunetv2_dinomed3d.exporting.network import HalfPrecision, MeanOfBins, merge_for_export, require_exportable
from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.baselines import build_baseline
from tests.networks import nano, with_trained_lora
from tests.tiny_baselines import TINY

RELEASED = {"depth_alignment": "released", "lora_on_ice": True, "mixed_precision": False}
WINDOW = (4, 32, 40)


def network(**options: Any) -> DINOMed3D:
    return with_trained_lora(nano(WINDOW, **options)).eval()


def window() -> torch.Tensor:
    return torch.randn(1, 1, *WINDOW, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(1, 5, 7), (6, 6, 6), (3, 2, 13)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6, (1, None, 4)])
def test_mean_of_bins(size: tuple[int, int, int], bins: int) -> None:
    """As PyTorch's layer, also for fewer voxels than bins and for bins that overlap."""
    x = torch.randn(2, 3, *size)
    layer = nn.Sequential(nn.AdaptiveAvgPool3d(bins))
    expected = layer(x)
    merge_for_export(layer)
    assert isinstance(layer[0], MeanOfBins)
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, RELEASED, {"detail_stream": False, "proxy": "upernet"}])
def test_merged(options: dict[str, Any]) -> None:
    merged = network(**options)
    expected = merged(window())
    merge_for_export(merged)
    torch.testing.assert_close(merged(window()), expected, rtol=0, atol=1e-5)
    assert not [name for name in merged.state_dict() if "lora" in name or name.startswith("proxy_head")]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, RELEASED, {"detail_stream": False}])
def test_half(options: dict[str, Any]) -> None:
    """Weights of two bytes; the logits, in float32, are near."""
    trained = network(**options)
    x = window().half()
    expected = trained(x.float())
    merge_for_export(trained)
    half = HalfPrecision(trained)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    logits = half(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize(("options", "of_convolution"), [({}, torch.float16), (RELEASED, torch.float32)])
def test_what_of_half_computes_in_float32(options: dict[str, Any], of_convolution: torch.dtype) -> None:
    """The ViT's blocks, whose attention can overflow in float16, and norms; _released throughout."""
    trained = network(**options)
    merge_for_export(trained)
    half = HalfPrecision(trained)
    found: dict[str, torch.dtype] = {}
    for name in (
        "encoder.vit.blocks.3.attn.qkv",
        "detail.scale_1.1",
        "decoder.upernet.pools.0.0",
        "decoder.seg_layers",
    ):
        module = trained.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs, name=name: found.update({name: inputs[0].dtype}))
    half(window().half())
    assert found.pop("decoder.seg_layers") == of_convolution
    assert set(found.values()) == {torch.float32}
    assert len(found) == 3


@torch.no_grad()
def test_half_of_a_baseline() -> None:
    """It computes in float32, as float16 gives NaN in training; only its weights are rounded."""
    baseline = build_baseline("DinoUNet_S", 1, 3, (32, 32), **TINY["DinoUNet_S"]).eval()
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).half()
    expected = baseline(x.float())
    merge_for_export(baseline)
    torch.testing.assert_close(HalfPrecision(baseline)(x), expected, rtol=0, atol=0.02)


def test_scan() -> None:
    """Traced, Mamba's scan would be left out and the logits be others."""
    sizes = {"kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3, [2] * 3, [2] * 3]}
    umamba = build_baseline("UMambaBot", 1, 3, (8, 16, 16), **TINY["UMambaBot"], **sizes)
    with pytest.raises(ValueError, match=re.escape("nnUNetTrainerBaseline_UMambaBot cannot be exported: Mamba's scan")):
        require_exportable(umamba, "nnUNetTrainerBaseline_UMambaBot")
