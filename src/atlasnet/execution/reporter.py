"""How long work tells of itself: bars on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Protocol, TypeVar

from tqdm import tqdm

from atlasnet.wording import duration

T = TypeVar("T")
_SILENCE = 30.0  # seconds after which a task tells how far it is


def say(text: str) -> None:
    """Write a line to standard error, above a running bar. Where it takes none, of a full disk say, work goes on."""
    with suppress(OSError):
        # A signal while tqdm's lock is taken would end in an error of its release.
        tqdm.write(text, file=sys.stderr, nolock=True)


class Reporter(Protocol):
    """What a caller may pass in to follow the work."""

    def note(self, text: str) -> None:
        """One line about what happens now."""

    def warn(self, text: str) -> None:
        """One line that the user should act on or know."""

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` while showing how many of ``total`` are done."""


class SilentReporter:
    """Says nothing; warnings are kept in ``warnings`` for whoever writes the run record."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Keep the warning."""
        self.warnings.append(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items``."""
        yield from items


class WitnessReporter(SilentReporter):
    """Passes everything on to another reporter and keeps the warnings, for the record of one piece of work."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def note(self, text: str) -> None:
        """Pass the line on."""
        self._reporter.note(text)

    def warn(self, text: str) -> None:
        """Keep the warning and pass it on."""
        super().warn(text)
        self._reporter.warn(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Pass the task on."""
        yield from self._reporter.track(items, description, total)


class NamingReporter(WitnessReporter):
    """Passes everything on to another reporter, warnings with the name of what they are about before them.

    Args:
        reporter: is told.
        name: of the case that is worked on.
    """

    def __init__(self, reporter: Reporter, name: str) -> None:
        super().__init__(reporter)
        self._name = name

    def warn(self, text: str) -> None:
        """Keep the warning and pass it on, both with the name."""
        super().warn(f"{self._name}: {text}")


class TextReporter(SilentReporter):
    """Writes to standard error: bars on a terminal; elsewhere a line per task, and now and then one on its way.

    Of a task within another, elsewhere only that it is on its way is told.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks = 0

    def note(self, text: str) -> None:
        """Print the line above a running bar."""
        say(text)

    def warn(self, text: str) -> None:
        """Keep and print the warning."""
        super().warn(text)
        say(f"warning: {text}")

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Show a bar on a terminal; elsewhere one line when done, and one now and then before."""
        if sys.stderr.isatty():
            yield from tqdm(items, description, total=total, file=sys.stderr, leave=False, dynamic_ncols=True)
            return
        self._tasks += 1
        try:
            yield from self._told(items, description, total)
        finally:
            self._tasks -= 1

    def _told(self, items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
        count, begin = 0, time.monotonic()
        told = begin
        for item in items:
            yield item
            count += 1
            now = time.monotonic()
            if total is not None and count < total and now - told >= _SILENCE:
                told = now
                left = duration((now - begin) / count * (total - count))
                self.note(f"{description}: {count} of {total} done, about {left} left")
        if self._tasks == 1:
            self.note(f"{description}: {count} done")
