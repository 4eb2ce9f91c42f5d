"""One process at a time where the work of two would be mixed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from atlasnet.errors import InputError


@contextmanager
def hold(lock: Path, *, place: Path, busy: str, remedy: str) -> Iterator[None]:
    """Hold a lock for this process; it goes with the process, however that ends, and its file with the block.

    Args:
        lock: a file that is there for nothing else; its folder is made, and removed again where nothing came into it.
        place: what is held, as the user knows it.
        busy: what another process does that holds it.
        remedy: of a place that cannot be written.

    Raises:
        InputError: another process holds it, or the file cannot be written.
    """
    made = not lock.parent.exists()
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, timeout=0)
        held.acquire()
    except Timeout as error:
        raise InputError(busy, path=place, remedy="wait for it, or give this run a place of its own") from error
    except OSError as error:
        raise InputError("nothing can be written there", path=place, found=str(error), remedy=remedy) from error
    try:
        yield
    finally:
        # While it is still held: whoever opened it before finds it gone and is turned away.
        with suppress(OSError):  # Windows removes no open file, and filelock does it there
            lock.unlink()
        held.release()
        if made:
            with suppress(OSError):
                lock.parent.rmdir()


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder in which results are written; see `hold`.

    Raises:
        InputError: another process works there, or nothing can be written there.
    """
    busy, remedy = "another process works in this folder", "give another folder with -o"
    with hold(folder / ".lock", place=folder, busy=busy, remedy=remedy):
        yield
