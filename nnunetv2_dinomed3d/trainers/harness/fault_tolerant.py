"""Fault tolerance for nnU-Net's trainer: checkpoints that a kill cannot spoil, preemption, numbers gone bad."""

import os
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import isfile, join
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.file_path_utilities import get_output_folder
from torch import distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_

from nnunetv2_dinomed3d.processes import children_end_with_us
from nnunetv2_dinomed3d.settings import check_environment, seed_setting
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import LATEST, PARTIAL, replace_durably, why_not_written
from nnunetv2_dinomed3d.trainers.harness.epoch_steps import EpochSteps
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.preemption import Preempted, Preemption
from nnunetv2_dinomed3d.trainers.harness.randomness import random_states, restore_random_states
from nnunetv2_dinomed3d.trainers.harness.training_folder import TrainingFolder


class FaultTolerantTrainer(nnUNetTrainer):
    """nnU-Net's trainer, safe against kills, preemption and non-finite gradients.

    Attributes:
        save_latest_every: epochs between two ``checkpoint_latest.pth``.
        gradient_clip: largest norm of the gradients in a step.
        max_skipped: skipped steps in a row that end the training.
        preemption: the signals that ask to stop. Its handlers are there while `load_checkpoint`, `run_training` and
            `perform_actual_validation` run; those from before are put back after each.
    """

    save_latest_every: int = 5
    gradient_clip: float = 1.0
    max_skipped: int = 10

    # nnU-Net's, which ships no types
    my_init_kwargs: dict[str, Any]
    num_iterations_per_epoch: int
    dataloader_train: Iterator[dict] | None
    dataloader_val: Iterator[dict] | None
    optimizer: torch.optim.Optimizer
    network: nn.Module

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        check_environment()
        self._seed = seed_setting()
        self._folder: TrainingFolder | None = None
        self.preemption = Preemption()
        try:
            with self.starting():
                self._take_folder(plans, configuration, fold)
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            self._leave_folder()
            raise OSError(
                f"The folder of results cannot be written ({error}). nnUNet_results is "
                f"{os.environ.get('nnUNet_results')!r}: set it to a folder of your own."
            ) from error
        except BaseException:
            self._leave_folder()
            raise
        if self._folder is not None:
            self._folder.set_log(Path(self.log_file))
        if hasattr(self, "latest_every"):  # the name up to version 0.1, for one release
            self.save_latest_every = self.latest_every
        self.save_every = self.save_latest_every
        self._steps = EpochSteps(0)
        self._earlier: list[dict] = []  # what this epoch's steps from before a stop gave
        self._whole_epoch = 0
        self._resume: dict[str, Any] | None = None
        self._begun = False
        self._checked: torch.optim.Optimizer | None = None
        self._step_was_skipped = False
        self._skipped_in_a_row = self._skipped_in_epoch = 0
        self._last_cases: deque[list[str]] = deque(maxlen=self.max_skipped)

    # ---- the folder ----

    def _take_folder(self, plans: dict, configuration: str, fold: int | str) -> None:
        """Lock the folder for this process before nnU-Net writes into it. Rank 0 does so for all ranks."""
        if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
            return
        name = type(self).__name__
        path = get_output_folder(plans["dataset_name"], name, plans["plans_name"], configuration, fold)
        self._folder = TrainingFolder(Path(path))
        weakref.finalize(self, self._folder.leave)  # nnU-Net can fail where no hook is called

    def _leave_folder(self) -> None:
        if self._folder is not None:
            self._folder.leave()

    @contextmanager
    def _in_folder(self) -> Iterator[None]:
        """While open, the folder is this process's; an error gives it back."""
        if self._folder is None:
            yield
            return
        self._folder.hold()
        try:
            yield
        except BaseException:
            self._folder.leave()
            raise

    # ---- checkpoints ----

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, into a temporary file that is then renamed: a kill leaves the last good one.

        Under ``init_args`` the file also has what a training needs to go on as if it had not been stopped.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        if self._folder is not None:
            self._folder.require()
        partial = f"{filename}{PARTIAL}"
        init_args = self.my_init_kwargs
        self.my_init_kwargs = {**init_args, **self._more_init_args(), "resume": self._state_to_resume_from()}
        try:
            super().save_checkpoint(partial)
            replace_durably(partial, filename)
        except (OSError, RuntimeError) as error:
            reason = why_not_written(error, partial)
            with suppress(OSError):
                os.remove(partial)
            kept = "The one that was there before is unharmed. " if isfile(filename) else ""
            raise RuntimeError(f"{filename} could not be written ({error}). {kept}{reason}") from error
        finally:
            self.my_init_kwargs = init_args

    def _more_init_args(self) -> dict[str, Any]:
        """More about the training for its checkpoints, besides nnU-Net's own."""
        return {}

    def _state_to_resume_from(self) -> dict[str, Any]:
        if self._resume is not None:  # nothing was trained since
            return self._resume
        if self._steps.epoch == self.current_epoch + 1 and self._steps.random:  # nnU-Net saves this: it is broken off
            return {"random": self._steps.random, "steps": self._steps.as_record()}
        return {"random": random_states(self.device)}

    def _keep_state_to_resume_from(self) -> None:
        """After a checkpoint was loaded, keep the state that `_state_to_resume_from` put into it, if it did."""
        self._resume = self.my_init_kwargs.get("resume")
        self.my_init_kwargs = {name: value for name, value in self.my_init_kwargs.items() if name != "resume"}

    def _go_on(self) -> None:
        """Called as an epoch begins, before anything is drawn. The first epoch after a stop goes on where it was."""
        if self._steps.epoch != self.current_epoch:
            self._steps = EpochSteps(self.current_epoch)
        if self._resume is None:
            return
        steps = self._resume.get("steps")
        if steps and steps["epoch"] == self.current_epoch:
            self._steps = EpochSteps.from_record(steps)
            self._steps.random = self._resume["random"]
            self.print_to_log_file(f"Epoch {self.current_epoch} goes on after {len(self._steps.train)} steps.")
        self._skipped_in_epoch = self._steps.skipped
        restore_random_states(self._resume["random"], self.device, self.local_rank)
        self._resume = None

    # ---- preemption ----
    # A signal stops the start, the waiting for a loader and the final validation where it comes. A step, and what
    # follows an epoch, is finished first.

    def run_training(self) -> None:
        """nnU-Net's; SIGTERM, SIGINT, SIGHUP and SIGUSR1 end it with a checkpoint and the exit code `PREEMPTED`."""
        with self._in_folder(), self.preemption.listening(), children_end_with_us():
            try:
                self._begun = False
                self.preemption.allow(True)
                super().run_training()
                self._stop_if_preempted()
            except Preempted:
                self._save_and_stop()
            finally:
                for batches in (self.dataloader_train, self.dataloader_val):
                    stop_workers(batches, patience=2)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's; the signals end it with `PREEMPTED`. Only one that came to its end has a summary."""
        summary = Path(self.output_folder, "validation", "summary.json")
        with self.preemption.listening(), children_end_with_us():
            try:
                self.preemption.allow(True)
                if self.local_rank == 0:
                    summary.unlink(missing_ok=True)
                super().perform_actual_validation(save_probabilities)
                self.preemption.allow(False)
            except Preempted:
                if self.local_rank == 0:
                    summary.unlink(missing_ok=True)
                self.print_to_log_file(f"{self._signal_name()}: validation interrupted. Repeat it with --c or --val.")
                raise

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While open, before there is anything to save, a signal ends the process where it is."""
        with self.preemption.listening():
            try:
                self.preemption.allow(True)
                yield
                self.preemption.allow(False)
            except Preempted:
                print(f"{self._signal_name()}: stopped before the training. The same command starts again.")
                raise

    def _signal_name(self) -> str:
        return self.preemption.signal.name if self.preemption.signal else "A signal to another process"

    def _stop_if_preempted(self) -> None:
        preempted = bool(self.preemption.signal)
        if self.is_ddp:  # all ranks stop together
            flag = torch.tensor(float(preempted), device=self.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            preempted = bool(flag)
        if preempted:
            raise Preempted

    def _save_and_stop(self) -> None:
        self.preemption.allow(False)
        if not self._begun:
            done = "stopped before the first epoch. The same command starts the training again."
        elif self.current_epoch == self.num_epochs:
            done = "stopped after the last epoch, which is saved. Resume with --c to validate."
        else:
            self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
            self.save_checkpoint(join(self.output_folder, LATEST))
            self.current_epoch += 1
            done = f"epoch {self.current_epoch} was interrupted, its state is saved. Resume at this step with --c."
        self.print_to_log_file(f"{self._signal_name()}: {done}")
        if self.is_ddp and self._begun:
            dist.barrier()  # nnU-Net's launcher ends all ranks when one has ended
        raise Preempted

    def _wait_for_batch(self) -> None:
        """Until `_batch_has_come`, a signal stops the training where it comes; under DDP the ranks agree first."""
        self._begun = True
        self.preemption.allow(not self.is_ddp)

    def _batch_has_come(self) -> None:
        self.preemption.allow(False)

    def between_epochs(self) -> None:
        """A signal that came after the last step stops the training here; an epoch's start calls it before all else."""
        self._batch_has_come()
        self._stop_if_preempted()

    def before_epoch(self) -> None:
        """Before an epoch begins, at a place where no signal waits. Here: nothing."""

    def on_epoch_start(self) -> None:
        self.between_epochs()
        self._go_on()
        self.before_epoch()
        super().on_epoch_start()

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._wait_for_batch()

    def on_train_end(self) -> None:
        self._begun = True  # also where no epoch was left
        self._batch_has_come()
        super().on_train_end()

    # ---- steps ----

    def clip_or_skip(self, parameters: list[nn.Parameter]) -> None:
        """Before the optimiser's step: clip the gradients; drop them if they are not finite, which skips the step."""
        if not bool(clip_grad_norm_(parameters, self.gradient_clip).isfinite()):
            self._step_was_skipped = True
            for parameter in parameters:
                parameter.grad = None

    def _check_gradients(self) -> None:
        """See to it that the optimiser, whoever made it, asks `clip_or_skip` before each step."""
        if self._checked is self.optimizer:
            return
        self._checked = self.optimizer
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.optimizer.register_step_pre_hook(lambda *_: self.clip_or_skip(parameters))

    def train_step(self, batch: dict) -> dict:
        self._batch_has_come()
        self._check_gradients()
        self._step_was_skipped = False
        scale = self.grad_scaler.get_scale() if self.grad_scaler is not None else 0.0
        buffers = [(buffer, buffer.clone()) for buffer in self.network.buffers() if buffer.is_floating_point()]
        output = super().train_step(batch)
        if self.grad_scaler is not None and self.grad_scaler.get_scale() < scale:
            self._step_was_skipped = True  # by the scaler
        if self._step_was_skipped:
            for buffer, before in buffers:  # batch norm's averages have seen what was not finite
                buffer.copy_(before)
        self._count_step(batch)
        self._steps.train.append(output)
        self._steps.skipped = self._skipped_in_epoch
        self._steps.random = random_states(self.device)  # a signal can come while the next batch is drawn
        self._stop_if_preempted()
        self._wait_for_batch()
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
        self._batch_has_come()
        output = super().validation_step(batch)
        self._stop_if_preempted()
        self._wait_for_batch()
        return output

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; of an epoch that was broken off, what is left is trained."""
        super().on_train_epoch_start()
        self._earlier = list(self._steps.train)
        self._steps.random = random_states(self.device)
        self._whole_epoch = self.num_iterations_per_epoch
        self.num_iterations_per_epoch = max(0, self._whole_epoch - len(self._earlier))
        self._wait_for_batch()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; the loss of skipped steps does not spoil the mean, and they are counted in the log."""
        self._batch_has_come()
        self.num_iterations_per_epoch = self._whole_epoch
        train_outputs = self._earlier + train_outputs
        losses = np.array([output["loss"] for output in train_outputs], dtype=np.float64)
        if np.isfinite(losses).any():
            mean = losses[np.isfinite(losses)].mean()
            known = np.where(np.isfinite(losses), losses, mean)
            train_outputs = [{**output, "loss": loss} for output, loss in zip(train_outputs, known, strict=True)]
        super().on_train_epoch_end(train_outputs)
        self.print_to_log_file(f"steps skipped because of non-finite gradients: {self._skipped_in_epoch}")
        self._skipped_in_epoch = 0

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        self._batch_has_come()
        super().on_validation_epoch_end(val_outputs)
