"""The folder of a training: one process owns it, files of another training are moved aside, and a failed start
leaves nothing.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from nnunetv2_dinomed3d.folder_lock import LOCK, FolderLock, lock_folder
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import remove_partials
from nnunetv2_dinomed3d.trainers.harness.identity import RECORD, write_record

LEFT = (
    RECORD,
    "checkpoint_*",
    "training_log_*.txt",
    "progress.png",
    "debug.json",
    "validation*",
    "network_architecture*",
    "wandb",
)
"""Files and folders that a training leaves in its folder."""

_OF_MODEL = ("plans.json", "dataset.json", "dataset_fingerprint.json")
"""Files that nnU-Net copies into the folder above."""


def move_aside(
    folder: Path, patterns: Collection[str], keep: Collection[str] = (), target: Path | None = None
) -> Path | None:
    """Move files and folders into ``previous_DATE_TIME`` in the same folder, dated when the newest was written.

    Args:
        folder: of a training.
        patterns: names to move.
        keep: names that stay.
        target: a folder from an earlier call to go on with.

    Returns:
        Where they are now; ``target`` if there were none.
    """
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.name not in keep})
    if not found:
        return target
    if target is None:
        target = _new_folder(folder, max(path.lstat().st_mtime for path in found))
    for path in found:
        os.rename(path, target / path.name)
    return target


def _new_folder(folder: Path, time: float) -> Path:
    name = f"previous_{datetime.fromtimestamp(time):%Y-%m-%d_%H-%M-%S}"
    target, count = folder / name, 1
    while target.exists():
        count += 1
        target = folder / f"{name}_{count}"
    target.mkdir()
    return target


class TrainingFolder:
    """A training folder in the hands of this process, from the start on.

    Args:
        path: made if it is not there, its lock taken, half-written files of dead writers removed.

    Raises:
        FolderInUseError: another process has it.
        OSError: it cannot be written.

    Attributes:
        claimed: whether what is in the folder is this training's.
        began: whether training began; before, a failure leaves no trace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: Path | None = None  # that this start began
        self.claimed = self.began = False
        self._pid = os.getpid()
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        self._lock: FolderLock | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._before = {file.name for file in path.iterdir()}
            self.hold()
            remove_partials(path)
        except BaseException:
            self.leave()
            raise

    def hold(self) -> None:
        """Take the lock, unless this training has it."""
        if self._lock is None:
            self._lock = lock_folder(self.path)

    def set_log(self, path: Path) -> None:
        """Say which text log this start began."""
        if path.name not in self._before:
            self._log = path

    def claim(self, record: dict[str, Any]) -> Path | None:
        """Make the folder this training's. Files of another one are moved aside.

        Args:
            record: of this training.

        Returns:
            Where the other one's files are now; None if there were none.
        """
        keep = {self._log.name} if self._log else set()
        self.claimed = True
        aside = move_aside(self.path, [RECORD], keep)
        write_record(self.path, record)  # first: a kill between leaves nothing that is taken for this training's
        return move_aside(self.path, LEFT, keep | {RECORD}, aside)

    def require(self) -> None:
        """The folder must still be ours. Raises FolderInUseError."""
        if self._lock is not None:
            self._lock.require()

    def leave(self) -> None:
        """Give the folder back; if training never began, without what this start made. Can be called again."""
        if os.getpid() != self._pid:  # a loader's process, which inherited this
            return
        if not self.began:
            self._remove_own()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if not self.began:
            self._remove_empty()

    def _remove_own(self) -> None:
        own = {self._log.name} if self._log else set()
        if self.claimed:
            own |= {RECORD, "debug.json"}
        with suppress(OSError):
            if self._lock is not None and {path.name for path in self.path.iterdir()} <= own | {LOCK}:
                for name in own:
                    (self.path / name).unlink(missing_ok=True)

    def _remove_empty(self) -> None:
        for folder in self._made:  # the innermost first
            with suppress(OSError):
                if folder == self.path.parent and {path.name for path in folder.iterdir()} <= set(_OF_MODEL):
                    for name in _OF_MODEL:
                        (folder / name).unlink(missing_ok=True)
                folder.rmdir()
