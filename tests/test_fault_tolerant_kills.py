"""Trainings that are killed or asked to stop, at random moments and at the worst one, and go on."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import run_training_entry

from nnunetv2_dinomed3d.processes import PREEMPTED
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST
from nnunetv2_dinomed3d.trainers.dinomed3d.trainer import nnUNetTrainerDINOMed3D
from nnunetv2_dinomed3d.weights.archive import require_sound_archive
from tests.processes import await_end_of_session
from tests.trainers.quick_trainers import nnUNetTrainerSeeded

pytestmark = pytest.mark.own

MakeTrainer = Callable[..., nnUNetTrainerDINOMed3D]
EPOCHS = 8  # of nnUNetTrainerKilled
EPOCH = re.compile(r": Epoch (\d+)$")


def tensors_equal(a: dict, b: dict) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


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
