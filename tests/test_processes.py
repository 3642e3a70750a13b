"""Children end with their parent, however it ends; commands are told of signals, and nothing is left of them."""

import multiprocessing.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_dinomed3d.processes import STOP_SIGNALS, Commands, Stopped, children_end_with_us
from tests.processes import await_end, running

pytestmark = pytest.mark.own

POOLS = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from nnunetv2_dinomed3d.processes import children_end_with_us, end_with_parent

def busy(name):
    print("child", os.getpid(), name, flush=True)
    while True:
        sum(range(1000))

if __name__ == "__main__":
    print("child", os.getpid(), flush=True)
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    pool.submit(busy, "own pool")
    with children_end_with_us():
        others = multiprocessing.get_context("spawn").Pool(1)
        others.apply_async(busy, ("pool of others",))
        for method in ("fork", "forkserver"):
            multiprocessing.get_context(method).Process(target=busy, args=(method,), daemon=True).start()
    if sys.argv[1] == "sleeps":
        time.sleep(600)
    input()
    others.terminate()
    next(iter(pool._processes.values())).kill()
    print("pool of others ended", flush=True)
"""

COMMAND = """
import os, signal, subprocess, sys, time
if len(sys.argv) > 1:
    def saved(number, frame):
        print("told of", signal.Signals(number).name, flush=True)
        time.sleep(0.5)
        sys.exit(75)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), saved if sys.argv[1] == "saves" else signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-I", "-c", "import signal, time; "
        "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 10, 15)]; print('child 0', flush=True); time.sleep(600)"])
    print("child", os.getpid(), flush=True)
    print("child", child.pid, flush=True)
    assert sys.stdin.read() == ""
    time.sleep(600)
"""

RUNNER = """
import os, sys
from nnunetv2_dinomed3d.processes import Commands
with Commands() as commands:
    print("child", os.getpid(), flush=True)
    print("child", commands._watcher.pid, flush=True)
    print("ended with", commands.run([sys.executable, *sys.argv[1:]]))
"""


def start(tmp_path: Path, script: str, *words: str) -> subprocess.Popen:
    path = tmp_path / "script.py"
    path.write_text(script)
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, path, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=here,
    )


def children(process: subprocess.Popen, number: int) -> dict[int, str]:
    """The first that say "child PID NAME"; PID 0 is none."""
    found = {}
    for line in process.stdout:
        word, *rest = line.split()
        if word == "child":
            found[int(rest[0])] = " ".join(rest[1:])
        if len(found) == number:
            break
    return {pid: name for pid, name in found.items() if pid}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_pools_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, POOLS, "sleeps")
    pids = children(process, 5)
    assert all(map(running, pids))
    process.send_signal(number)  # to the parent alone
    process.wait()
    await_end(pids)


def test_workers_ignore_what_their_parent_decides(tmp_path: Path) -> None:
    """Signals to the whole group leave them to the parent: no worker dies, and prints, before it has saved.

    A pool's worker that died would take the lock with it that the pool waits for at its end.
    """
    process = start(tmp_path, POOLS, "ends")
    pids = children(process, 5)
    workers = [pid for pid, name in pids.items() if name in ("pool of others", "fork", "forkserver")]
    assert len(workers) == 3
    for pid in workers:
        for number in STOP_SIGNALS:
            os.kill(pid, number)
    time.sleep(0.5)
    assert all(map(running, workers))
    rest, _ = process.communicate("\n", timeout=30)  # its end terminates its daemons
    assert rest == "pool of others ended\n"
    await_end(pids)


@pytest.mark.end_to_end
@pytest.mark.parametrize("number", [*STOP_SIGNALS, signal.SIGKILL], ids=lambda number: number.name)
def test_commands_end_with_us(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "signal.py").write_text("raise SystemExit('a file of the current folder was imported')")
    process = start(tmp_path, RUNNER, str(tmp_path / "command.py"), "saves")
    pids = children(process, 5)
    assert len(pids) == 4
    os.killpg(process.pid, number)
    rest = process.stdout.read()
    code = process.wait()
    await_end(pids)
    if number == signal.SIGKILL:
        assert "told of SIGTERM" in rest
        assert code == -signal.SIGKILL
    else:
        assert f"told of {number.name}" in rest
        assert code == 128 + number


def test_a_command_that_will_not_end_is_killed(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    process = start(tmp_path, RUNNER, str(tmp_path / "command.py"), "refuses")
    pids = children(process, 5)
    process.kill()
    process.wait()
    await_end(pids)


def test_exit_codes_output_and_environment(capfd: pytest.CaptureFixture) -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    script = "import os, sys; print(os.environ.get('WORD')); print('two', file=sys.stderr); sys.exit(3)"
    with Commands() as commands:
        assert commands.run([sys.executable, "-c", script], {**os.environ, "WORD": "one"}, prefix="[GPU 1] ") == 3
        assert commands.run([sys.executable, "-c", "print('plain')"]) == 0
        assert commands.run([sys.executable, "-c", "import os; os.abort()"]) == -signal.SIGABRT
        with pytest.raises(FileNotFoundError):
            commands.run(["no-such-command"])
    assert sorted(capfd.readouterr().out.split("\n")) == ["", "[GPU 1] one", "[GPU 1] two", "plain"]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_stopped_between_commands_and_in_threads() -> None:
    with pytest.raises(Stopped) as caught, Commands():
        signal.raise_signal(signal.SIGUSR1)
    assert caught.value.code == 128 + signal.SIGUSR1
    outcomes = []

    def row(commands: Commands) -> None:
        for _ in range(2):
            try:
                outcomes.append(commands.run([sys.executable, "-c", "import time; time.sleep(600)"]))
            except Stopped as stopped:
                outcomes.append(stopped.signal)

    with Commands() as commands:
        rows = [threading.Thread(target=row, args=(commands,)) for _ in range(2)]
        for thread in rows:
            thread.start()
        while len(commands._running) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        for thread in rows:
            thread.join()
    assert outcomes == [signal.SIGTERM] * 4
    assert commands.stopped_by == signal.SIGTERM


BUSY = """
import subprocess, sys, time
from nnunetv2_dinomed3d.processes import Commands

class Slow(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        print("child", self.pid, flush=True)
        time.sleep(600)  # a busy machine: the command runs, and we have not gone on yet

with Commands() as commands:
    print("child", commands._watcher.pid, flush=True)
    subprocess.Popen = Slow
    commands.run([sys.executable, "-c", "import time; time.sleep(600)"])
"""


def test_a_command_ends_with_a_parent_killed_as_it_was_started(tmp_path: Path) -> None:
    process = start(tmp_path, BUSY)
    pids = children(process, 2)
    process.kill()
    process.wait()
    await_end(pids)


def test_a_command_that_is_not_there_is_an_error() -> None:
    with Commands() as commands, pytest.raises(FileNotFoundError, match="no_such_command"):
        commands.run(["no_such_command"])


def test_a_start_is_not_broken_off(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Another thread takes the signal, and the handler would run in the middle: a child with half a message."""
    started = threading.Event()
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_and_signal(*words: Any) -> int:
        child = spawn(*words)
        assert other.ident
        signal.pthread_kill(other.ident, signal.SIGHUP)
        time.sleep(0.1)
        started.set()
        return child

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGHUP, stop)
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    try:
        with children_end_with_us():
            monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", spawn_and_signal)
            with pytest.raises(Stopped):
                process.start()
    finally:
        signal.signal(signal.SIGHUP, before)
        ended.set()
    process.join(60)
    assert started.is_set()
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
