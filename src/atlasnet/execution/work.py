"""The work folder: finished pieces of work with their checksums, each under a key made of all that it depends on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from atlasnet.execution.files import errors_named, file_digest, move, read_json, write_json
from atlasnet.execution.locks import hold

LEFTOVER = ".partial-"
CHECKSUMS = "checksums.json"


class WorkFolder:
    """Keyed entries below one folder, each a folder that is whole or absent. Deleting any of it costs time only.

    Args:
        root: created when needed.
        earlier: another work folder, from which finished pieces are taken over as they are asked for; it is only read.
        frozen: only look at it: nothing is taken over, and what is damaged stays.
    """

    def __init__(self, root: str | Path, earlier: str | Path | None = None, *, frozen: bool = False) -> None:
        self.root, self.earlier = Path(root), None if earlier is None else Path(earlier)
        self.frozen = frozen

    def entry(self, kind: str, key: str) -> Path:
        """Where the finished piece ``key`` of ``kind`` lies, or will lie."""
        return self.root / kind / key

    def lying(self, kind: str, key: str) -> Path | None:
        """Where the piece lies now, here or in the earlier folder, unverified; None where it is still to be made."""
        places = [self.entry(kind, key), *([] if self.earlier is None else [self.earlier / kind / key])]
        return next((place for place in places if place.is_dir()), None)

    @contextmanager
    def making(self, kind: str, key: str) -> Iterator[Path]:
        """Give an empty folder that becomes ``entry(kind, key)`` when the block ends without an exception.

        Raises:
            OSError: a disk is full, for instance; it names the folder where whoever raised it named no file.
        """
        final = self.entry(kind, key)
        partial = final.with_name(LEFTOVER + final.name)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with errors_named(partial):
            yield partial
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            write_json(partial / CHECKSUMS, {path.relative_to(partial).as_posix(): file_digest(path) for path in files})
        move(partial, final)

    def finished(self, kind: str, key: str, warn: Callable[[str], None]) -> bool:
        """Whether the piece is there, every file as it was written.

        One that is damaged is removed, of which ``warn`` is told, and so will be made again.
        """
        folder = self.entry(kind, key)
        if not folder.is_dir() and (self.frozen or not self._taken_over(kind, key)):
            return False
        try:
            sums = read_json(folder / CHECKSUMS)
            damaged = [name for name, checksum in sums.items() if file_digest(folder / name) != checksum]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            damaged = [f"{CHECKSUMS} ({error})"]
        if damaged:
            warn(f"{folder}: {', '.join(damaged)} is not what was written; the work is done again")
            if not self.frozen:
                shutil.rmtree(folder)
        return not damaged

    def _taken_over(self, kind: str, key: str) -> bool:
        """Whether the earlier folder had the piece to give."""
        found, final = self.lying(kind, key), self.entry(kind, key)
        if found is None:
            return False
        partial = final.with_name(LEFTOVER + final.name)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _take(found, partial)
        except OSError:  # whoever works there may be removing it; it can be made
            shutil.rmtree(partial, ignore_errors=True)
            return False
        move(partial, final)
        return True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however that ends.

        Raises:
            InputError: another process holds it, or the folder cannot be written.
        """
        busy, remedy = "another process works in this folder", "name a folder that can be written with --work"
        with hold(self.root / "lock", place=self.root, busy=busy, remedy=remedy):
            yield


def _take(source: Path, target: Path) -> None:
    """Make a folder, with the permissions of new ones, that holds what ``source`` does."""
    target.mkdir(parents=True)
    for entry in source.iterdir():
        (_take if entry.is_dir() else _link)(entry, target / entry.name)


def _link(source: Path, target: Path) -> None:
    """Another name for the same file, which costs no space, or else a copy; a finished piece is never written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
