"""Learning rates within a stage (DINO-Med3D, section 3.2; the released code's alternative)."""

from collections.abc import Callable, Sequence

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from nnunetv2_dinomed3d.trainers.dinomed3d.schedule import Recipe


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
