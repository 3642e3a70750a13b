"""When which stage is trained, and with which learning rate (DINO-Med3D, training recipe)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau


@dataclass(frozen=True)
class Recipe:
    """How one stage is trained: its length in nnU-Net epochs and AdamW's initial learning rate."""

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

    def stage(self, epoch: int) -> int:
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


def moving_average(past: Sequence[float], dice: float) -> float:
    """nnU-Net's moving average of the Dice after an epoch with ``dice``.

    NaN is the Dice of validation batches that had nothing to score (no foreground, neither there nor predicted, or no
    annotation): it leaves the average as it was, where nnU-Net's would be NaN for the rest of the training.

    Args:
        past: averages of the stage's epochs before.
        dice: of this epoch.
    """
    known = [average for average in past if not math.isnan(average)]
    if not known:
        return dice
    return known[-1] if math.isnan(dice) else 0.9 * known[-1] + 0.1 * dice


class StagePolyLRScheduler(PolyLRScheduler):
    """nnU-Net's poly schedule over the epochs of one stage.

    Args:
        optimizer: of the stage.
        recipe: of the stage.
        first_epoch: epoch at which the stage begins; `step` takes epochs of the whole training.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, first_epoch: int) -> None:
        self.first_epoch = first_epoch
        super().__init__(optimizer, recipe.lr, recipe.epochs)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of epoch ``current_step``; without one (PyTorch's own call), of the next step."""
        super().step(None if current_step is None else current_step - self.first_epoch)


def plateau_lr(lr: float, metrics: Sequence[float], patience: int) -> float:
    """The learning rate that PyTorch's `ReduceLROnPlateau` has after these metrics of past epochs (more is better)."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr)
    scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=patience)
    for metric in metrics:
        scheduler.step(metric)
    return optimizer.param_groups[0]["lr"]


class PlateauLRScheduler:
    """Halves the learning rate when a metric has not risen for a while.

    Computed anew from the logged history in each epoch: nnU-Net's checkpoints hold no state of a scheduler.

    Args:
        optimizer: of the stage.
        lr: initial.
        patience: epochs without a rise that are put up with.
        history: gives the metric of each past epoch of the stage.
    """

    def __init__(self, optimizer: Optimizer, lr: float, patience: int, history: Callable[[], Sequence[float]]) -> None:
        self.optimizer, self.lr, self.patience, self.history = optimizer, lr, patience, history

    def current_lr(self) -> float:
        """The learning rate of the epoch that begins."""
        return plateau_lr(self.lr, self.history(), self.patience)

    def step(self, epoch: int) -> None:
        """Set the learning rate of the epoch that begins."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.current_lr()
