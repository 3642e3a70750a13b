"""Signals that ask a training to stop: taken where nothing is lost, put off where something would be."""

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunetv2_dinomed3d.processes import PREEMPTED, STOP_SIGNALS


class Preempted(SystemExit):
    """A signal asked to stop; the process ends with `processes.PREEMPTED` where nobody catches it."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


class Preemption:
    """State of the signals that ask to stop, and whether one may interrupt the code that runs now.

    Attributes:
        signal: the first that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._owner = 0
        self._at_once = self._raised = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, the signals are noted, and `Preempted` is raised where that is allowed; nested, it does nothing.

        The handlers are those of the process, so they are here only while open, and only in the main thread, where
        Python has signals. Signals that the process was started to ignore (SIGHUP under ``nohup``) stay ignored.
        """
        if self._owner or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._owner = os.getpid()
        before: dict[int, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        heard = [number for number in STOP_SIGNALS if before[number] is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            self._at_once = False
            if self.signal:  # the interpreter's own end takes a second, in which a repeated one is nothing new
                atexit.register(_ignore_signals, os.getpid())
            for number in heard:
                signal.signal(number, before[number] or signal.SIG_DFL)  # None: not set by Python
            self.signal, self._raised, self._owner = None, False, 0

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self._owner:  # a process just forked, which inherited this: its parent decides
            return
        self.signal = self.signal or signal.Signals(number)
        self._raise_if_allowed()

    def _raise_if_allowed(self) -> None:
        if self.signal and self._at_once and not self._raised:
            self._raised = True  # once: what is cleaned up on the way out is not broken off by a second signal
            raise Preempted

    def allow(self, at_once: bool) -> None:
        """Let a signal raise `Preempted` wherever it comes from now on, also one noted before; or let none do so."""
        self._at_once = at_once and bool(self._owner)
        self._raise_if_allowed()

    @contextmanager
    def put_off(self) -> Iterator[None]:
        """While open, signals are only noted."""
        before, self._at_once = self._at_once, False
        yield
        self.allow(before)


def _ignore_signals(owner: int) -> None:
    if os.getpid() == owner:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
