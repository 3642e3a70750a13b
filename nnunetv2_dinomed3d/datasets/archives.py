"""Archives of a download, unpacked safely and whole into a folder of their own."""

import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from nnunetv2_dinomed3d.datasets.download import JUNK
from nnunetv2_dinomed3d.text import printable

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz")
NEEDED = (".nii", ".nii.gz", ".json", ".dcm", ".png")
"""Endings of the files in an archive that are unpacked."""

Wanted = Callable[[PurePosixPath], bool]


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        path: below the archive's root.
        size: in bytes.
        time: of its last change, in seconds; None if the archive does not say.
    """

    path: PurePosixPath
    size: int
    time: float | None


def is_archive(path: Path) -> bool:
    """Whether the name is an archive's."""
    return path.name.lower().endswith(ENDINGS)


def needed(path: PurePosixPath) -> bool:
    """Whether a file in an archive is one that a data set is made of: no film (``_4d``), no MRI beside CT (``DWI``)."""
    return (
        path.name.lower().endswith(NEEDED)
        and not any(part.startswith(JUNK) and part != ".." for part in path.parts)
        and "_4d" not in path.name
        and "DWI" not in path.parts
    )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the files of an archive that are `needed`, unless that has been done.

    Args:
        folder: is given a folder of the archive's name, which exists only when everything is in it.

    Raises:
        ValueError: the archive is cut off or damaged, encrypted, leads out of its folder, or does not fit on the disk.
    """
    status = archive.stat()
    target = folder / f"{archive.name}.{status.st_size}.{status.st_mtime_ns}"
    if target.is_dir():
        return target
    partial = folder / f"{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tqdm(desc=f"unpacked {printable(archive.name)}", unit="B", unit_scale=True, disable=None) as bar:
            for member, stream in _members(archive, shutil.disk_usage(folder).free):
                _write(member, stream, partial, archive)
                bar.update(member.size)
        os.replace(partial, target)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is cut off or damaged ({error}): download it again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # if it is empty
    return target


def _members(archive: Path, free: int) -> Iterator[tuple[Member, IO[bytes]]]:
    """The files that are needed, each open. More bytes than are free are refused: of a zip file, which has a table of
    contents, before the first is written."""
    with _opened(archive) as (members, open_member):
        total = sum(member.size for _, member in members) if isinstance(members, list) else 0
        for entry, member in members:
            total += 0 if isinstance(members, list) else member.size
            if total > free:
                raise ValueError(
                    f"{archive} holds more than the {free >> 20} MB that are free in nnUNet_raw: make room"
                )
            with open_member(entry) as stream:
                yield member, stream


@contextmanager
def _opened(archive: Path) -> Iterator[tuple]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if not info.is_dir() and needed(PurePosixPath(info.filename))]
            if any(info.flag_bits & 1 for info in infos):
                raise ValueError(f"{archive} is encrypted: unpack it with its password, and name the folder")
            yield [(i, Member(PurePosixPath(i.filename), i.file_size, None)) for i in infos], file.open
        return
    with tarfile.open(archive) as tar:
        found = (info for info in tar if info.isfile() and needed(PurePosixPath(info.name)))
        yield ((i, Member(PurePosixPath(i.name), i.size, i.mtime)) for i in found), tar.extractfile


def _write(member: Member, stream: IO[bytes], folder: Path, archive: Path) -> None:
    if member.path.is_absolute() or ".." in member.path.parts or "\\" in str(member.path):
        raise ValueError(f"{archive} holds {printable(member.path)}, which leads out of its folder: do not trust it")
    target = folder / member.path
    if target.exists():
        raise ValueError(f"{archive} holds {printable(member.path)} twice: download it again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(stream, file, 2**20)
    if target.stat().st_size != member.size:
        raise EOFError(f"{member.path} has {target.stat().st_size} bytes of {member.size}")
    if member.time is not None:
        os.utime(target, (member.time, member.time))
