"""Stopping and resuming, in either stage and at the boundary, and what stage 2 starts from."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.trainers.trainer import STAGE1_BEST, nnUNetTrainerDINOMed3D
from tests.trainers.quick_trainers import nnUNetTrainerSeeded

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


@pytest.mark.parametrize("stop_before", [1, 2, 3])  # in stage 1, at the boundary, in stage 2
def test_resuming_is_as_not_stopping(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, stop_before: int, tmp_path: Path
) -> None:
    whole = trained.module.state_dict(), trained.optimizer.state_dict(), trained._best_ema
    ema = list(trained.logger.get_value("ema_fg_dice", step=None))

    stopped = make_trainer(nnUNetTrainerSeeded)
    stopped.stop_before = stop_before
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
    assert resumed.current_epoch == stop_before
    assert resumed.stage == (1 if stop_before <= 2 else 2), "the boundary's checkpoint holds stage 1's optimiser"
    assert resumed.optimizer.param_groups[0]["params"][0].requires_grad
    resumed.run_training()

    assert resumed.stage == 2
    weights, optimiser, best_ema = whole
    assert all(torch.equal(value, weights[name]) for name, value in resumed.module.state_dict().items())
    state = resumed.optimizer.state_dict()
    assert state["param_groups"] == optimiser["param_groups"]
    assert state["state"].keys() == optimiser["state"].keys()
    for index, values in optimiser["state"].items():
        assert all(torch.equal(state["state"][index][key], value) for key, value in values.items())
    assert resumed.logger.get_value("ema_fg_dice", step=None) == pytest.approx(ema)
    assert resumed._best_ema == pytest.approx(best_ema)


def test_the_same_seed_gives_the_same_losses(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With augmentation in this process (nnUNet_n_proc_DA=0), on the CPU."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "again"))
    again = make_trainer(nnUNetTrainerSeeded)
    again.run_training()
    for key in ("train_losses", "val_losses", "mean_fg_dice"):
        assert again.logger.get_value(key, step=None) == trained.logger.get_value(key, step=None)


def test_switching_without_the_best_of_stage1_says_so(make_trainer: MakeTrainer) -> None:
    stopped = make_trainer(nnUNetTrainerSeeded)
    stopped.stop_before = 2
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    os.remove(os.path.join(stopped.output_folder, STAGE1_BEST))
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
    resumed._best_ema = 1.0  # of an epoch before the last one: the last one's can be saved again
    with pytest.raises(FileNotFoundError, match=r"checkpoint_best_stage1.pth is missing.*from the beginning"):
        resumed.run_training()


def test_without_checkpoints_stage2_starts_from_the_last_epoch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.disable_checkpointing = True
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "stage 2 starts from the last epoch of stage 1" in log
    assert not list(Path(trainer.output_folder).glob("*.pth"))
