"""Results of the training steps of the epoch in progress, so that a training stopped in its middle can go on there.

Validation is repeated: with the random states from before it, it draws the same.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Output = dict[str, Any]
"""Result of one of nnU-Net's steps: numbers and arrays by name."""


@dataclass
class EpochSteps:
    """The training steps of one epoch.

    Attributes:
        epoch: its number.
        train: what each step gave, in order.
        skipped: steps that were skipped because of non-finite gradients.
        random: the states of the random generators after the last step, see `randomness.random_states`.
    """

    epoch: int
    train: list[Output] = field(default_factory=list)
    skipped: int = 0
    random: dict[str, Any] | None = None

    def as_record(self) -> dict[str, Any]:
        """The same as plain numbers and tensors, for a checkpoint; without the random states."""
        return {"epoch": self.epoch, "train": [_to_tensors(output) for output in self.train], "skipped": self.skipped}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "EpochSteps":
        """The inverse of `as_record`."""
        return cls(record["epoch"], [_to_arrays(output) for output in record["train"]], record["skipped"])


def _to_tensors(output: Output) -> Output:
    return {
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else np.asarray(value).item()
        for name, value in output.items()
    }


def _to_arrays(output: Output) -> Output:
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in output.items()}
