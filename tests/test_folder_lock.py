"""One training at a time in a folder: a lock that a dead owner does not keep, whichever machine it was on."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nnunetv2_dinomed3d import folder_lock
from nnunetv2_dinomed3d.folder_lock import LOCK, FolderInUseError, Owner, lock_folder

pytestmark = pytest.mark.own


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every tenth of a second; an owner is dead after 1.5 s without."""
    for name, value in (("BEAT", 0.1), ("SILENCE", 1.5), ("SHORTEST_WATCH", 0.5)):
        monkeypatch.setattr(folder_lock, name, value)


def write(folder: Path, owner: Owner) -> Path:
    path = folder / LOCK
    path.write_text(json.dumps(asdict(owner)))
    return path


def elsewhere() -> Owner:
    return replace(Owner.this_process(), host="other-host", machine="other boot", pid=4321, token="theirs")


@pytest.fixture
def living() -> "Iterator[subprocess.Popen]":
    """Another process, which lives."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def of_process(pid: int) -> Owner:
    state_and_start = folder_lock._process(pid)
    assert state_and_start
    return replace(Owner.this_process(), pid=pid, started=state_and_start[1], token="theirs")


def test_another_process_is_refused_at_once_and_named(tmp_path: Path, living: subprocess.Popen) -> None:
    path = write(tmp_path, of_process(living.pid))
    with pytest.raises(FolderInUseError) as caught:
        lock_folder(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert f"process {living.pid} on {os.uname().nodename}" in message
    assert f"remove {path}" in message
    assert [file.name for file in tmp_path.iterdir()] == [LOCK]


def test_a_dead_owner_does_not_keep_it(tmp_path: Path, living: subprocess.Popen) -> None:
    owner = of_process(living.pid)
    for dead in (
        replace(owner, started=(owner.started or 0) + 1),
        replace(owner, pid=2**22 + 1),
    ):  # its number was reused
        write(tmp_path, dead)
        lock_folder(tmp_path).release()
    write(tmp_path, owner)
    living.kill()
    while (folder_lock._process(living.pid) or "?")[0] != "Z":  # nobody has waited for it: its number is still there
        time.sleep(0.01)
    lock_folder(tmp_path).release()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("clock", [0, 86400, -86400])
def test_on_another_machine_signs_of_life_count_and_not_the_clock(tmp_path: Path, clock: int) -> None:
    """The other one's clock, and so the file's time, may be a day before or behind."""
    path = write(tmp_path, elsewhere())
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.1):
            os.utime(path, (time.time() + clock,) * 2)

    os.utime(path, (time.time() + clock,) * 2)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(FolderInUseError, match="process 4321 on other-host"):
            lock_folder(tmp_path)
    finally:
        end.set()
        thread.join()
    told: list[str] = []
    lock_folder(tmp_path, told.append).release()
    assert "other-host" in told[0]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_file_that_names_nobody_is_none_once_it_is_silent(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    lock_folder(tmp_path, lambda line: None).release()


def test_a_process_can_take_it_twice_and_a_fork_gives_nothing_back(tmp_path: Path) -> None:
    first, second = lock_folder(tmp_path), lock_folder(tmp_path)
    child = os.fork()
    if child == 0:
        first.release()
        second.release()
        os._exit(0)
    os.waitpid(child, 0)
    first.release()
    assert (tmp_path / LOCK).exists()
    second.release()
    second.release()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.usefixtures("quick")
def test_a_lock_shows_life_and_one_that_was_taken_over_is_noticed(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    before = lock.path.stat().st_mtime_ns
    time.sleep(1)
    assert lock.path.stat().st_mtime_ns > before
    lock.path.unlink()  # by a user who believed it dead
    lock.require()
    assert folder_lock.read_owner(lock.path) == lock.owner
    write(tmp_path, elsewhere())
    with pytest.raises(FolderInUseError, match="taken over by process 4321 on other-host"):
        lock.require()
    lock.release()
    assert folder_lock.read_owner(lock.path).token == "theirs", "another one's lock is not removed"


def test_without_hard_links(tmp_path: Path, living: subprocess.Popen, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network mounts."""

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    lock_folder(tmp_path).release()
    write(tmp_path, of_process(living.pid))
    with pytest.raises(FolderInUseError):
        lock_folder(tmp_path)


def test_of_many_that_want_a_dead_ones_lock_one_gets_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nnunetv2_dinomed3d import folder_lock\n"
        "input()\n"
        "try:\n folder_lock.lock_folder(Path(sys.argv[1])); print('mine', flush=True)\n"
        "except folder_lock.FolderInUseError: print('not mine', flush=True)\n"
        "input()"
    )
    write(tmp_path, replace(Owner.this_process(), pid=2**22 + 1, token="dead"))
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate("\n")
    assert sorted(answers) == ["mine"] + ["not mine"] * 5
