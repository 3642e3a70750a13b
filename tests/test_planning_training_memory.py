"""The warning of a patch that does not fit the GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.planning.step_memory import CUDA_RESERVE
from nnunetv2_dinomed3d.planning.training_memory import TrainingMemory, memory_warning
from nnunetv2_dinomed3d.trainers.harness import trainer as trainer_module
from nnunetv2_dinomed3d.trainers.registry import trainer_class
from tests.plans import by_voxels, read
from tests.trainers.quick_trainers import nnUNetTrainerQuick


def test_a_patch_that_does_not_fit_is_warned_of(preprocessed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnunetv2_dinomed3d.planning.training_memory.training_step_memory", by_voxels)
    plans = read(preprocessed, "nnUNetPlans")
    plans["configurations"]["3d_fullres"].update(
        patch_size=[64, 256, 256], batch_size=2, median_image_size_in_voxels=[90, 512, 512]
    )
    trainer = trainer_class("nnUNetTrainerDINOMed3D_nano")
    memory = TrainingMemory(trainer, plans, "3d_fullres", read(preprocessed, "dataset"))
    needed = (
        2 * 64 * 256 * 256 * 100
    )  # of half of it, stage 1's 24 slabs of 3 slices have room for 240 x 240, not 248 x 248
    assert memory_warning(memory, needed) is None
    assert memory_warning(memory, needed // 2) == (
        "Patch [64, 256, 256] with batch 2 takes about 0.8 GB in stage 2, and this GPU has 0.4 GB. Plans with patch "
        "[16, 240, 240] and batch 4 would fit, on the same preprocessed data: dinomed3d plan -d Dataset901_Test "
        "-gpu_memory_target 0.4 -tr nnUNetTrainerDINOMed3D_nano; then train with -p nnUNetDINOMed3DPlans."
    )
    assert "Not even the smallest patch" in str(memory_warning(memory, 1000))


@pytest.mark.end_to_end
def test_the_log_has_the_warning(
    make_trainer: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer_module, "visible_gpu_memory", lambda: CUDA_RESERVE)
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.check_memory()
    assert "WARNING" not in capsys.readouterr().out  # there is no such limit on a CPU
    trainer.device = torch.device("cuda")
    trainer.check_memory()
    assert "WARNING: Patch" in capsys.readouterr().out
