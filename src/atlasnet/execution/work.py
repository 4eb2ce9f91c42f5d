"""The work folder: finished pieces of work, each under a key made of all that it depends on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atlasnet.errors import InputError

LEFTOVER = ".partial-"


class WorkFolder:
    """Keyed entries below one folder, each a folder that is whole or absent. Deleting any of it costs time only.

    Args:
        root: created when needed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def entry(self, kind: str, key: str) -> Path:
        """Where the finished piece ``key`` of ``kind`` lies, or will lie."""
        return self.root / kind / key

    @contextmanager
    def making(self, kind: str, key: str) -> Iterator[Path]:
        """Give an empty folder that becomes ``entry(kind, key)`` when the block ends without an exception."""
        final = self.entry(kind, key)
        partial = final.with_name(LEFTOVER + final.name)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(final)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however that ends.

        Raises:
            InputError: another process holds it, or the folder cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise InputError(
                "another process works in this folder",
                path=self.root,
                remedy="wait for it, or give this run a folder of its own with --work",
            ) from error
        except OSError as error:
            raise InputError(
                "the work folder cannot be written",
                path=self.root,
                found=str(error),
                remedy="name a folder that can be written with --work",
            ) from error
        try:
            yield
        finally:
            lock.release()
