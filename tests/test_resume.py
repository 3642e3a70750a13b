"""Stopping and resuming, in either stage and at the boundary, and what stage 2 starts from."""

import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.randomness import random_states, restore_random_states, seed_all
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


@pytest.mark.end_to_end
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


# ---- random numbers ----


class Stopped(nnUNetTrainerQuick):
    """Not seeded anew in any epoch. Stopped before an epoch, as by a kill, or in one, by a signal."""

    before: int | None = None
    in_step: tuple[int, int] | None = None
    in_validation: int | None = None

    def on_epoch_start(self) -> None:
        self.step = 0
        if self.current_epoch == self.before:
            raise KeyboardInterrupt
        super().on_epoch_start()

    def train_step(self, batch: dict) -> dict:
        output = super().train_step(batch) if self.in_step != (self.current_epoch, self.step) else self._step(batch)
        self.step += 1
        return output

    def _step(self, batch: dict) -> dict:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        if self.current_epoch == self.in_validation:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().validation_step(batch)


@pytest.fixture(scope="module")
def uninterrupted(preprocessed: Path, tmp_path_factory: pytest.TempPathFactory) -> nnUNetTrainerDINOMed3D:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("uninterrupted")))
        patch.setenv("DINOMED3D_SEED", "7")
        trainer = build(Stopped, preprocessed)
        trainer.run_training()
    return trainer


def build(trainer_class: type, preprocessed: Path) -> nnUNetTrainerDINOMed3D:
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset = json.loads((preprocessed / "dataset.json").read_text())
    return trainer_class(plans, "3d_fullres", 0, dataset, torch.device("cpu"))


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "stop",
    [
        pytest.param({"before": 1}, id="in stage 1"),
        pytest.param({"before": 2}, id="at the switch"),
        pytest.param({"before": 3}, id="in stage 2"),
        pytest.param({"in_step": (1, 0)}, id="in an epoch of stage 1"),
        pytest.param({"in_step": (2, 0)}, id="in the first epoch of stage 2"),
        pytest.param({"in_step": (3, 1)}, id="after an epoch's last step"),
        pytest.param({"in_validation": 1}, id="while an epoch is validated"),
    ],
)
def test_a_resumed_training_draws_what_it_would_have_drawn(
    uninterrupted: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, stop: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: weights, moments of the optimiser, losses and Dice. Whatever the process drew before it resumes."""
    monkeypatch.setenv("DINOMED3D_SEED", "7")
    stopped = make_trainer(Stopped)
    for name, value in stop.items():
        setattr(stopped, name, value)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        stopped.run_training()
    monkeypatch.delenv("DINOMED3D_SEED")
    resumed = make_trainer(Stopped)
    seed_all(99)
    resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
    resumed.run_training()
    weights = uninterrupted.module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.module.state_dict().items())
    moments = uninterrupted.optimizer.state_dict()["state"]
    for index, values in resumed.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in values.items())
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        assert resumed.logger.get_value(key, step=None) == uninterrupted.logger.get_value(key, step=None), key


def test_random_states_are_plain_and_come_back(tmp_path: Path) -> None:
    """Read without running code, as other versions of PyTorch do; ranks other than 0 draw something of their own."""
    device = torch.device("cpu")

    def draw() -> tuple:
        return random.random(), random.gauss(0, 1), np.random.normal(), float(torch.rand(())), np.random.normal()

    random.gauss(0, 1), np.random.normal()  # both keep a second number
    torch.save(random_states(device), tmp_path / "states.pth")
    expected = draw()
    states = torch.load(tmp_path / "states.pth", weights_only=True)
    restore_random_states(states, device)
    assert draw() == expected
    restore_random_states(states, device, rank=1)
    of_rank_1 = draw()
    restore_random_states(states, device, rank=2)
    assert len({expected, of_rank_1, draw()}) == 3


@pytest.mark.parametrize("value", ["-1", "1.5", "one", "4294967296", "1e3", "٣", "0x10", "9" * 5000])
def test_a_seed_that_is_none_is_refused_before_anything_is_written(
    value: str, make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOMED3D_SEED", value)
    with pytest.raises(ValueError, match=r"^DINOMED3D_SEED is .*whole number, 0 to 4294967295"):
        make_trainer(nnUNetTrainerQuick)
    assert not (tmp_path / "results").exists()


def test_loader_workers_are_seeded(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker: its batches are equal for equal seeds, others for another epoch; two draw different ones."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("DINOMED3D_SEED", "3")

    def batches(epoch: int) -> list[torch.Tensor]:
        trainer = make_trainer(nnUNetTrainerQuick)
        trainer.initialize()
        trainer.current_epoch = epoch
        loaders = trainer.get_dataloaders()
        drawn = [next(loaders[0])["data"] for _ in range(2)]
        for loader in loaders:
            stop_workers(loader)
        return drawn

    first, again, later = batches(0), batches(0), batches(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])


# ---- lengths ----


def test_other_lengths_after_a_stop_are_refused(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate would jump. Loading, and so validation of what was trained, goes on."""
    stopped = make_trainer(nnUNetTrainerSeeded)
    stopped.stop_before = 1
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    for stage1, stage2 in ((2, 3), (2, 1), (1, 1), (1, 0), (3, 1)):
        monkeypatch.setattr(nnUNetTrainerSeeded, "stage1_epochs", stage1)
        monkeypatch.setattr(nnUNetTrainerSeeded, "stage2_epochs", stage2)
        resumed = make_trainer(nnUNetTrainerSeeded)
        resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
        with pytest.raises(ValueError, match=rf"began with 2 \+ 2 epochs.*now has {stage1} \+ {stage2}: the learning"):
            resumed.run_training()


def test_a_checkpoint_that_says_no_lengths_is_not_gone_on_with_beyond_them(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an older version: 2 + 2 epochs were trained, the trainer has 1 + 1 now."""
    checkpoint = as_older_versions_wrote(Path(trained.output_folder) / "checkpoint_final.pth")
    monkeypatch.setattr(nnUNetTrainerSeeded, "stage1_epochs", 1)
    monkeypatch.setattr(nnUNetTrainerSeeded, "stage2_epochs", 1)
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"began with 2 \+ 2 epochs.*now has 1 \+ 1"):
        resumed.run_training()


def as_older_versions_wrote(path: Path) -> dict:
    """Without what they did not know."""
    checkpoint = torch.load(path, weights_only=False)
    for name in ("training", "epochs", "resume"):
        del checkpoint["init_args"][name]
    return checkpoint


# ---- loading ----


@pytest.mark.parametrize("stage", [1, 2])
def test_optimiser_and_loss_are_built_once_and_the_file_is_read_once(
    make_trainer: MakeTrainer, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = make_trainer(nnUNetTrainerSeeded)
    stopped.stop_before = 1 if stage == 1 else 3
    with pytest.raises(KeyboardInterrupt):
        stopped.run_training()
    calls: list[str] = []
    for owner, name in ((torch.optim, "AdamW"), (nnUNetTrainer, "_build_loss"), (torch, "load")):
        original = getattr(owner, name)
        record = lambda *a, original=original, name=name, **k: calls.append(name) or original(*a, **k)  # noqa: E731
        monkeypatch.setattr(owner, name, record)
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(os.path.join(resumed.output_folder, "checkpoint_latest.pth"))
    assert sorted(calls) == ["AdamW", "_build_loss", "load"]
    assert resumed.stage == resumed.module.stage == stage
    earlier = Path(resumed.log_file).read_text()  # the stopped one's too, if both began in one second
    resumed.on_train_start()
    log = Path(resumed.log_file).read_text().removeprefix(earlier)
    assert re.findall(r"Stage (\d): [0-9,]+ of [0-9,]+ parameters trained", log) == [str(stage)]


def test_a_checkpoint_can_be_given_as_a_dict(trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer) -> None:
    """And one of an older version, without random states and identity, is gone on with."""
    checkpoint = as_older_versions_wrote(Path(trained.output_folder) / "checkpoint_best.pth")
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(checkpoint)
    assert resumed.current_epoch == checkpoint["current_epoch"]
    assert resumed.stage == 2
    resumed.run_training()
    assert resumed.current_epoch == 4


def test_without_checkpoints_stage2_starts_from_the_last_epoch(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.disable_checkpointing = True
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    assert "stage 2 starts from the last epoch of stage 1" in log
    assert not list(Path(trainer.output_folder).glob("*.pth"))
