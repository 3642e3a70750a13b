"""Two stages in one training: the schedule, the switch, the best epoch of each (DINO-Med3D, section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from os.path import basename, dirname, join
from pathlib import Path
from typing import Any, cast

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed as dist
from torch import nn

from nnunetv2_dinomed3d.network_architecture import DINOMed3D
from nnunetv2_dinomed3d.network_architecture.state_dict import Stage, stage_of
from nnunetv2_dinomed3d.trainers.dinomed3d.best_epoch import STAGE1_BEST, best_epoch_of_stage
from nnunetv2_dinomed3d.trainers.dinomed3d.lr_schedulers import PlateauLRScheduler, StagePolyLRScheduler
from nnunetv2_dinomed3d.trainers.dinomed3d.progress_plot import StagedLogger
from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Recipe, Schedule
from nnunetv2_dinomed3d.trainers.harness.best_epoch import BestEpoch
from nnunetv2_dinomed3d.trainers.harness.loader_workers import stop_workers
from nnunetv2_dinomed3d.trainers.harness.trainer import BEST, HarnessTrainer
from nnunetv2_dinomed3d.weights.stage1 import stage1_setting


class StagedTrainer(HarnessTrainer):
    """A training of two stages, on one count of epochs.

    A stage is set up by `begin_stage`: optimiser, loss and wrappers are built once for each.

    Attributes:
        stages: those that are trained.
        stage1_epochs, stage2_epochs: their lengths.
        stage1_lr, stage2_lr: AdamW's initial learning rates.
        adamw_weight_decay: of both stages.
        ce_weight, dice_weight: of both stages' loss.
        stage: 1 or 2, the one that is trained now.
        schedule: length and learning rate of both stages in this training.
    """

    stages: tuple[Stage, ...] = (1, 2)
    stage1_epochs: int = 50
    stage2_epochs: int = 50
    stage1_lr: float = 1e-5
    stage2_lr: float = 1e-4
    adamw_weight_decay: float = 0.01
    ce_weight: float = 0.2
    dice_weight: float = 0.8

    oversample_foreground_percent: float  # nnU-Net's, which ships no types

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        schedule = Schedule(Recipe(self.stage1_epochs, self.stage1_lr), Recipe(self.stage2_epochs, self.stage2_lr))
        for stage in {1, 2} - set(self.stages):
            schedule = schedule.without(stage)
        self._own_schedule = self.schedule = schedule
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._set_schedule(schedule)
        self.weight_decay = self.adamw_weight_decay
        self._stage_of_checkpoint: Stage | None = None
        self.stage: Stage = 2 if 2 in self.stages else 1  # until the first one begins

    def _set_schedule(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.num_epochs = schedule.epochs

    @property
    def module(self) -> DINOMed3D:
        """The network without the wrappers of DDP and torch.compile."""
        return cast(DINOMed3D, super().module)

    def initialize(self) -> None:
        """nnU-Net's, for the stage that is trained first: it builds optimiser and loss of this one only."""
        self._oversample_foreground_percent = self.oversample_foreground_percent
        if self._stage_of_checkpoint is None and stage1_setting() and self.stages == (1, 2):
            self._set_schedule(self.schedule.without(1))
        self._aim_at(self._stage_of_checkpoint or self.schedule.stage(self.current_epoch))
        super().initialize()
        if self.module.stage != self.stage:  # a configure_optimizers of a user's own entered none
            self.begin_stage(self.stage)

    # ---- stages ----

    def begin_stage(self, stage: Stage) -> None:
        """Set up a stage, but its loaders: mode, batch, optimiser, wrappers, loss."""
        self._aim_at(stage)
        module = self.module
        self.apply_stage_mode()
        self._set_batch_size_and_oversample()
        # wrapped anew: torch.compile and DDP fix at wrapping time what is computed and which gradients are reduced
        self.network = cast(nn.Module, torch.compile(module)) if self._do_i_compile() else module
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.is_ddp:
            self.network = self._wrap_for_ddp(self.network)
        self.loss = self._build_loss()

    def _aim_at(self, stage: Stage) -> None:
        self.stage = stage
        self.initial_lr = self.schedule.recipe(stage).lr

    def apply_stage_mode(self) -> None:
        """Bring the network into the mode that the stage trains it in."""
        self.module.set_stage(self.stage)

    def configuration_of_stage(self) -> ConfigurationManager:
        """The plans' configuration as the current stage sees it."""
        return self.configuration_manager

    @contextmanager
    def stage_configuration(self) -> Iterator[ConfigurationManager]:
        """While open, `configuration_manager` describes the batches of the current stage."""
        plans_configuration = self.configuration_manager
        self.configuration_manager = self.configuration_of_stage()
        try:
            yield self.configuration_manager
        finally:
            self.configuration_manager = plans_configuration

    def _set_batch_size_and_oversample(self) -> None:
        # with several GPUs nnU-Net replaces the percentage by this rank's share of it
        self.oversample_foreground_percent = self._oversample_foreground_percent
        with self.stage_configuration():
            super()._set_batch_size_and_oversample()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, StagePolyLRScheduler | PlateauLRScheduler]:
        """AdamW over the parameters that the stage trains."""
        self.apply_stage_mode()
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.initial_lr, weight_decay=self.weight_decay)
        recipe, first_epoch = self.schedule.recipe(self.stage), self.schedule.first_epoch(self.stage)
        return optimizer, StagePolyLRScheduler(optimizer, recipe, first_epoch)

    def _build_loss(self) -> nn.Module:
        with self.stage_configuration():
            loss = super()._build_loss()
        loss.weight_ce, loss.weight_dice = self.ce_weight, self.dice_weight
        return loss

    # ---- epochs ----

    def record_stage1(self, record: dict[str, Any] | None) -> None:
        """Say in the checkpoints, under ``init_args``, what stage 2 started from."""
        self.my_init_kwargs = {**self.my_init_kwargs, "stage1": record}

    def check_resumed(self) -> None:
        self.schedule.require_same(self._own_schedule, self.my_init_kwargs.get("stage1") or {}, type(self).__name__)

    def before_epoch(self) -> None:
        if self.schedule.stage(self.current_epoch) != self.stage:
            self._switch_to_stage2()

    def _switch_to_stage2(self) -> None:
        self.network.zero_grad(set_to_none=True)  # of what stage 2 freezes: memory, and nnU-Net clips by all gradients
        stop_workers(self.dataloader_train)
        stop_workers(self.dataloader_val)
        self._load_best_of_stage1()
        self.module.end_stage1()
        self._best_ema = None
        self.begin_stage(2)
        self.tell_start()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()

    def _load_best_of_stage1(self) -> None:
        if self.disable_checkpointing:
            self.print_to_log_file("Checkpointing is disabled: stage 2 starts from the last epoch of stage 1.")
            self.record_stage1({"epochs": self.current_epoch, "best_epoch": self.current_epoch - 1})
            return
        if self.is_ddp:
            dist.barrier()  # rank 0 wrote the file
        checkpoint = self.best_epoch().require(self._training)
        self.module.load_state_dict(checkpoint["network_weights"])
        best_epoch = checkpoint["current_epoch"] - 1
        self.record_stage1({"epochs": self.current_epoch, "best_epoch": best_epoch})
        self.print_to_log_file(f"Stage 2 starts from epoch {best_epoch}, the best of stage 1.")

    def ends_stage1(self) -> bool:
        """Whether this epoch is the last of stage 1, before stage 2."""
        return self.stage == 1 and self.schedule.stage(self.current_epoch + 1) == 2

    def on_epoch_end(self) -> None:
        """nnU-Net's; the last epoch of stage 1 is saved in any case."""
        self.save_every = 1 if self.ends_stage1() else self.save_latest_every
        super().on_epoch_end()

    def _first_epoch_of_part(self, epoch: int) -> int:
        return self.schedule.first_epoch(self.schedule.stage(epoch))

    def _make_numbers(self, verbose: bool) -> StagedLogger:
        return StagedLogger(verbose, lambda: self.schedule, self._warn)

    # ---- checkpoints ----

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's; the best epoch of stage 1 has a file of its own, so that ``checkpoint_best.pth`` is stage 2's."""
        name = basename(filename)
        super().save_checkpoint(join(dirname(filename), self._best_name() if name == BEST else name))

    def _best_name(self) -> str:
        return STAGE1_BEST if self.stage == 1 and self.schedule.stage2.epochs > 0 else BEST

    def best_epoch(self) -> BestEpoch:
        """The best epoch of the stage."""
        return best_epoch_of_stage(Path(self.output_folder, self._best_name()), self._identity, self.stage)

    def prepare_for_checkpoint(self, checkpoint: dict[str, Any], filename: str) -> None:
        """Enter the stage of the checkpoint: that of its last epoch, also where stage 2 is next."""
        state = checkpoint["network_weights"]
        stage = stage_of(state)
        if stage is None:
            raise ValueError(f"{filename} is no checkpoint of a DINO-Med3D training, but of another trainer's.")
        self._set_schedule(self._own_schedule.of_checkpoint(checkpoint))
        self._stage_of_checkpoint = stage
        super().prepare_for_checkpoint(checkpoint, filename)
        if stage != self.stage:
            self.begin_stage(stage)

    def _more_init_args(self) -> dict[str, Any]:
        epochs = [self.schedule.stage1.epochs, self.schedule.stage2.epochs]
        return {**super()._more_init_args(), "epochs": epochs, "stage1_lora": self.module.options.stage1_lora}
