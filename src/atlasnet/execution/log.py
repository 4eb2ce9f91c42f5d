"""What was said, with the time, in a file: the same as on the terminal but for the names of people and places."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from atlasnet.errors import InputError
from atlasnet.execution.reporter import Reporter, T, WitnessReporter
from atlasnet.wording import QUOTED


class LogReporter(WitnessReporter):
    """Passes everything on and writes it as lines ``TIME note|warning|begin|done TEXT``, each at once.

    A log that can be written no more, of a full disk say, does not stop the work: nothing follows in it, of which the
    user is warned.

    Args:
        reporter: is told everything as it is.
        stream: gets the lines, the time in UTC.
        hide: applied to every text that is written, after what a file says in free text (`atlasnet.wording.quoted`) is
            taken out.

    Attributes:
        failure: why nothing more is written; None while all is well.
    """

    def __init__(self, reporter: Reporter, stream: TextIO, hide: Callable[[str], str] = str) -> None:
        super().__init__(reporter)
        self._stream, self._hide = stream, hide
        self.failure: OSError | None = None
        self._begun = False

    def write(self, kind: str, text: str) -> None:
        """A line in the log alone for each line of ``text``."""
        if self.failure is not None:
            return
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = self._hide(QUOTED.sub("<text>", text))
        lines = [f"{time} {kind} {line}\n" for line in told.splitlines() if line.strip()]
        try:
            self._stream.write("".join(lines))  # at once: another process may write there too
            self._stream.flush()
            self._begun = True
        except OSError as problem:
            self.failure = problem
            if self._begun:  # else whoever begins it looks at the failure
                super().warn(f"the log cannot be written any more, and ends here: {problem}")

    def note(self, text: str) -> None:
        """Write and pass on."""
        self.write("note", text)
        super().note(text)

    def warn(self, text: str) -> None:
        """Keep, write and pass on."""
        self.write("warning", text)
        super().warn(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Write when the task begins and when it is done, and pass on."""
        self.write("begin", description if total is None else f"{description}: {total}")
        count = 0
        for item in super().track(items, description, total):
            yield item
            count += 1
        self.write("done", f"{description}: {count}")


_OURS = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [a-z]+ ")


@contextmanager
def open_log(path: Path) -> Iterator[TextIO]:
    """The file, to be added to.

    Raises:
        InputError: it cannot be opened, or is another file than a log of ours.
    """
    try:
        if path.is_file():
            with path.open("rb") as there:
                begin = there.read(64)
            if begin and not _OURS.match(begin):
                raise InputError(
                    "this is not a log of AtlasNet, and would be damaged by one",
                    path=path,
                    expected="a new file, or one that --log began",
                    remedy="name another file after --log",
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise unwritable_log(path, error) from error
    try:
        yield stream
    finally:
        with suppress(OSError):  # of what could not be written before
            stream.close()


def unwritable_log(path: Path, problem: OSError) -> InputError:
    """The error of a log that cannot be written."""
    return InputError("the log cannot be written", path=path, found=str(problem), remedy="name another file")


class Hidden:
    """Replaces names and paths in a text, because folders and files are often called after the patient.

    Args:
        paths: by the word that stands for each: the path, and all that follows it below it up to a colon, a semicolon
            or the end of the line, becomes ``<WORD>``.
        names: become ``<1>``, ``<2>``, … in alphabetical order wherever they stand as a word.
    """

    def __init__(self, paths: Iterable[tuple[str, Path]], names: Collection[str]) -> None:
        roots = {text: word for word, path in paths for text in (str(path), str(path.absolute()), str(path.resolve()))}
        # A name that itself holds what ends a path is part of it.
        whole = [re.escape(name) for name in names if re.search("[:;] |[\r\n]", name)]
        below = rf"(?:{'|'.join([*sorted(whole, key=len, reverse=True), '.'])})*?"
        # The longest first: the path of a file is longer than that of its folder, which may be given too.
        self._paths = [
            (re.compile(rf"(?<![\w./-]){re.escape(text)}(?:[/\\]{below}(?=: |; |$)|{_end(text)})", re.M), f"<{word}>")
            for text, word in sorted(roots.items(), key=lambda root: -len(root[0]))
            if text not in (".", "/")
        ]
        self._numbers = {name: f"<{number}>" for number, name in enumerate(sorted(names), start=1)}
        pattern = "|".join(map(re.escape, sorted(self._numbers, key=len, reverse=True)))
        self._names = re.compile(rf"(?<![^\W_])(?:{pattern})(?![^\W_])") if pattern else None

    def __call__(self, text: str) -> str:
        """The text without them."""
        for pattern, word in self._paths:
            text = pattern.sub(word, text)
        return text if self._names is None else self._names.sub(lambda found: self._numbers[found[0]], text)


def _end(path: str) -> str:
    """What shows that the path ends here; ``in`` or ``data`` alone may be a word of the sentence."""
    return r"(?![\w-]|\.\w)" if re.search(r"[/\\]", path) else "(?=: |; |$)"
