"""Checkpoints as files: written so that a kill or a power cut leaves the last good one, verified when they are read."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import dirname
from pathlib import Path
from typing import Any

import torch

from nnunetv2_dinomed3d.weights.archive import require_sound_archive

LATEST = "checkpoint_latest.pth"
FINAL = "checkpoint_final.pth"
PARTIAL = ".partial"
"""Ending of a file that is being written."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_PROBE = 1 << 20
"""Bytes that are written to find out why writing failed."""


def replace_durably(source: str, target: str) -> None:
    """Rename a file over another, with its content on the disk before the name is.

    Where a folder cannot be synchronised (some network mounts, Windows), only the content is: the file is there.

    Raises:
        OSError: the content could not be written, or the file not be renamed.
    """
    _synchronise(source, os.O_RDWR)
    os.replace(source, target)
    with suppress(OSError):
        _synchronise(dirname(target) or ".", os.O_RDONLY)


def _synchronise(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: str) -> None:
    """Write a small text file as a whole, in place of what was there. Raises OSError."""
    partial = f"{path}{PARTIAL}"
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(content)
        replace_durably(partial, str(path))
    except OSError:
        with suppress(OSError):
            os.remove(partial)
        raise


def remove_partials(folder: Path) -> None:
    """Remove what writers that were killed left half-written. Only for the one to whom the folder belongs."""
    for pattern in (f"checkpoint_*.pth{PARTIAL}", f"*.json{PARTIAL}"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


def why_not_written(error: BaseException, partial: str) -> str:
    """Advice about a file that could not be written: one or two sentences.

    Args:
        error: that writing raised. PyTorch's tells no reason; then one is looked for.
        partial: the file that was being written.
    """
    number = error.errno if isinstance(error, OSError) else _probe(partial)
    if number in _NO_ROOM:
        return "Is the disk full? Make room, then go on with --c."
    if number in _GONE:
        return f"Its folder is gone: was {dirname(partial)} removed, or is its disk no longer mounted?"
    if number in _NOT_ALLOWED:
        return "This user may not write there: change the permissions, then go on with --c."
    return "Look at the disk, then go on with --c."


def _probe(partial: str) -> int | None:
    """The errno of writing a little more; None where that works."""
    try:
        with open(partial, "ab") as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


# ---- reading ----


def read_own_checkpoint(filename: str, mmap: bool = False) -> dict[str, Any]:
    """One of nnU-Net's checkpoints, compared with its own checksums, then unpickled as nnU-Net does, on the CPU.

    Args:
        filename: of the checkpoint.
        mmap: leave tensors on the disk until they are used.

    Raises:
        ValueError: the file is missing or damaged; the message names the newest sound one beside it.
    """
    path = Path(filename)
    try:
        return read_verified(path, mmap)
    except ValueError as error:
        raise ValueError(f"{error} It was left as it is. {_how_to_go_on(path)}") from error


def read_verified(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The same as `read_own_checkpoint`, without the advice."""
    require_sound_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=mmap, weights_only=False)
    except Exception as error:  # PyTorch complains of damaged files with almost any class
        first = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {first}).") from error
    needed = {"network_weights", "init_args", "current_epoch", "logging"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of a training.")
    return checkpoint


def newest_sound(folder: Path, but: str) -> tuple[str, int] | None:
    """Name and epochs of the checkpoint that got farthest of those that can be read; None if none can.

    Args:
        folder: of a training.
        but: name of one that does not count.
    """
    found = []
    for path in folder.glob("checkpoint_*.pth"):
        with suppress(ValueError):
            if path.name != but:
                found.append((int(read_verified(path, mmap=True)["current_epoch"]), path.stat().st_mtime, path.name))
    return (max(found)[2], max(found)[0]) if found else None


def _how_to_go_on(path: Path) -> str:
    newest = newest_sound(path.parent, path.name)
    if newest is None:
        return "There is no sound checkpoint beside it: train from the beginning (without --c)."
    name, epochs = newest
    steps = f"mv {path.name} {path.name}.damaged"
    if name not in (FINAL, LATEST):  # which --c takes, the final one first
        steps += f"; cp {name} {LATEST}"
    return (
        f"The newest sound checkpoint beside it is {name}, after {epochs} epochs. To go on from it, in that folder: "
        f"{steps}; then train with --c."
    )


@contextmanager
def instead_of_reading(checkpoint: dict[str, Any]) -> Iterator[None]:
    """While open, ``torch.load`` gives this: nnU-Net reads a file where ours has been read and verified."""
    load = torch.load
    torch.load = lambda *_, **__: checkpoint
    try:
        yield
    finally:
        torch.load = load
