"""A training folder belongs to one process at a time, on this machine and on others that mount it."""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

LOCK = "dinomed3d.lock"

BEAT = 10.0
"""Seconds between two signs of life of an owner."""

SILENCE = 120.0
"""Seconds without a sign of life after which an owner on another machine counts as dead."""

SHORTEST_WATCH = 3 * BEAT
"""Seconds that an owner on another machine is watched at least: its clock, and so its file's age, can be wrong."""

_held: dict[str, "FolderLock"] = {}
"""The locks that this process holds, by the real path of their file."""


class FolderInUseError(RuntimeError):
    """Another process has the folder."""


@dataclass(frozen=True)
class Owner:
    """Who has a folder.

    Attributes:
        host: its name.
        machine: the boot and the process namespace; together with the host, where ``pid`` means something.
        pid: of the process.
        started: when the process was, in the kernel's ticks; None where that cannot be known.
        since: date and time.
        token: of this lock alone.
    """

    host: str
    machine: str
    pid: int
    started: int | None
    since: str
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """A new lock's, of this process."""
        state = _process(os.getpid())
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        return cls(
            socket.gethostname(), _machine(), os.getpid(), state[1] if state else None, since, secrets.token_hex(8)
        )

    def is_alive(self) -> bool | None:
        """Whether the process lives, judged on this machine; None where that cannot be told."""
        here = Owner.this_process()
        if (self.host, self.machine) != (here.host, here.machine) or self.started is None or here.started is None:
            return None
        state = _process(self.pid)
        if state is None:
            return _exists(self.pid)
        return state[0] not in "ZXx" and state[1] == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _machine() -> str:
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process(pid: int) -> tuple[str, int] | None:
    """State and start time of a process, as Linux tells; None if it does not."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        fields = content[content.rindex(")") + 2 :].split()  # a name can hold anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _exists(pid: int) -> bool | None:
    """False if there is no such process; None if it is hidden from this user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return None
    return None


def read_owner(path: Path) -> Owner | None:
    """Who has the lock; None if there is none, or if the file is none of ours (then it is as good as none).

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        owner = Owner(**content)
        known = isinstance(owner.pid, int) and owner.pid > 0 and isinstance(owner.started, int | None)
        return owner if known else None
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return None


class FolderLock:
    """A file in a folder that names its owner, touched every few seconds as a sign of life. See `lock_folder`.

    Attributes:
        path: of the file.
        owner: this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = Owner.this_process()
        self.count = 1
        self._stop = threading.Event()

    def take(self, tell: Callable[[str], None]) -> None:
        """Take the folder, from a dead owner too; see `lock_folder`."""
        while not self._create():
            owner = read_owner(self.path)
            self._require_dead(owner, tell)
            self._remove_dead(owner)
        threading.Thread(target=self._beat, name="folder lock", daemon=True).start()

    def release(self) -> None:
        """Give the folder back, once for each time it was taken; more often does no harm, nor does a forked child."""
        if os.getpid() != self.owner.pid or self.count == 0:
            return
        self.count -= 1
        if self.count == 0:
            self._stop.set()
            _held.pop(str(self.path), None)
            with suppress(OSError):
                if self._is_ours():
                    self.path.unlink()

    def require(self) -> None:
        """Before something is written: the folder must still be ours.

        Raises:
            FolderInUseError: another process took it, because this one had shown no sign of life for minutes.
        """
        for wait in (1, 0):
            owner = None
            with suppress(OSError):
                owner = read_owner(self.path)
                if owner is None and self._create():  # somebody removed it
                    return
            if owner is None or owner.token == self.owner.token:
                return
            time.sleep(wait)  # one that wants it looks at it for an instant
        raise FolderInUseError(
            f"{self.path.parent} was taken over by {owner}, while this process (or its disk) stood still for minutes. "
            "Nothing more is written here by this one."
        )

    def _is_ours(self) -> bool:
        owner = read_owner(self.path)
        return owner is not None and owner.token == self.owner.token

    def _create(self) -> bool:
        """Make the file, whole from the first moment on; False if there is one."""
        content = json.dumps(asdict(self.owner))
        partial = self.path.with_name(f"{LOCK}.{self.owner.token}.partial")
        try:
            partial.write_text(content, encoding="utf-8")
            os.link(partial, self.path)
            return True
        except (FileExistsError, FileNotFoundError):
            if not self.path.parent.is_dir():
                raise
            return False
        except OSError:  # no hard links here, or no room
            try:
                with open(self.path, "x", encoding="utf-8") as file:
                    file.write(content)
                return True
            except FileExistsError:
                return False
        finally:
            with suppress(OSError):
                partial.unlink()

    def _require_dead(self, owner: Owner | None, tell: Callable[[str], None]) -> None:
        alive = owner.is_alive() if owner else None
        if alive is None:
            alive = self._shows_life(owner, tell)
        if alive:
            raise FolderInUseError(
                f"{self.path.parent} belongs to another training: {owner or 'an unknown process'}. Wait until it has "
                "ended or stop it there, or train another fold. If there is no such process any more, remove "
                f"{self.path}."
            )

    def _shows_life(self, owner: Owner | None, tell: Callable[[str], None]) -> bool:
        """Watch the file: clocks differ, and so do those that give files their times; that it changes tells."""
        try:
            first = _touched(self.path)
            patience = min(SILENCE, max(SHORTEST_WATCH, SILENCE - (self._now() - first)))
            who = owner or "an unknown process"
            tell(f"{self.path} is {who}'s: its signs of life are waited for, {patience:.0f} s at most.")
            end = time.monotonic() + patience
            while time.monotonic() < end:
                time.sleep(min(1.0, SHORTEST_WATCH / 10))
                if _touched(self.path) != first:
                    return read_owner(self.path) is not None
        except FileNotFoundError:
            pass  # it was given back
        return False

    def _now(self) -> float:
        """The time by the clock that gives the folder's files their times."""
        probe = self.path.with_name(f"{LOCK}.{self.owner.token}.partial")
        try:
            probe.write_text("")
            return _touched(probe)
        finally:
            with suppress(OSError):
                probe.unlink()

    def _remove_dead(self, owner: Owner | None) -> None:
        """Remove the file, unless another process was faster: then what it made is put back."""
        aside = self.path.with_name(f"{LOCK}.{self.owner.token}.partial")
        with suppress(FileNotFoundError):
            os.rename(self.path, aside)
            if read_owner(aside) != owner:
                with suppress(OSError):
                    os.link(aside, self.path)
            aside.unlink()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(OSError):
                if self._is_ours():
                    os.utime(self.path)


def _touched(path: Path) -> float:
    """The file's time; it is opened, so that network file systems ask the server."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def lock_folder(folder: Path, tell: Callable[[str], None] = print) -> FolderLock:
    """Take a folder for this process.

    A dead owner does not keep it: on this machine its process is looked for, on another one its signs of life are
    waited for, at most `SILENCE` seconds. A process can take a folder several times, and has to release it as often.

    Args:
        folder: exists.
        tell: is given a line where the answer takes a while.

    Raises:
        FolderInUseError: another process has it.
        OSError: the folder cannot be written.
    """
    path = Path(os.path.realpath(folder)) / LOCK
    held = _held.get(str(path))
    if held is not None and held.owner.pid == os.getpid() and folder.is_dir():
        held.require()
        held.count += 1
        return held
    lock = FolderLock(path)
    lock.take(tell)
    _held[str(path)] = lock
    return lock
