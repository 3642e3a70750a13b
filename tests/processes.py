"""What is left of processes, as /proc tells it."""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


def _state_and_session(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "gone", 0
    return fields[0], int(fields[3])


def running(pid: int) -> bool:
    """Whether there is such a process; one that has ended but was not waited for is none."""
    return _state_and_session(pid)[0] not in ("gone", "Z")


def session(leader: int) -> list[int]:
    """The running processes of a session."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return [pid for pid in pids if _state_and_session(pid)[1] == leader and running(pid)]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Fail if something has not happened after that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def await_end(pids: Iterable[int], seconds: float = 60) -> None:
    """Fail if one of them still runs after that time."""
    pids = list(pids)
    _await(lambda: [pid for pid in pids if running(pid)], seconds)


def await_end_of_session(leader: int, seconds: float = 60) -> None:
    """Fail if a process of a session still runs after that time."""
    _await(lambda: session(leader), seconds)


def _await(left: Callable[[], list[int]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while pids := left():
        if time.monotonic() > deadline:
            commands = []
            for pid in pids:
                with suppress(OSError):
                    commands.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[:200])
            raise AssertionError(f"still there: {commands}")
        time.sleep(0.05)
