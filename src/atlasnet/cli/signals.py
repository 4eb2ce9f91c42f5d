"""Being told to end: a signal of the system ends the work as Ctrl-C does, with everything put in order."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# docker stop, scancel, kill; a terminal that is closed; what schedulers send before a job's time is over
_SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_TIDYING = {module.__file__ for module in (shutil, tempfile, weakref)}
_AT_ONCE = 1.0  # seconds within which several are one: shell and system both tell of a closed terminal


class Ended(KeyboardInterrupt):
    """A signal has asked for the end.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


def ending(stop: KeyboardInterrupt) -> tuple[int, str]:
    """The exit code of a stop, 128 and the number of its signal, and who wanted it."""
    return (128 + stop.signal, stop.signal.name) if isinstance(stop, Ended) else (130, "the user")


def _is_tidying(frame: FrameType | None) -> bool:
    """Whether a temporary folder is being made or removed: half of it would stay, and a finaliser hides the signal."""
    while frame is not None:
        if frame.f_code.co_filename in _TIDYING:
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    time.sleep(0.05)
    os.kill(os.getpid(), number)


@contextmanager
def ended_by_signals() -> Iterator[Callable[[], bool]]:
    """Raise `Ended` where such a signal would end the process at once, and leave temporary files and locks behind.

    One that is ignored, as SIGHUP is under nohup, or handled by whoever calls us, stays so; so do all in other threads
    than the main one, in which Python hears of signals.

    Yields:
        What work asks between its parts: it raises `Ended` once more, in case a library swallowed the exception, which
        may come at any moment.
    """
    heard: list[int] = []
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    told = -_AT_ONCE

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if _is_tidying(frame):
            _thread.start_new_thread(_again, (number,))
            return
        before, told = told, time.monotonic()
        if told - before < _AT_ONCE:
            return
        # A terminal that is gone fails all that is written to it, also what is written on the way out.
        for terminal in terminals:
            if not os.isatty(terminal):
                os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
        heard.append(number)
        raise Ended(number)

    def asked() -> bool:
        if heard:
            raise Ended(heard[-1])
        return False

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in numbers:
            signal.signal(number, end)
        yield asked
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
