"""What a training starts from: DINOv3 weights, those it resumes from, or an error before data is loaded."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from safetensors.torch import save_file

from nnunetv2_dinomed3d.network_architecture import VARIANTS
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.dinomed3d.variants.sizes import nnUNetTrainerDINOMed3D_nano
from tests.trainers.quick_trainers import nnUNetTrainerQuickBase, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


@pytest.fixture
def no_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that gets as far as loading data."""

    def loaded(self) -> None:
        raise AssertionError("data was loaded")

    monkeypatch.setattr(nnUNetTrainerDINOMed3D, "get_dataloaders", loaded)
    monkeypatch.setattr(nnUNetTrainerDINOMed3D, "check_data", loaded)


class SmallFromPretrained(nnUNetTrainerQuickBase):
    variant = "small"


@pytest.mark.usefixtures("no_loaders")
def test_missing_weights_stop_a_fresh_training_before_data_is_loaded(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere/weights.pth")
    with pytest.raises(ValueError, match=r"DINOMED3D_WEIGHTS.*/nowhere/weights.pth"):
        make_trainer(SmallFromPretrained).run_training()


@pytest.mark.usefixtures("no_loaders")
def test_an_unreachable_hub_stops_a_fresh_training_before_data_is_loaded(make_trainer: MakeTrainer) -> None:
    with pytest.raises(RuntimeError, match=r"timm/vit_small_patch16_dinov3.*DINOMED3D_WEIGHTS=/path"):
        make_trainer(SmallFromPretrained).run_training()


@pytest.mark.usefixtures("no_loaders")
def test_weights_of_another_variant_stop_a_fresh_training_before_data_is_loaded(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = make_trainer(SmallFromPretrained)
    narrow = {name: torch.zeros([n // 4 or 1 for n in shape]) for name, shape in shapes_of(trainer).items()}
    save_file(narrow, tmp_path / "model.safetensors")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"model\.safetensors.*width"):
        trainer.run_training()


def shapes_of(trainer: nnUNetTrainerDINOMed3D) -> dict[str, tuple[int, ...]]:
    trainer.initialize()
    return trainer.module.pretrained_shapes()


def test_weights_are_loaded_into_a_fresh_training_and_logged(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = make_trainer(SmallFromPretrained)
    weights = {name: torch.randn(shape) * 0.02 for name, shape in shapes_of(trainer).items()}
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setenv("DINOMED3D_WEIGHTS", str(tmp_path / "model.safetensors"))
    trainer.on_train_start()
    assert torch.equal(trainer.module.encoder.ice.conv.weight[:, 0], weights["patch_embed.proj.weight"])
    log = Path(trainer.log_file).read_text()
    assert f"{len(weights)} tensors from model.safetensors" in log
    assert "SHA-256" in log


def test_random_weights_are_asked_for_by_name(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "random")
    trainer = make_trainer(SmallFromPretrained)
    trainer.on_train_start()
    assert "DINOMED3D_WEIGHTS=random" in Path(trainer.log_file).read_text()


def test_nano_is_always_random(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere/weights.pth")
    trainer = make_trainer(nnUNetTrainerDINOMed3D_nano)
    trainer.on_train_start()
    assert "starts from random weights" in Path(trainer.log_file).read_text()


def test_pretrained_weights_and_resume_win_over_dinov3(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And need no DINOv3 weights: they may not even be there."""
    monkeypatch.setenv("DINOMED3D_WEIGHTS", "/nowhere/weights.pth")
    weights_loaded = dataclasses.replace(VARIANTS["nano"], weights_name="vit_small_patch16_dinov3")
    monkeypatch.setitem(VARIANTS, "nano", weights_loaded)
    final = shutil.copy(os.path.join(trained.output_folder, "checkpoint_final.pth"), tmp_path)

    fresh = make_trainer(nnUNetTrainerSeeded)
    fresh.initialize()
    load_pretrained_weights(fresh.network, final)  # what nnUNetv2_train -pretrained_weights calls
    fresh.on_train_start()
    assert fresh.stage == fresh.module.stage == 1
    trained_ice = trained.module.encoder.ice.conv.weight
    assert torch.equal(fresh.module.encoder.ice.conv.weight, trained_ice)
    optimised = {id(p) for p in fresh.optimizer.param_groups[0]["params"]}
    assert optimised == {id(p) for p in fresh.module.parameters() if p.requires_grad}

    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(str(final))
    resumed.on_train_start()
    assert resumed.stage == 2
