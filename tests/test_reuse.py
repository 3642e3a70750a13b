"""DINOMED3D_STAGE1: stage 2 from the stage 1 of another training; what it refuses, and what it warns of."""

from collections.abc import Callable
from os.path import join
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


class OtherDepth(nnUNetTrainerQuick):
    slab_depth = 5


class OnlyStage2(nnUNetTrainerQuick):
    stages = (2,)


@pytest.fixture
def stage1_file(trained: nnUNetTrainerDINOMed3D, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The best stage 1 epoch of a training on fold 0, named by the user."""
    path = Path(trained.output_folder) / STAGE1_BEST
    monkeypatch.setenv("DINOMED3D_STAGE1", str(path))
    return path


def read_log(trainer: nnUNetTrainerDINOMed3D) -> str:
    return Path(trainer.log_file).read_text()


def test_stage1s_epochs_are_skipped_and_the_source_is_recorded(stage1_file: Path, make_trainer: MakeTrainer) -> None:
    """And resuming goes on in stage 2, without the variable."""
    trainer = make_trainer(nnUNetTrainerSeeded, fold=1)
    trainer.stop_before = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    assert trainer.num_epochs == nnUNetTrainerSeeded.stage2_epochs == 2
    latest = join(trainer.output_folder, "checkpoint_latest.pth")
    checkpoint = torch.load(latest, weights_only=False)
    source = checkpoint["init_args"]["stage1"]
    assert (source["epochs"], source["file"]) == (0, STAGE1_BEST)
    assert source["sha256"] in read_log(trainer)

    stage1 = torch.load(stage1_file, weights_only=False)["network_weights"]
    for name, tensor in checkpoint["network_weights"].items():
        if name.startswith("encoder.") and ".lora_" not in name:
            assert torch.equal(tensor, stage1[name]), name

    resumed = make_trainer(nnUNetTrainerSeeded, fold=1)
    resumed.load_checkpoint(latest)
    assert resumed.stage == 2
    resumed.run_training()
    assert resumed.schedule.stage1.epochs == 0
    assert resumed.current_epoch == 2
    assert "DINOMED3D_STAGE1 is not looked at" in read_log(resumed)
    assert not (Path(resumed.output_folder) / STAGE1_BEST).exists()


def test_a_training_of_both_stages_records_its_own_best_epoch(trained: nnUNetTrainerDINOMed3D) -> None:
    checkpoint = torch.load(join(trained.output_folder, "checkpoint_final.pth"), weights_only=False)
    record = checkpoint["init_args"]["stage1"]
    assert record["epochs"] == 2
    assert record["best_epoch"] in (0, 1)
    assert "plans" in checkpoint["init_args"], "nnU-Net's own are still there"


@pytest.mark.parametrize(("fold", "leaks"), [(0, False), (1, True), ("all", False)])
def test_stage1_of_another_fold_is_warned_of(
    stage1_file: Path, make_trainer: MakeTrainer, fold: int | str, leaks: bool
) -> None:
    """It has seen this fold's validation cases; with fold all, validation is on training cases anyway."""
    trainer = make_trainer(nnUNetTrainerSeeded, fold=fold)
    trainer.on_train_start()
    _, validation = trainer.do_split()
    log = read_log(trainer)
    assert ("WARNING" in log) == leaks
    if leaks:
        assert f"was trained on 1 of the 1 validation cases of fold 1 ({validation[0]})" in log


def test_weights_that_are_given_twice_are_refused(stage1_file: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(stage1_file))
    with pytest.raises(ValueError, match=r"DINOMED3D_STAGE1.*-pretrained_weights.*Use one of them"):
        trainer.on_train_start()


@pytest.mark.parametrize(
    ("trainer_class", "message"),
    [
        (OnlyStage2, r"DINOMED3D_STAGE1.*this trainer has only stage 2"),
        (OtherDepth, r"ice\.conv\.weight: expected \(96, 1, 5, 16, 16\), found \(96, 1, 3, 16, 16\).*slab depth K"),
    ],
)
@pytest.mark.usefixtures("stage1_file")
def test_a_trainer_it_does_not_go_with(trainer_class: type, message: str, make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(trainer_class).on_train_start()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"DINOMED3D_STAGE1 is '.*other.pth', which is no file"),
        (b"<html>", "neither a safetensors nor a PyTorch file"),
        ({"network_weights": {}}, "is not a checkpoint of nnU-Net"),
    ],
)
def test_a_file_that_is_no_checkpoint(
    content: object, message: str, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.pth"
    monkeypatch.setenv("DINOMED3D_STAGE1", str(path))
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        make_trainer(nnUNetTrainerQuick).on_train_start()
