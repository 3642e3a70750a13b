"""Files from outside, before anything in them is trusted: only regular files, and archives with right checksums.

``torch.save`` writes a zip archive of uncompressed members with a CRC32 each. PyTorch checks none of them when it
reads: flipped bits become weights.
"""

import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

DIRECTORY_LIMIT = 16 << 20
"""Most bytes of an archive's directory: some 100,000 members, of which the largest checkpoints here have 5,000."""

_BLOCK = 1 << 20
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_END, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
_LOCATOR_SIZE = 20
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """Place of a member's bytes in the file."""

    start: int
    size: int
    crc32: int


def open_regular(path: Path, fix: str = "") -> BinaryIO:
    """Open a regular file for reading. It never waits: a pipe or a device is refused, not read.

    Args:
        path: of the file.
        fix: what to do where it cannot be read, for the error message.

    Raises:
        ValueError: there is no such file, it is of another kind, or it cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file. {fix}".strip())
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist. {fix}".strip()) from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}). {fix}".strip()) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path} was replaced while it was opened. {fix}".strip())
    return file


def require_sound_archive(path: Path) -> None:
    """Read a file of ``torch.save`` from end to end, in little memory, and compare it with its own checksums.

    Raises:
        ValueError: it is no regular file, cannot be read, is no archive as ``torch.save`` writes it, or is damaged.
    """
    with open_regular(path) as file:
        try:
            check_members(file, members_of(file))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} {error}") from error


def members_of(file: BinaryIO) -> dict[str, Member]:
    """The members of an archive as ``torch.save`` writes it: uncompressed, side by side, nothing before the first.

    Raises:
        ValueError: it is no such archive; the message goes on after the file's name.
    """
    size = os.fstat(file.fileno()).st_size
    if not 0 < _directory_size(file, size) <= min(size, DIRECTORY_LIMIT):
        raise ValueError("is damaged: its end is not that of a whole archive of torch.save.")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"is damaged: its directory cannot be read ({error}).") from error
    if not entries or entries[0].header_offset:
        raise ValueError("is damaged: it does not begin with its first member.")
    members: dict[str, Member] = {}
    end = 0
    for entry in entries:
        name = ascii(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise ValueError(f"holds the compressed member {name}, which torch.save does not write.")
        if entry.filename in members:
            raise ValueError(f"holds two members {name}, which torch.save does not write.")
        start = _start(file, entry.header_offset)
        if start is None or entry.header_offset < end or start + entry.file_size > size:
            raise ValueError(f"is damaged: its member {name} is not where the directory says.")
        end = start + entry.file_size
        members[entry.filename] = Member(start, entry.file_size, entry.CRC)
    return members


def _directory_size(file: BinaryIO, size: int) -> int:
    """Number of members by the archive's last record; 0 if there is none."""
    file.seek(max(0, size - _END.size - _LOCATOR_SIZE - _END_64.size))
    tail = file.read()
    if len(tail) < _END.size:
        return 0
    signature, *_, directory_size, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        return 0
    if len(tail) == _END.size + _LOCATOR_SIZE + _END_64.size and tail[_END_64.size :].startswith(b"PK\6\7"):
        signature, *_, directory_size, _ = _END_64.unpack(tail[: _END_64.size])
        if signature != b"PK\6\6":
            return 0
    return directory_size


def _start(file: BinaryIO, header: int) -> int | None:
    """Start of the bytes of the member with this local header; None if there is no header."""
    file.seek(header)
    content = file.read(_LOCAL_HEADER.size)
    if len(content) < _LOCAL_HEADER.size or not content.startswith(b"PK\3\4"):
        return None
    *_, name, extra = _LOCAL_HEADER.unpack(content)
    return header + len(content) + name + extra


def check_members(file: BinaryIO, members: dict[str, Member]) -> None:
    """Compare every member with its CRC32.

    Raises:
        ValueError: one differs; the message goes on after the file's name.
    """
    for name, member in members.items():
        file.seek(member.start)
        left, found = member.size, 0
        while left and (block := file.read(min(left, _BLOCK))):
            found = zlib.crc32(block, found)
            left -= len(block)
        if left or found != member.crc32:
            raise ValueError(f"is damaged: the checksum of its member {name!a} does not fit.")
