"""SIGTERM, SIGINT, SIGHUP and SIGUSR1 in every phase of a training: saved, exit code 75, and --c goes on."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_dinomed3d.processes import PREEMPTED, STOP_SIGNALS
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.trainers.harness.preemption import Preempted, Preemption
from tests.processes import await_end_of_session, session
from tests.trainers.quick_trainers import nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]
EPOCHS = 4
NAMES = [number.name for number in STOP_SIGNALS]


class Signalled(nnUNetTrainerSeeded):
    """Gets a signal as one of its hooks begins in an epoch, and another one while it saves."""

    at: tuple[str, int] = ("", 0)
    number = signal.SIGTERM
    seen: tuple[str, ...] = ()

    def _at(self, hook: str) -> None:
        if (hook, self.current_epoch) == self.at:
            self.at = ("", 0)
            os.kill(os.getpid(), self.number)

    def save_checkpoint(self, filename: str) -> None:
        if self.preemption.signal:
            os.kill(os.getpid(), signal.SIGINT)
        self.seen = (*self.seen, Path(filename).name)
        self._at(Path(filename).name)
        super().save_checkpoint(filename)


for name in (
    "initialize", "get_dataloaders", "on_train_start", "on_epoch_start", "on_train_epoch_start", "train_step",
    "on_train_epoch_end", "on_validation_epoch_start", "validation_step", "on_validation_epoch_end", "on_epoch_end",
    "on_train_end",
):  # fmt: skip

    def hook(self: Signalled, *args: object, name: str = name) -> object:
        self._at(name)
        return getattr(super(Signalled, self), name)(*args)

    setattr(Signalled, name, hook)


def log_of(trainer: nnUNetTrainerDINOMed3D) -> str:
    return "".join(path.read_text() for path in Path(trainer.output_folder).glob("training_log_*.txt"))


def run_until_signal(trainer: Signalled, at: tuple[str, int], number: signal.Signals = signal.SIGTERM) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    trainer.at, trainer.number = at, number
    with pytest.raises(SystemExit) as caught:
        trainer.run_training()
    assert trainer.at == ("", 0), "the hook was not reached"
    assert caught.value.code == PREEMPTED == 75
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before
    (line,) = [line for line in log_of(trainer).splitlines() if number.name in line]
    assert ": ".join((number.name, "")) in line


def resume(make_trainer: MakeTrainer) -> nnUNetTrainerDINOMed3D:
    resumed = make_trainer(Signalled)
    folder = Path(resumed.output_folder)
    names = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    checkpoint = next((folder / name for name in names if (folder / name).exists()), None)  # as nnU-Net looks for them
    if checkpoint:
        resumed.load_checkpoint(str(checkpoint))
    return resumed


PHASES = {
    "train_step": (1, 0, 2),
    "validation_step": (3, 1),
    "on_epoch_start": (2, 1),  # 2 is the switch
    "on_train_epoch_start": (0,),
    "get_dataloaders": (2,),
    "on_train_epoch_end": (1,),
    "on_validation_epoch_start": (0,),
    "on_validation_epoch_end": (3,),
    "on_epoch_end": (1, 0, 3),
    "checkpoint_latest.pth": (2, 0),
    "checkpoint_best.pth": (1,),
}
"""Hooks, and the epochs in which they are tried; those after the first take long."""


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("hook", "epoch"),
    [
        pytest.param(hook, epoch, marks=[] if epoch == epochs[0] else pytest.mark.long)
        for hook, epochs in PHASES.items()
        for epoch in epochs
    ],
)
def test_in_the_loop(make_trainer: MakeTrainer, hook: str, epoch: int) -> None:
    """No step is lost, and no epoch."""
    number = STOP_SIGNALS[(len(hook) + epoch) % len(STOP_SIGNALS)]
    stopped = make_trainer(Signalled)
    run_until_signal(stopped, (hook, epoch), number)
    over = stopped.current_epoch == EPOCHS
    assert stopped.seen[-1] == ("checkpoint_final.pth" if over else "checkpoint_latest.pth")
    assert not list(Path(stopped.output_folder).glob("*.partial"))
    resumed = resume(make_trainer)
    assert resumed.current_epoch == stopped.current_epoch >= epoch
    assert resumed.stage == stopped.stage
    for name, tensor in stopped.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    resumed.run_training()
    assert resumed.current_epoch == EPOCHS
    assert {len(values) for values in resumed.logger.get_checkpoint().values()} == {EPOCHS}


@pytest.mark.parametrize("hook", ["on_train_end", "checkpoint_final.pth"])
def test_at_the_end_of_the_last_epoch(make_trainer: MakeTrainer, hook: str) -> None:
    stopped = make_trainer(Signalled)
    run_until_signal(stopped, (hook, EPOCHS if hook == "on_train_end" else EPOCHS - 1))
    folder = Path(stopped.output_folder)
    assert torch.load(folder / "checkpoint_final.pth", weights_only=False)["current_epoch"] == EPOCHS
    assert not (folder / "checkpoint_latest.pth").exists()
    assert "Resume with --c to validate" in log_of(stopped)


@pytest.mark.parametrize("hook", ["initialize", "on_train_start", "get_dataloaders", "on_epoch_start"])
def test_before_the_first_epoch(make_trainer: MakeTrainer, hook: str) -> None:
    """Nothing is there to be saved; the same command is the thing to do, which 75 says."""
    stopped = make_trainer(Signalled)
    stopped.at, stopped.number = (hook, 0), signal.SIGUSR1
    with pytest.raises(SystemExit) as caught:
        stopped.run_training()
    assert caught.value.code == PREEMPTED
    assert stopped.seen == ()
    again = make_trainer(Signalled)
    again.run_training()
    assert again.current_epoch == EPOCHS


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=NAMES)
def test_in_the_final_validation(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It is broken off where it is, and leaves no summary that `dinomed3d compare` would believe."""
    trainer = make_trainer(nnUNetTrainerSeeded)
    trainer.initialize()
    summary = Path(trainer.output_folder) / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)

    def validate(self: nnUNetTrainer, *rest: object) -> None:
        assert not summary.exists(), "of an earlier validation"
        summary.write_text("{half")
        os.kill(os.getpid(), number)
        pytest.fail("it went on")

    summary.write_text("{}")
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", validate)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        trainer.perform_actual_validation()
    assert caught.value.code == PREEMPTED
    assert signal.getsignal(number) == before
    assert not summary.exists()
    assert f"{number.name}: validation interrupted" in log_of(trainer)


def test_an_ignored_signal_stays_ignored() -> None:
    """nohup ignores SIGHUP for what it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        preemption = Preemption()
        with preemption.listening():
            preemption.allow(True)
            signal.raise_signal(signal.SIGHUP)
            assert preemption.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_break_off_the_cleaning_up() -> None:
    preemption, cleaned = Preemption(), False
    with preemption.listening():
        preemption.allow(True)
        try:
            signal.raise_signal(signal.SIGTERM)
        except Preempted:
            signal.raise_signal(signal.SIGINT)
            cleaned = True
        with preemption.put_off():
            signal.raise_signal(signal.SIGTERM)
        assert preemption.signal == signal.SIGTERM
    assert cleaned


def test_a_signal_put_off_comes_later() -> None:
    preemption, whole = Preemption(), False

    def write() -> None:
        nonlocal whole
        with preemption.put_off():
            signal.raise_signal(signal.SIGUSR1)
            whole = True

    with preemption.listening():
        preemption.allow(True)
        with pytest.raises(Preempted):
            write()
    assert whole


def test_in_a_thread_signals_are_left_alone(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(nnUNetTrainerSeeded)
    thread = threading.Thread(target=trainer.run_training)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert trainer.current_epoch == EPOCHS


@pytest.mark.end_to_end
@pytest.mark.usefixtures("preprocessed")
def test_the_commands_processes(nnunet_environment: dict[str, str], tmp_path: Path) -> None:
    """nnU-Net's command with loader workers, its group signalled as clusters and terminals do it: waiting for a batch,
    and in the final validation; and its main process alone killed. No process is left, no traceback, nothing lost.
    """
    settings = {"nnUNet_results": str(tmp_path), "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "2"}
    command = ["nnUNetv2_train", "901", "3d_fullres", "0", "-tr", "nnUNetTrainerStarved", "-device", "cpu"]

    def train_until(word: str, stop: Callable[[int], object], *flags: str) -> tuple[int, str]:
        process = subprocess.Popen(
            [*command, *flags],
            env={**os.environ, **nnunet_environment, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        printed = ""
        for line in process.stdout:
            printed += line
            if word in line:
                assert len(session(process.pid)) > 1, "no worker"
                stop(process.pid)
                break
        printed += process.communicate(timeout=300)[0]
        await_end_of_session(process.pid)
        return process.returncode, printed

    code, printed = train_until("starved", lambda leader: os.killpg(leader, signal.SIGTERM))
    assert code == PREEMPTED, printed
    assert "SIGTERM: epoch 1 was interrupted, its state is saved" in printed
    assert "Traceback" not in printed
    code, printed = train_until("Epoch 2", lambda leader: os.kill(leader, signal.SIGKILL), "--c")
    assert code == -signal.SIGKILL, printed
    assert "Epoch 1" in printed
    code, printed = train_until("predicting case", lambda leader: os.killpg(leader, signal.SIGUSR1), "--c")
    assert code == PREEMPTED, printed
    assert "SIGUSR1: validation interrupted" in printed
    assert "Traceback" not in printed
    code, printed = train_until("no such line", os.getpgid, "--c")
    assert code == 0, printed
    assert "Mean Validation Dice" in printed
    assert len(list(tmp_path.rglob("summary.json"))) == 1
