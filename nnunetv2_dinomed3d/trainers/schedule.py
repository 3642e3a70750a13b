"""When which stage is trained, and with which learning rate (DINO-Med3D, training recipe)."""

from dataclasses import dataclass

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.optim import Optimizer


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
        return 1 if epoch < self.stage1.epochs else 2

    def first_epoch(self, stage: int) -> int:
        """First epoch of a stage."""
        return 0 if stage == 1 else self.stage1.epochs

    def recipe(self, stage: int) -> Recipe:
        """Recipe of a stage."""
        return self.stage1 if stage == 1 else self.stage2


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
