"""Checkpoints as files: what reading notices, what it advises, what writing survives and says."""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_dinomed3d.trainers.harness import checkpoint_files
from nnunetv2_dinomed3d.trainers.harness.checkpoint_files import (
    read_own_checkpoint,
    remove_partials,
    replace_durably,
    why_not_written,
)

pytestmark = pytest.mark.own


def checkpoint(epoch: int) -> dict:
    return {
        "network_weights": {"_extra_state": torch.tensor(1), "weight": torch.arange(5000.0)},
        "init_args": {},
        "current_epoch": epoch,
        "logging": {},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """After epoch 10; the best was 7, stage 1's best 3."""
    for name, epoch in (("latest", 10), ("best", 7), ("best_stage1", 3)):
        torch.save(checkpoint(epoch), tmp_path / f"checkpoint_{name}.pth")
    return tmp_path


def flip(path: Path) -> None:
    """One bit of a tensor."""
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(5000.0).numpy().tobytes()) + 9999
    content[place] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.write_bytes(b""), Path.unlink])
@pytest.mark.parametrize("mmap", [False, True])
def test_damage_is_noticed_and_the_advice_works(folder: Path, damage: Callable[[Path], object], mmap: bool) -> None:
    latest = folder / "checkpoint_latest.pth"
    assert torch.equal(read_own_checkpoint(str(latest), mmap)["network_weights"]["weight"], torch.arange(5000.0))
    damage(latest)
    flip(folder / "checkpoint_best.pth")
    with pytest.raises(
        ValueError, match=r"checkpoint_latest\.pth .*newest sound.* checkpoint_best_stage1\.pth"
    ) as error:
        read_own_checkpoint(str(latest), mmap)
    message = str(error.value)
    assert "\n" not in message
    commands = message.split("in that folder: ")[1].split("; then train with --c")[0]
    assert commands == "mv checkpoint_latest.pth checkpoint_latest.pth.damaged; cp checkpoint_best_stage1.pth " + (
        "checkpoint_latest.pth"
    )
    shutil.copy(folder / "checkpoint_best_stage1.pth", latest)
    assert read_own_checkpoint(str(latest))["current_epoch"] == 3


def test_nothing_sound_is_left(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    torch.save(checkpoint(1), path)
    flip(path)
    with pytest.raises(ValueError, match="no sound checkpoint beside it: train from the beginning"):
        read_own_checkpoint(str(path))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}])
def test_what_is_no_checkpoint_of_ours(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="is no checkpoint of a"):
        read_own_checkpoint(str(tmp_path / "checkpoint_final.pth"))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_folders_that_cannot_be_synchronised(
    tmp_path: Path, number: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network mounts; and Windows, where a folder cannot even be opened. The file is there all the same."""
    original = getattr(os, call)

    def refuse(target: str | int, *rest: object, **more: object) -> object:
        if stat.S_ISDIR((os.fstat(target) if isinstance(target, int) else os.stat(target)).st_mode):
            raise OSError(number, os.strerror(number))
        return original(target, *rest, **more)

    (tmp_path / "a.partial").write_text("new")
    monkeypatch.setattr(os, call, refuse)
    replace_durably(str(tmp_path / "a.partial"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "new"


def test_replacing_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content reaches the disk before the name does: a power cut cannot leave an empty file under it."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("sync", os.readlink(f"/proc/self/fd/{fd}"))) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(("rename", b)) or replace(a, b))
    source, target = tmp_path / "a.partial", tmp_path / "a"
    source.write_text("new")
    target.write_text("old")
    replace_durably(str(source), str(target))
    assert target.read_text() == "new"
    assert calls == [("sync", str(source)), ("rename", str(target)), ("sync", str(tmp_path))]


def test_content_that_cannot_be_synchronised_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be on the disk."""

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.partial").write_text("new")
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        replace_durably(str(tmp_path / "a.partial"), str(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Is the disk full"),
        (errno.EDQUOT, "Is the disk full"),
        (errno.EFBIG, "Is the disk full"),
        (errno.ENOENT, "folder is gone"),
        (errno.ESTALE, "folder is gone"),
        (errno.EACCES, "may not write there"),
        (errno.EROFS, "may not write there"),
        (errno.EIO, "Look at the disk"),
    ],
)
def test_the_reason_decides_what_is_said(
    tmp_path: Path, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = str(tmp_path / "a.partial")
    assert words in why_not_written(OSError(number, "x"), partial)
    # PyTorch's error has no number: writing is tried once more
    monkeypatch.setattr(checkpoint_files, "_probe", lambda _: number)
    assert words in why_not_written(RuntimeError("unexpected pos"), partial)


def test_a_folder_that_was_removed_is_not_a_full_disk(tmp_path: Path) -> None:
    message = why_not_written(RuntimeError("Parent directory does not exist."), str(tmp_path / "gone" / "a.partial"))
    assert "folder is gone" in message
    assert "full" not in message


def test_only_our_half_written_files_are_removed(tmp_path: Path) -> None:
    names = ("checkpoint_latest.pth.partial", "dinomed3d.json.partial", "checkpoint_best.pth", "notes.partial")
    for name in names:
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[2:])
