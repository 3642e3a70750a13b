"""Stages of a training: their order, lengths and initial learning rates (DINO-Med3D, section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nnunetv2_dinomed3d.network_architecture.state_dict import Stage


@dataclass(frozen=True)
class Recipe:
    """One stage's length in nnU-Net epochs and AdamW's initial learning rate."""

    epochs: int
    lr: float


@dataclass(frozen=True)
class Schedule:
    """Stage 1, then stage 2, on one count of epochs that starts at 0."""

    stage1: Recipe
    stage2: Recipe

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return self.stage1.epochs + self.stage2.epochs

    def stage(self, epoch: int) -> Stage:
        """Stage (1 or 2) that trains in ``epoch``."""
        return 1 if epoch < self.stage1.epochs or self.stage2.epochs == 0 else 2

    def first_epoch(self, stage: int) -> int:
        """First epoch of a stage."""
        return 0 if stage == 1 else self.stage1.epochs

    def recipe(self, stage: int) -> Recipe:
        """Recipe of a stage."""
        return self.stage1 if stage == 1 else self.stage2

    def without(self, stage: int) -> "Schedule":
        """The same with one stage left out."""
        recipe = replace(self.recipe(stage), epochs=0)
        return replace(self, stage1=recipe) if stage == 1 else replace(self, stage2=recipe)

    def with_stage1_ended(self, epochs: int) -> "Schedule":
        """The same number of epochs, of which stage 1 had the first ``epochs``; stage 2 gets the others."""
        return Schedule(replace(self.stage1, epochs=epochs), replace(self.stage2, epochs=self.epochs - epochs))

    def of_checkpoint(self, checkpoint: Mapping[str, Any]) -> "Schedule":
        """The schedule of the training that wrote a checkpoint: these learning rates, its lengths of the stages."""
        args = checkpoint["init_args"]
        epochs, record = args.get("epochs"), args.get("stage1")
        if epochs is not None:
            return Schedule(replace(self.stage1, epochs=epochs[0]), replace(self.stage2, epochs=epochs[1]))
        # of a version that did not say
        if not record:
            return self
        schedule = self.without(1) if "file" in record else self.with_stage1_ended(record["epochs"])
        trained = checkpoint["current_epoch"] - schedule.stage1.epochs
        return replace(schedule, stage2=replace(self.stage2, epochs=max(schedule.stage2.epochs, trained, 1)))

    def require_same(self, own: "Schedule", stage1: Mapping[str, Any], trainer: str) -> None:
        """Refuse to go on with other lengths of the stages than the training began with.

        Args:
            own: the trainer's schedule now.
            stage1: the checkpoint's record of stage 1; empty while it is trained.
            trainer: its name.

        Raises:
            ValueError: the lengths differ.
        """
        if "file" in stage1:
            own = own.without(1)
        ended_early = "epochs" in stage1 and self.epochs == own.epochs and self.stage1.epochs < own.stage1.epochs
        if self != own and not ended_early:
            raise ValueError(
                f"This training began with {self.stage1.epochs} + {self.stage2.epochs} epochs (stage 1 + stage 2), and "
                f"{trainer} now has {own.stage1.epochs} + {own.stage2.epochs}: the learning rate would jump. Set its "
                "stage1_epochs and stage2_epochs back to go on with --c, or train anew (without --c)."
            )
