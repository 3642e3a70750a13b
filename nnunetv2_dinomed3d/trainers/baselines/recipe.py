"""The recipe of a training: optimiser, learning rate and its schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn


class WarmupCosineScheduler:
    """A learning rate that rises linearly over the first epochs, then falls to 0 along a cosine.

    Args:
        optimizer: whose learning rate is set.
        lr: the highest.
        warmup: epochs before it is reached.
        epochs: of the training.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float, warmup: int, epochs: int) -> None:
        self.optimizer, self.lr, self.warmup, self.epochs = optimizer, lr, warmup, epochs
        self.step(0)

    def lr_of(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1) / (self.warmup + 1)
        done = (epoch - self.warmup) / max(1, self.epochs - self.warmup)
        return self.lr * (1 + math.cos(math.pi * min(done, 1))) / 2

    def step(self, epoch: int) -> None:
        """Set the learning rate of the epoch that begins."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_of(epoch)


@dataclass(frozen=True)
class Recipe:
    """Optimiser and schedule, as a paper's official code has them.

    Attributes:
        optimizer: SGD is nnU-Net's, with Nesterov momentum 0.99.
        lr: initial, or after the warm-up.
        weight_decay: of all parameters.
        schedule: nnU-Net's poly, or a cosine after a warm-up.
        warmup: share of the epochs, for the cosine; at least one epoch.
    """

    optimizer: Literal["SGD", "AdamW"] = "SGD"
    lr: float = 1e-2
    weight_decay: float = 3e-5
    schedule: Literal["poly", "cosine"] = "poly"
    warmup: float = 0.0

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        if self.optimizer == "SGD":
            return torch.optim.SGD(parameters, self.lr, 0.99, weight_decay=self.weight_decay, nesterov=True)
        return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)

    def make_scheduler(self, optimizer: torch.optim.Optimizer, epochs: int) -> PolyLRScheduler | WarmupCosineScheduler:
        """The schedule over the epochs of a training."""
        if self.schedule == "poly":
            return PolyLRScheduler(optimizer, self.lr, epochs)
        return WarmupCosineScheduler(optimizer, self.lr, self.warmup_epochs(epochs), epochs)

    def warmup_epochs(self, epochs: int) -> int:
        """Epochs of the warm-up."""
        return max(1, round(self.warmup * epochs)) if self.schedule == "cosine" else 0

    def describe(self, epochs: int) -> str:
        """The recipe in words, for the log."""
        momentum = " with Nesterov momentum 0.99" if self.optimizer == "SGD" else ""
        warmup = self.warmup_epochs(epochs)
        schedule = "poly schedule" if self.schedule == "poly" else f"{warmup} epoch(s) of warm-up, then a cosine"
        return (
            f"{self.optimizer}{momentum}, learning rate {self.lr:g}, weight decay {self.weight_decay:g}, {schedule}, "
            f"{epochs} epochs"
        )
