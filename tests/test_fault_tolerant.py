"""Faults: damaged files, full disks, dead workers, numbers gone bad."""

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]


# ---- checkpoints ----


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing beyond it fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.initialize()
    path = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(path))
    good = path.read_bytes()
    with (
        file_size_limit(100_000),
        pytest.raises(RuntimeError, match=r"checkpoint_latest\.pth could not be written.*unharmed.*disk full.*--c"),
    ):
        trainer.save_checkpoint(str(path))
    assert path.read_bytes() == good
    assert [file.name for file in tmp_path.glob("checkpoint*")] == ["checkpoint_latest.pth"]


def test_folder_that_cannot_be_written(
    make_trainer: MakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    with pytest.raises(OSError, match=r"folder of results cannot be written.*set it to a folder of your own"):
        make_trainer(nnUNetTrainerQuick)


def test_truncated_checkpoint(trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer) -> None:
    latest = Path(trained.output_folder) / "checkpoint_latest.pth"
    whole = latest.with_name("checkpoint_final.pth").read_bytes()
    latest.write_bytes(whole[: len(whole) // 2])
    before = {path.name: path.read_bytes() for path in latest.parent.glob("*.pth")}
    with pytest.raises(ValueError, match=r"latest.pth is damaged.*newest sound checkpoint .* is checkpoint_final"):
        make_trainer(nnUNetTrainerSeeded).load_checkpoint(str(latest))
    assert before == {path.name: path.read_bytes() for path in latest.parent.glob("*.pth")}


def test_checkpoint_of_another_network(
    trained: nnUNetTrainerDINOMed3D, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = os.path.join(trained.output_folder, "checkpoint_final.pth")
    monkeypatch.setattr(nnUNetTrainerSeeded, "slab_depth", 5)
    with pytest.raises(
        ValueError, match=r"1 tensor does not fit.*ice.conv.weight.*written by nnunetv2_dinomed3d \d.*this is"
    ):
        make_trainer(nnUNetTrainerSeeded).load_checkpoint(final)


# ---- data loaders ----


def test_a_killed_worker_is_an_error_not_a_hang(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer = make_trainer(nnUNetTrainerQuick)
    trainer.on_train_start()
    for worker in trainer.dataloader_train._processes:
        worker.kill()

    def drain() -> None:
        for _ in range(200):
            next(trainer.dataloader_train or iter(()))
            time.sleep(0.01)

    with pytest.raises(RuntimeError, match="background workers"):
        drain()
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        loader._finish()


# ---- numbers ----


class Poisoned(nnUNetTrainerQuick):
    """The loss of some iterations is not finite."""

    iterations_per_epoch = 12
    poison: tuple[int, ...] = ()
    value = float("nan")

    def initialize(self) -> None:
        super().initialize()
        self.iteration = 0

    def train_step(self, batch: dict) -> dict:
        loss = self.loss
        if self.iteration in self.poison:
            self.loss = lambda output, target: loss(output, target) * self.value  # type: ignore[assignment]
        self.iteration += 1
        before = [p.detach().clone() for p in self.optimizer.param_groups[0]["params"]]
        output = super().train_step(batch)
        self.loss = loss
        self.moved = not all(
            torch.equal(a, b) for a, b in zip(before, self.optimizer.param_groups[0]["params"], strict=True)
        )
        assert self.moved == (self.iteration - 1 not in self.poison)
        return output


def test_an_optimizer_of_ones_own_is_asked_too(make_trainer: MakeTrainer) -> None:
    """A derived trainer that only overrides `configure_optimizers` does not lose the check."""

    class OwnOptimizer(Poisoned):
        poison = (1,)

        def configure_optimizers(self) -> tuple:
            optimizer = torch.optim.SGD([p for p in self.network.parameters() if p.requires_grad], lr=1e-3)
            return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)

    trainer = make_trainer(OwnOptimizer)
    trainer.initialize()
    trainer.network.train()
    batch = {"data": torch.randn(4, 1, 3, 32, 28), "target": torch.zeros(4, 1, 1, 32, 28), "keys": ["case_0"]}
    for _ in range(3):
        trainer.train_step(batch)
    assert trainer._skipped_in_epoch == 1


@pytest.mark.end_to_end
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_step_is_skipped_and_counted(
    make_trainer: MakeTrainer, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Poisoned, "poison", (0, 3, 4))
    monkeypatch.setattr(Poisoned, "value", value)
    monkeypatch.setattr(Poisoned, "stage1_epochs", 1)
    monkeypatch.setattr(Poisoned, "stage2_epochs", 1)
    trainer = make_trainer(Poisoned)
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log_*.txt")).read_text()
    counts = [line.split(": ")[-1].strip() for line in log.splitlines() if "steps skipped" in line]
    assert counts == ["3", "0"]
    assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.module.state_dict().values())


def test_ten_in_a_row_stop_the_training(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Poisoned, "poison", tuple(range(1, 12)))
    trainer = make_trainer(Poisoned)
    with pytest.raises(RuntimeError, match=r"10 steps in a row.*The cases of these steps: case_\d.*--c.*learning rate"):
        trainer.run_training()
    assert trainer.iteration == 11
