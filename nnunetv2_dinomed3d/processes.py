"""Processes that end with the one that started them, however it ends: by itself, by a signal, by SIGKILL.

Three cases, one entry each:

- a process pool of our own: ``ProcessPoolExecutor(n, context, initializer=end_with_parent)``, or a call of
  `end_with_parent` at the beginning of the initializer it has already;
- code of others that starts processes through `multiprocessing`: `children_end_with_us` around it;
- commands, such as nnU-Net's: `Commands`.

No PyTorch and no nnU-Net here: a child imports this in milliseconds.
"""

import errno
import inspect
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from typing import Any

PREEMPTED = 75
"""Exit code of what was stopped by a signal and can go on: sysexits' EX_TEMPFAIL, try again."""

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
"""Signals that ask a process to stop: from schedulers, Ctrl-C, a closed terminal, Slurm's early warning."""

_POLL = 0.5
"""Seconds between two looks at the parent."""

_watching: set[int] = set()  # ourselves, once we watch our parent; a fork copies it, but not the thread


def end_with_parent(ignore: Collection[signal.Signals] = ()) -> None:
    """In a child: end as soon as the parent has, however it did. Called again, it does nothing more.

    A thread looks at the parent, since the kernel's own means (``PR_SET_PDEATHSIG``) is Linux's only, and takes the
    end of the parent's *thread* that started the child for the parent's.

    Args:
        ignore: signals that shall not end the child before its parent: those that a scheduler sends to all processes
            of a job, and a terminal on Ctrl-C, where the parent wants to end its children in an order of its own.
    """
    for number in ignore:
        signal.signal(number, signal.SIG_IGN)
    if os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="end_with_parent", daemon=True).start()


def _watch_parent(number: int) -> None:
    parent = multiprocessing.parent_process()  # None in what multiprocessing did not start
    while os.getppid() == number and (parent is None or parent.is_alive()):
        if parent is None:
            time.sleep(_POLL)
        else:
            parent.join(_POLL)
    os._exit(1)


def _run_watched(target: Callable[..., Any] | None, *args: Any, **kw: Any) -> None:
    end_with_parent()
    if target is not None:
        target(*args, **kw)


@contextmanager
def _handlers_wait() -> Iterator[None]:
    """While open, no handler of `STOP_SIGNALS` runs; afterwards those do whose signal came.

    A child whose parent's start of it is broken off prints a traceback. A blocked signal is not enough: where another
    thread takes it, Python still runs the handler in the main thread.
    """
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():  # where handlers run, and where alone they can be set
        for number in STOP_SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                handlers[number] = signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """While open, every process that `multiprocessing` starts here ends with us, and not before we say so.

    For code of others, whose pools and workers cannot be given an initializer. Each process calls `end_with_parent`
    first, and from its birth on `STOP_SIGNALS`, which schedulers and terminals send to all processes of a job, do not
    reach it: a pool whose worker dies of one waits for ever for the lock it held. ``terminate`` therefore kills. All
    start methods; what overrides ``Process.run`` is not told to watch.
    """
    base = multiprocessing.process.BaseProcess
    start = base.start
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        resource_tracker.ensure_running()  # which SIGHUP or SIGUSR1 would end, with tracebacks later
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)

    def start_watched(process: Any) -> None:
        process._target = partial(_run_watched, process._target)
        with _handlers_wait():
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # which the child inherits
            try:
                start(process)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            process._popen.terminate = process._popen.kill

    base.start = start_watched  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        base.start = start  # type: ignore[method-assign]


class Stopped(SystemExit):
    """A signal asked to stop. Where nobody catches it the process ends, with the exit code that shells give: 128 + n.

    Attributes:
        signal: which one.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class Commands:
    """Runs commands that end with this process, with all processes they start.

    A context, entered in the main thread; `run` may then be called in any thread, several at a time::

        with Commands() as commands:
            code = commands.run(["nnUNetv2_train", ...], environment)

    While it is open, SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on to what runs, which is waited for (a trainer
    saves first); `run` then raises `Stopped`, in the thread that called it, and starts nothing more. Where nothing
    runs, `Stopped` is raised in the main thread at once. After SIGKILL a watcher, a tiny process of its own, ends what
    is left: SIGTERM, and after 5 seconds SIGKILL. Each command has a session of its own and no standard input.

    Attributes:
        stopped_by: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._running: dict[int, subprocess.Popen] = {}
        self._active = 0  # calls of `run` that have begun and not ended
        self._count = threading.Lock()
        self._before: dict[int, Any] = {}
        self._watcher: subprocess.Popen | None = None

    def __enter__(self) -> "Commands":
        # -I: whatever lies in the current folder is not imported
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", f"{inspect.getsource(_watch_sessions)}\n_watch_sessions()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of the reach of signals to our group
        )
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signals
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set by Python
        assert self._watcher
        assert self._watcher.stdin
        with suppress(OSError):
            self._watcher.stdin.close()  # the watcher ends
        self._watcher.wait()

    def _pass_on(self, number: int, frame: object) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number)
        for process in list(self._running.values()):
            _signal_session(process.pid, number)
        if not self._active:
            raise Stopped(number)

    def run(self, command: list[str], env: dict[str, str] | None = None, prefix: str = "") -> int:
        """Run a command and wait for it.

        Args:
            env: its environment; None for this process's.
            prefix: stands before each line it prints; without one it prints where we do.

        Returns:
            Its exit code, negative for the signal that ended it.

        Raises:
            Stopped: a signal came, before it was started or while it ran; nothing of it is left.
            OSError: it cannot be started.
        """
        with self._count:
            self._active += 1
        try:
            code = None if self.stopped_by else self._run(command, env, prefix)
        finally:
            with self._count:
                self._active -= 1
        if self.stopped_by or code is None:
            raise Stopped(self.stopped_by or signal.SIGTERM)
        return code

    def _run(self, command: list[str], env: dict[str, str] | None, prefix: str) -> int:
        output: dict[str, Any] = (
            {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
            if prefix
            else {}
        )
        if shutil.which(command[0], path=(os.environ if env is None else env).get("PATH")) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
        assert self._watcher
        # the child tells the watcher before it becomes the command: we could be killed before we do
        told = ["/bin/sh", "-c", '(echo "+$$" >&0) 2>/dev/null; exec "$@" </dev/null', "sh", *command]
        process = subprocess.Popen(told, env=env, stdin=self._watcher.stdin, start_new_session=True, **output)
        self._running[process.pid] = process
        if self.stopped_by:  # since the last look
            _signal_session(process.pid, self.stopped_by)
        try:
            if process.stdout:
                with process.stdout as lines:
                    for line in lines:
                        print(prefix + line, end="", flush=True)
            return process.wait()
        finally:
            del self._running[process.pid]
            _end_session(process)
            self._tell_watcher(f"-{process.pid}")

    def _tell_watcher(self, line: str) -> None:
        assert self._watcher
        assert self._watcher.stdin
        with suppress(OSError, ValueError):  # somebody killed it: no reason to stop what runs
            os.write(self._watcher.stdin.fileno(), f"{line}\n".encode())


def _signal_session(leader: int, number: int) -> bool:
    """Send a signal to a command and all it started; whether there was anything to send it to."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of what has ended and was not waited for
        return False
    return True


def _end_session(process: subprocess.Popen, patience: float = 2.0) -> None:
    """After a command's end: whatever it started has a moment to end by itself, and is killed then.

    A command that still runs, since the waiting for it was broken off, is asked to end first.
    """
    if process.poll() is None:
        _signal_session(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
    deadline = time.monotonic() + patience
    while _signal_session(process.pid, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal_session(process.pid, signal.SIGKILL)
    process.wait()


def _watch_sessions() -> None:
    """In the watcher: reads which sessions begin (``+7``) and end (``-7``); when its input ends, ends what is left.

    It runs in an interpreter of its own from its source, so all it needs stands in it.
    """
    import os
    import signal
    import sys
    import time

    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    sessions: set[int] = set()
    for line in sys.stdin:
        (sessions.add if line[0] == "+" else sessions.discard)(int(line[1:]))

    def send(number: int) -> bool:
        for leader in list(sessions):
            try:
                os.killpg(leader, number)
            except OSError:
                sessions.discard(leader)
        return bool(sessions)

    send(signal.SIGTERM)
    deadline = time.monotonic() + 5
    while send(0) and time.monotonic() < deadline:
        time.sleep(0.05)
    send(signal.SIGKILL)
