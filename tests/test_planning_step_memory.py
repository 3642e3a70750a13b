"""The estimate of a training step's memory against measured bytes."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any
from unittest import mock

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from packaging.version import Version
from torch import nn
from torch._subclasses import FakeTensorMode

from nnunetv2_dinomed3d.network_architecture import DINOMed3D, build_dinomed3d
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.planning.step_memory import (
    CUDA_RESERVE,
    Step,
    _CudaAutocast,
    _Storages,
    training_step_memory,
)
from nnunetv2_dinomed3d.planning.training_memory import training_steps
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.trainers.quick_trainers import nnUNetTrainerQuick

SLABS = 4


class nnUNetTrainerSmall(nnUNetTrainerDINOMed3D):
    variant = "small"
    slab_batch_size = SLABS


def nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def measured(trainer: nnUNetTrainer, shape: tuple[int, ...], targets: list[tuple[int, ...]]) -> int:
    """Most bytes that PyTorch's CPU allocator hands out during nnU-Net's own train_step, by its profiler."""
    labels = [torch.randint(0, 2, target, dtype=torch.int16) for target in targets]
    batch: dict[str, Any] = {
        "data": torch.randn(shape),
        "target": labels if trainer.enable_deep_supervision else labels[0],
    }
    trainer.train_step(batch)  # the first makes the optimiser's state
    module = trainer.network
    moments = (value for state in trainer.optimizer.state.values() for value in state.values())
    before = nbytes((*module.parameters(), *module.buffers(), *moments, batch["data"], *labels))
    peaks = []
    # without gradients, as a step begins: of tensors that were there before, the profiler does not see the end
    for _ in range(2):  # on a busy machine the profiler can lose events
        trainer.optimizer.zero_grad(set_to_none=True)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            trainer.train_step(batch)
        events = profile.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        peaks.append(max(accumulate(change for _, change in changes)))
    return before + max(peaks)


def check_estimate(
    make_trainer: Callable,
    trainer: type[nnUNetTrainerDINOMed3D],
    stage: Stage,
    patch: tuple[int, int, int],
    batch: int,
    checkpoint: bool,
) -> None:
    def with_patch(plans: dict, configuration: str, *rest: Any) -> nnUNetTrainerDINOMed3D:
        plans["configurations"][configuration].update(patch_size=list(patch), batch_size=batch)
        return trainer(plans, configuration, *rest)

    instance = make_trainer(with_patch)
    instance.initialize()
    instance.begin_stage(stage)
    instance.module.checkpoint_activations(checkpoint)
    instance.network.train()
    shape = (SLABS, 1, 3, *patch[1:]) if stage == 1 else (batch, 1, *patch)

    def build() -> DINOMed3D:
        network = build_dinomed3d(trainer.variant, 1, 2, patch)
        network.checkpoint_activations(checkpoint)
        network.set_stage(stage, single_slab_input=stage == 1)
        return nn.Module.to(network, memory_format=torch.channels_last_3d)  # as `DINOMed3D.to` lays it on the CPU

    estimate = training_step_memory(Step("", build, shape), "cpu").total
    truth = measured(instance, shape, [(shape[0], 1, 1 if stage == 1 else shape[2], *shape[3:])])
    what = f"{trainer.variant} stage {stage} {shape} checkpoint {checkpoint}"
    print(f"{what}: estimate / measured {estimate / truth:.3f} of {truth / 1e6:.0f} MB")  # shown with pytest -rP
    assert estimate == pytest.approx(truth, rel=0.15)


def test_estimate_of_a_stock_trainer(make_trainer: Callable) -> None:
    """nnU-Net's own network has one step, with deep supervision."""
    instance = make_trainer(nnUNetTrainer)
    instance.initialize()
    instance.network.train()
    shape = (2, 1, *instance.configuration_manager.patch_size)
    managers = instance.plans_manager, instance.configuration_manager
    (step,) = training_steps(nnUNetTrainer, *managers, in_channels=1, num_classes=2)
    assert step.batch_shape == shape
    outputs = instance.network(torch.zeros(shape))
    truth = measured(instance, shape, [(2, 1, *output.shape[2:]) for output in outputs])
    estimate = training_step_memory(step, "cpu").total
    print(f"estimate / measured {estimate / truth:.3f} of {truth / 1e6:.0f} MB")  # shown with pytest -rP
    assert estimate == pytest.approx(truth, rel=0.15)


@pytest.mark.end_to_end
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("patch", "batch"), [((8, 48, 64), 2), ((5, 40, 56), 3)])
def test_estimate_is_what_training_takes(
    make_trainer: Callable, stage: Stage, patch: tuple[int, int, int], batch: int, checkpoint: bool
) -> None:
    check_estimate(make_trainer, nnUNetTrainerQuick, stage, patch, batch, checkpoint)


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(("stage", "batch"), [(1, 2), (2, 2), (2, 3)])  # stage 1 has slabs, whatever the batch
@pytest.mark.parametrize("patch", [(8, 64, 64), (16, 64, 64), (16, 96, 96), (8, 160, 144)])
@pytest.mark.parametrize("trainer", [nnUNetTrainerQuick, nnUNetTrainerSmall])
def test_estimate_over_a_grid(
    make_trainer: Callable,
    trainer: type,
    patch: tuple[int, int, int],
    batch: int,
    stage: Stage,
    checkpoint: bool,
) -> None:
    check_estimate(make_trainer, trainer, stage, patch, batch, checkpoint)


def kept_by_forward(device: str, stage: Stage, autocast: Callable[[], AbstractContextManager]) -> int:
    """Bytes that a forward pass on fake tensors leaves behind; PyTorch believes that there is a GPU."""
    gpu = mock.patch.multiple(torch.cuda, is_available=lambda: True, is_bf16_supported=lambda **_: True)
    with torch.device("meta"):
        network = build_dinomed3d("nano", 1, 3, (8, 96, 80))
    network.checkpoint_activations(True)
    storages = _Storages()
    with FakeTensorMode(allow_non_fake_inputs=True), gpu:  # in this order: the mode makes do without a GPU
        network.to_empty(device=device).train()
        network.set_stage(stage, single_slab_input=stage == 1)
        volume = torch.empty(2, 1, 3 if stage == 1 else 8, 96, 80, device=device)
        with storages, autocast():
            logits = network(volume)
            kept = sum(storage.nbytes for storage in storages.all if storage.is_alive(storages.events))
    assert logits.dtype == torch.float32
    return kept


@pytest.mark.skipif(Version(torch.__version__) < Version("2.10"), reason="of older PyTorch fake GPUs need a real one")
@pytest.mark.parametrize("stage", [1, 2])
def test_types_are_those_of_cuda_autocast(stage: Stage) -> None:
    """PyTorch's own, which on fake tensors runs a forward pass without a GPU."""
    truth = kept_by_forward("cuda", stage, lambda: torch.autocast("cuda", torch.bfloat16))
    assert kept_by_forward("cpu", stage, lambda: _CudaAutocast(True)) == pytest.approx(truth, rel=1e-3)
    assert kept_by_forward("cpu", stage, lambda: _CudaAutocast(False)) > 1.1 * truth


def test_estimate_names_every_part() -> None:
    def build() -> DINOMed3D:
        network = build_dinomed3d("nano", 1, 2, (4, 16, 16))
        network.set_stage(1, single_slab_input=True)
        return network

    network = build()
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    memory = training_step_memory(Step("", build, (2, 1, 3, 16, 16)))  # so small that AdamW's step takes most
    assert memory.gradients == trained
    assert 2 * trained <= memory.optimiser < 2.01 * trained
    assert memory.weights == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert memory.workspace > CUDA_RESERVE
