"""Precision of the forward pass under nnU-Net's autocast."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nnunetv2_dinomed3d.network_architecture.efficiency.precision import precision
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.networks import nano
from tests.trainers.quick_trainers import nnUNetTrainerQuick

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


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


@pytest.mark.own
def test_float16_with_a_scaler_where_bfloat16_is_missing(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on older GPUs: nnU-Net's autocast and scaler around a ViT in float32."""
    monkeypatch.setattr(
        "nnunetv2_dinomed3d.network_architecture.efficiency.precision.has_bfloat16", lambda device_type: False
    )
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.initialize()
    scaler = torch.amp.GradScaler("cpu")
    shapes: dict[Stage, tuple[int, ...]] = {1: (2, 1, 3, 32, 28), 2: (1, 1, 4, 32, 28)}
    for stage, shape in shapes.items():
        trainer.begin_stage(stage)
        trainer.network.train()
        trainer.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            logits = trainer.network(torch.randn(shape))
            loss = trainer.loss(logits, torch.zeros(shape[0], 1, *logits.shape[2:]))
        scaler.scale(loss).backward()
        scaler.unscale_(trainer.optimizer)
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in trainer.network.parameters() if p.grad is not None)
        scaler.step(trainer.optimizer)
        scaler.update()
