"""Faults: kills, preemption, damaged files, full disks, dead workers, numbers gone bad."""

import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training_entry

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage
from nnunetv2_dinomed3d.processes import PREEMPTED
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import replace_durably
from nnunetv2_dinomed3d.weights.archive import require_sound_archive
from tests.processes import await_end_of_session
from tests.trainers.quick_trainers import nnUNetTrainerQuick, nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]
EPOCHS = 8  # of nnUNetTrainerKilled
EPOCH = re.compile(r": Epoch (\d+)$")


def tensors_equal(a: dict, b: dict) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


# ---- kills ----


class Forked:
    """nnU-Net's command as a fork of this process, in a session of its own: PyTorch is not imported 100 times.

    Has of `subprocess.Popen` what is used of it here.
    """

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        reader, writer = os.pipe()
        self.stdout = os.fdopen(reader)
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(command, env, writer))
        self._process.start()
        os.close(writer)
        assert self._process.pid
        self.pid = self._process.pid

    @staticmethod
    def _run(command: list[str], env: dict[str, str], writer: int) -> None:
        os.setsid()
        os.environ.update(env)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.argv = command
        run_training_entry()

    def wait(self) -> int:
        self._process.join()
        self.stdout.close()
        assert self._process.exitcode is not None
        return self._process.exitcode


def start_command(command: list[str], env: dict[str, str]) -> subprocess.Popen:
    """nnU-Net's command as a user starts it."""
    output: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env, start_new_session=True, **output)


def kill_and_resume(
    signals: Sequence[signal.Signals],
    nnunet_environment: dict[str, str],
    results: Path,
    seed: int,
    trainer: str = "nnUNetTrainerKilled",
    start: Callable[[list[str], dict[str, str]], Any] = start_command,
) -> list[str]:
    """Train with nnU-Net's command, stop it at random moments, go on with --c. What was printed, line by line.

    Args:
        signals: SIGKILL, or one that asks to stop; each to all processes of the training.
    """
    command = ["nnUNetv2_train", "901", "3d_fullres", "0", "-tr", trainer, "-device", "cpu"]
    rng = np.random.default_rng(seed)
    environment = {
        **os.environ,
        **nnunet_environment,
        "nnUNet_results": str(results),
        "OMP_NUM_THREADS": "1",
        "nnUNet_n_proc_DA": "1",
    }
    printed: list[str] = []
    for attempt, number in enumerate((*signals, None)):
        process = start(command + (["--c"] if attempt else []), environment)
        killer, epochs_left, now = None, rng.integers(1, 3), []
        for line in process.stdout:
            now.append(line)
            epochs_left -= bool(EPOCH.search(line))
            if killer is None and number and epochs_left == 0:
                killer = threading.Timer(rng.uniform(0, 2), os.killpg, (process.pid, number))
                killer.start()
        if killer:
            killer.cancel()
        code, output = process.wait(), "".join(now)
        printed += now
        await_end_of_session(process.pid)
        for path in results.rglob("checkpoint_*.pth"):
            require_sound_archive(path)
        if number == signal.SIGKILL and killer:
            assert code in (-signal.SIGKILL, 0), output
            continue
        assert "Traceback" not in output, output
        if number and killer:
            assert code in (PREEMPTED, 0) or "Mean Validation Dice" in output, output
            assert code != PREEMPTED or f"{number.name}: " in output, output
        else:
            assert code == 0, output
    assert not list(results.rglob("*.partial"))
    return printed


def begun(printed: list[str]) -> list[int]:
    """The epochs in the order in which they were begun."""
    return [int(match[1]) for match in map(EPOCH.search, printed) if match]


def assert_whole(results: Path, epochs: int = EPOCHS) -> None:
    """Every epoch once, stage 1's before stage 2's, and nothing half-written."""
    (folder,) = results.glob("*/*/fold_0")
    final = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert final["current_epoch"] == epochs
    for key, values in final["logging"].items():
        assert len(values) == epochs, key
    lrs = final["logging"]["lrs"]
    assert lrs == sorted(lrs[: epochs // 2], reverse=True) + sorted(lrs[epochs // 2 :], reverse=True)
    assert lrs[epochs // 2] == lrs[0]
    assert int(final["network_weights"]["_extra_state"]) == 2
    assert final["init_args"]["stage1"]["epochs"] == epochs // 2
    assert not (folder / "checkpoint_latest.pth").exists()
    for name in (STAGE1_BEST, "checkpoint_best.pth"):
        torch.load(folder / name, weights_only=False)
    assert (folder / "progress.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert (folder / "validation" / "summary.json").is_file()


@pytest.mark.end_to_end
@pytest.mark.usefixtures("preprocessed")
def test_killed_trainings_end_as_if_nothing_had_been(nnunet_environment: dict[str, str], tmp_path: Path) -> None:
    kill_and_resume([signal.SIGTERM, signal.SIGKILL], nnunet_environment, tmp_path, seed=0)
    assert_whole(tmp_path)


@pytest.mark.long
@pytest.mark.usefixtures("preprocessed")
@pytest.mark.parametrize("training", range(10))
def test_hundred_kills(nnunet_environment: dict[str, str], tmp_path: Path, training: int) -> None:
    """SIGKILL and SIGTERM at 100 random moments over ten trainings, so that all are hit, the switch included."""
    signals = np.random.default_rng(training).permutation([signal.SIGKILL, signal.SIGTERM] * 5)
    printed = kill_and_resume(
        [signal.Signals(number) for number in signals],
        nnunet_environment,
        tmp_path,
        seed=training,
        trainer="nnUNetTrainerKilledOften",
        start=Forked,
    )
    assert_whole(tmp_path, epochs=20)
    lost = [before - after + 1 for before, after in pairwise(begun(printed)) if after <= before]
    stopped = sum("SIGTERM: " in line for line in printed)
    switches = sum("Stage 2 starts from epoch" in line for line in printed)
    print(f"10 signals, {stopped} told of by the log; epochs begun again: {lost}; switches to stage 2: {switches}")
    assert max(lost, default=0) <= 2, "checkpoint_latest.pth is written after every epoch here"


def test_killed_between_latest_and_best(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net writes checkpoint_latest.pth first: on resume the epoch is still known to be the best one."""

    class Killed(BaseException):
        pass

    save = nnUNetTrainerSeeded.save_checkpoint

    def die_at_best(self, filename: str) -> None:
        if filename.endswith("checkpoint_best.pth"):
            raise Killed
        save(self, filename)

    trainer = make_trainer(nnUNetTrainerSeeded)
    monkeypatch.setattr(nnUNetTrainerSeeded, "save_checkpoint", die_at_best)
    with pytest.raises(Killed):
        trainer.run_training()
    monkeypatch.setattr(nnUNetTrainerSeeded, "save_checkpoint", save)
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    assert not latest.with_name(STAGE1_BEST).exists()
    resumed = make_trainer(nnUNetTrainerSeeded)
    resumed.load_checkpoint(str(latest))
    resumed.on_train_start()
    best = torch.load(latest.with_name(STAGE1_BEST), weights_only=False)
    assert best["current_epoch"] == 1
    assert tensors_equal(best["network_weights"], torch.load(latest, weights_only=False)["network_weights"])


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


def test_replacing_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content reaches the disk before the name does: a power cut cannot leave an empty file under it."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(("rename", b)) or replace(a, b))
    source, target = tmp_path / "a.partial", tmp_path / "a"
    source.write_text("new")
    target.write_text("old")
    replace_durably(str(source), str(target))
    assert target.read_text() == "new"
    assert calls == [("sync", str(source)), ("rename", str(target)), ("sync", str(tmp_path))]


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
