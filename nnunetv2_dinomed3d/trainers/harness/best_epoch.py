"""The best epoch: the average that it is chosen by, and the checkpoint that holds it."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import read_verified
from nnunetv2_dinomed3d.trainers.harness.identity import ForeignCheckpointError, Identity, require_own


def updated_ema(past: Sequence[float], dice: float) -> float:
    """nnU-Net's exponential moving average of the Dice after an epoch with ``dice``.

    NaN is the Dice of validation batches that had nothing to score (no foreground, neither there nor predicted, or no
    annotation): it leaves the average as it was, where nnU-Net's would be NaN for the rest of the training.

    Args:
        past: averages of the epochs before.
        dice: of this epoch.
    """
    known = [average for average in past if not math.isnan(average)]
    if not known:
        return dice
    return known[-1] if math.isnan(dice) else 0.9 * known[-1] + 0.1 * dice


class BestEpoch:
    """The checkpoint of the best epoch so far.

    Args:
        path: of the file.
        identity: of the training.
        belongs: whether a checkpoint of this training is of the part of it that is trained now.
        remedy: how to go on without the file, where training needs it later; None where it is written anew.
    """

    def __init__(
        self,
        path: Path,
        identity: Identity,
        belongs: Callable[[Mapping[str, Any]], bool] = lambda checkpoint: True,
        remedy: str | None = None,
    ) -> None:
        self.path, self.identity, self.belongs, self.remedy = path, identity, belongs, remedy

    def read(self, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The checkpoint; None if none was saved.

        Args:
            record: of this training.

        Raises:
            ValueError: the file is damaged, or of another training.
        """
        if not self.path.is_file():
            return None
        checkpoint = read_verified(self.path, mmap=True)
        require_own(checkpoint, str(self.path), self.identity, record)
        return checkpoint if self.belongs(checkpoint) else None

    def require(self, record: Mapping[str, Any] | None) -> dict[str, Any]:
        """The checkpoint. Raises ValueError or FileNotFoundError, with the remedy."""
        try:
            checkpoint = self.read(record)
        except ValueError as error:
            raise ValueError(f"{error} {self.remedy}") from error
        if checkpoint is None:
            raise FileNotFoundError(self.remedy)
        return checkpoint

    def take_up(
        self, record: Mapping[str, Any] | None, *, was_saved: bool, warn: Callable[[str], None]
    ) -> tuple[dict[str, Any] | None, bool]:
        """On resume: the best epoch that was saved, and whether a file of another training is in its place.

        Args:
            record: of this training.
            was_saved: whether the checkpoint that is resumed from says that there was a best epoch.
            warn: takes a message.

        Raises:
            ValueError, FileNotFoundError: the file is needed later, and there is no sound one.
        """
        if self.remedy is not None:
            return (self.require(record) if was_saved else self._read_or_refuse(record)), False
        try:
            best = self.read(record)
        except ValueError as error:
            warn(f"{error} It is not needed to go on, and written anew.")
            best, is_foreign = None, isinstance(error, ForeignCheckpointError)
        else:
            is_foreign = False
        if best is None and was_saved:
            warn(f"{self.path} is written anew: there is no sound one.")
        return best, is_foreign

    def _read_or_refuse(self, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
        try:
            return self.read(record)
        except ValueError as error:
            raise ValueError(f"{error} {self.remedy}") from error
