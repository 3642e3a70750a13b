"""Precision of the forward pass under nnU-Net's autocast."""

from typing import Any

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision
from tests.networks import nano


def test_autocast_float16_becomes_bfloat16_and_logits_stay_float32() -> None:
    """nnU-Net's autocast is float16, in which attention can overflow."""
    network: Any = nano()
    seen = []
    network.decoder.upernet.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.float16):
        logits = network(torch.randn(1, 1, 4, 32, 32))
    assert logits.dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_vit_is_float32_where_bfloat16_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nnunetv2_dinomed3d.network_architecture.efficiency.precision.has_bfloat16", lambda device_type: False
    )
    network = nano()
    features = []
    network.encoder.register_forward_hook(lambda module, args, output: features.extend(output))
    with torch.autocast("cpu", dtype=torch.float16):
        network(torch.randn(1, 1, 4, 32, 32))
    assert {feature.dtype for feature in features} == {torch.float32}


@pytest.mark.parametrize(
    ("autocast", "options", "expected"),
    [
        (True, {}, torch.bfloat16),
        (True, {"mixed": False}, torch.float32),
        (True, {"float16": False}, torch.bfloat16),
        (False, {}, torch.float32),
    ],
)
def test_products_have_the_type(autocast: bool, options: dict, expected: torch.dtype) -> None:
    x = torch.randn(2, 2)
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast), precision(x, **options):
        assert (x @ x).dtype == expected


def test_without_mixed_precision_all_is_float32() -> None:
    """Also if the image comes in float16."""
    network = nano(mixed_precision=False)
    x, seen = torch.randn(1, 1, 4, 32, 32).half(), []
    for module in (network.encoder, network.adapter, network.decoder):
        module.register_forward_hook(lambda module, args, output: seen.extend(output))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        network(x)
    assert {tensor.dtype for tensor in seen} == {torch.float32}
