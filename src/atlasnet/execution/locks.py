"""One process at a time where the work of two would be mixed."""

from __future__ import annotations

import errno
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from atlasnet.errors import InputError
from atlasnet.execution.folders import leads_nowhere

_WAIT = "wait for it, or give this run a place of its own"
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def hold(lock: Path, *, place: Path, busy: str, remedy: str) -> Iterator[None]:
    """Hold a lock for this process; it goes with the process, however that ends, and its file with the block.

    On a file system that knows no locks, such as Lustre mounted without them, the file itself is the lock. One that a
    process left which was killed is then known as such on the same machine alone.

    Args:
        lock: a file that is there for nothing else; its folder is made, and removed again where nothing came into it.
        place: what is held, as the user knows it.
        busy: what another process does that holds it.
        remedy: of a place that cannot be written.

    Raises:
        InputError: another process holds it, or the file cannot be written.
    """
    made, held = not lock.parent.exists(), FileLock(lock, timeout=0)
    try:
        with _uninterrupted():
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # that the file itself is the lock
                    held.acquire()
            except Timeout as error:
                killed = f"; if it was killed on another machine, delete {lock}"
                what_mends = _WAIT + killed if _names_its_holder(lock) else _WAIT
                raise InputError(busy, path=place, remedy=what_mends) from error
            except OSError as error:
                problem, what_mends = "nothing can be written there", remedy
                if error.errno in _NO_LOCKS:
                    problem = "the file system locks no files"
                    what_mends += " on another file system, or have locks switched on"
                elif leads_nowhere(lock.parent):
                    problem = "the link leads nowhere"
                    what_mends = f"make the folder to which it leads, or {remedy}"
                elif isinstance(error, PermissionError) and lock.exists():
                    problem = "another user works there, or was stopped there"
                    what_mends += f"; or, if nobody works there any more, delete {lock}"
                raise InputError(problem, path=place, found=str(error), remedy=what_mends) from error
        yield
    finally:
        try:
            _let_go(lock, held, made)
        except BaseException:  # also of a signal that came before it could be made to wait
            _let_go(lock, held, made)
            raise


def _let_go(lock: Path, held: FileLock, made: bool) -> None:
    with _uninterrupted():
        if held.is_locked:
            # While it is still held: whoever opened it before finds it gone and is turned away.
            with suppress(OSError):  # Windows removes no open file, and filelock does it there
                lock.unlink()
            held.release()
            if made:
                with suppress(OSError):
                    lock.parent.rmdir()


def _names_its_holder(lock: Path) -> bool:
    """Whether the file itself is the lock: it says then who made it, and is empty otherwise."""
    with suppress(OSError):
        return lock.stat().st_size > 0
    return False


_STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C, and other signals that end the work in order, wait until the block is over: a lock's file would stay."""
    caught = list[tuple[int, FrameType | None]]()
    numbers = [getattr(signal, name) for name in _STOPS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    for number in handlers:
        signal.signal(number, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            handlers[caught[0][0]](*caught[0])


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder in which results are written; see `hold`.

    Raises:
        InputError: another process works there, or nothing can be written there.
    """
    busy, remedy = "another process works in this folder", "give another folder with -o"
    with hold(folder / ".lock", place=folder, busy=busy, remedy=remedy):
        yield
