"""What a long training needs beyond nnU-Net's: checkpoints that a kill cannot spoil, preemption, numbers gone bad."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import dirname, isfile, join
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_

PREEMPTED = 75
"""Exit code after SIGTERM: sysexits' EX_TEMPFAIL, try again (with ``--c``)."""

LATEST = "checkpoint_latest.pth"


def replace_durably(source: str, target: str) -> None:
    """Rename a file over another, with its content on the disk before the name is."""
    for path, flags in ((source, os.O_RDWR), (None, os.O_RDONLY)):
        if path is None:
            os.replace(source, target)
            path = dirname(target) or "."
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_own_checkpoint(filename: str) -> dict[str, Any]:
    """One of nnU-Net's checkpoints, unpickled as nnU-Net does; tensors stay on the disk until they are used.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return torch.load(filename, map_location="cpu", mmap=True, weights_only=False)
    except Exception as error:  # PyTorch complains of damaged files with almost any class
        folder = Path(filename).parent
        others = sorted(path.name for path in folder.glob("checkpoint_*.pth") if path != Path(filename))
        raise ValueError(
            f"{filename} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}). It was left as it is. "
            f"Other checkpoints beside it: {', '.join(others) or 'none'}. To go on from one of them, move the damaged "
            f"file away and copy the other to {LATEST}."
        ) from error


class RobustTrainer(nnUNetTrainer):
    """nnU-Net's trainer, safe against kills, preemption and non-finite gradients.

    Attributes:
        latest_every: epochs between two ``checkpoint_latest.pth``.
        gradient_clip: largest norm of the gradients in a step.
        max_skipped: skipped steps in a row that end the training.
    """

    latest_every: int = 5
    gradient_clip: float = 1.0
    max_skipped: int = 10

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            raise OSError(
                f"The folder of results cannot be written ({error}). nnUNet_results is "
                f"{os.environ.get('nnUNet_results')!r}: set it to a folder of your own."
            ) from error
        self.save_every = self.latest_every
        self._terminated = False
        self._step_was_skipped = False
        self._skipped_in_a_row = self._skipped_in_epoch = 0
        self._last_cases: deque[list[str]] = deque(maxlen=self.max_skipped)

    # ---- checkpoints ----

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, into a temporary file that is then renamed: a kill leaves the last good one."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        partial = f"{filename}.partial"
        try:
            super().save_checkpoint(partial)
            replace_durably(partial, filename)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                os.remove(partial)
            kept = "The one that was there before is unharmed. " if isfile(filename) else ""
            raise RuntimeError(
                f"{filename} could not be written ({error}). {kept}Is the disk full? Make room, then go on with --c."
            ) from error

    # ---- preemption ----

    def run_training(self) -> None:
        """nnU-Net's. On SIGTERM the iteration is finished, a checkpoint saved, and the exit code is `PREEMPTED`."""
        with self._listening_to_sigterm():
            super().run_training()

    @contextmanager
    def _listening_to_sigterm(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # where Python has no signals
            yield
            return
        owner = os.getpid()

        def terminate(number: int, frame: object) -> None:
            if os.getpid() == owner:
                self._terminated = True
            else:  # a loader's process, which inherited this
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stop_if_terminated(self) -> None:
        terminated = self._terminated
        if self.is_ddp:  # all ranks stop together
            flag = torch.tensor(float(terminated), device=self.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            terminated = bool(flag)
        if not terminated:
            return
        self.print_to_log_file(f"SIGTERM: epoch {self.current_epoch} is broken off and saved. --c begins it again.")
        self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
        self.save_checkpoint(join(self.output_folder, LATEST))
        raise SystemExit(PREEMPTED)

    # ---- steps ----

    def clip_or_skip(self, parameters: list[nn.Parameter]) -> None:
        """Before the optimiser's step: clip the gradients; drop them if they are not finite, which skips the step."""
        if not bool(clip_grad_norm_(parameters, self.gradient_clip).isfinite()):
            self._step_was_skipped = True
            for parameter in parameters:
                parameter.grad = None

    def train_step(self, batch: dict) -> dict:
        self._step_was_skipped = False
        scale = self.grad_scaler.get_scale() if self.grad_scaler is not None else 0.0
        output = super().train_step(batch)
        if self.grad_scaler is not None and self.grad_scaler.get_scale() < scale:
            self._step_was_skipped = True  # by the scaler
        self._count_step(batch)
        self._stop_if_terminated()
        return output

    def _count_step(self, batch: dict) -> None:
        self._last_cases.append([str(key) for key in batch.get("keys", [])])
        if not self._step_was_skipped:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_epoch += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.max_skipped:
            cases = sorted({case for keys in self._last_cases for case in keys})
            raise RuntimeError(
                f"{self._skipped_in_a_row} steps in a row had a loss or gradients that are not finite, and the "
                f"training stops; the last checkpoint is unharmed. The cases of these steps: {', '.join(cases)}. Look "
                "at their images (values out of range?) and labels; if they are sound, go on with --c, or lower the "
                "learning rate."
            )

    def validation_step(self, batch: dict) -> dict:
        output = super().validation_step(batch)
        self._stop_if_terminated()
        return output

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; the loss of skipped steps does not spoil the mean, and they are counted in the log."""
        losses = np.array([output["loss"] for output in train_outputs], dtype=np.float64)
        if np.isfinite(losses).any():
            mean = losses[np.isfinite(losses)].mean()
            known = np.where(np.isfinite(losses), losses, mean)
            train_outputs = [{**output, "loss": loss} for output, loss in zip(train_outputs, known, strict=True)]
        super().on_train_epoch_end(train_outputs)
        self.print_to_log_file(f"steps skipped because of non-finite gradients: {self._skipped_in_epoch}")
        self._skipped_in_epoch = 0
