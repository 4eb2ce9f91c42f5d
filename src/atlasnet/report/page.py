"""One self-contained HTML page: text, tables that sort, figures; nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atlasnet.execution import atomic_path
from atlasnet.wording import counted

MOST_BYTES = 60 * 10**6  # of a page; mail and browsers have trouble with more
LONG_TABLE = 25  # rows, beyond which a table scrolls within itself
MANY_COLUMNS = 7  # beyond which a table is set smaller, and its first column stays where the others scroll sideways
LONG_HEADING = 12  # letters, beyond which the heading of a column is broken
NO_DEVICE = "Research software, not a medical device: what is shown here decides nothing about a patient."


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its text.

    Args:
        text: what it says.
        colour: ``#rrggbb`` of a square before it.
        link: the name of a file beside the page.
    """

    text: str
    colour: str = ""
    link: str = ""

    def html(self) -> str:
        """What stands in the cell."""
        said = escape(self.text)
        if self.link:
            said = f'<a href="{escape(quote(self.link))}">{said}</a>'
        return (f'<span class="swatch" style="background:{escape(self.colour)}"></span>' if self.colour else "") + said


class Page:
    """Collects the parts of a page; every text given is escaped.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._instead: dict[int, str] = {}  # by the place of a part that may be left out
        self._ends: dict[str, str] = {}

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str, *, small: bool = False) -> None:
        """A paragraph."""
        kind = ' class="note"' if small else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def warnings(self, texts: Sequence[str], none: str) -> None:
        """A box of warnings, or ``none`` as a paragraph where there are none."""
        if not texts:
            self.text(none)
            return
        count = counted(len(texts), "warning")
        items = "".join(f"<li>{escape(text)}</li>" for text in texts)
        self._parts.append(f'<div class="warnings" role="alert"><strong>{count}</strong><ul>{items}</ul></div>')

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        *,
        main: int | None = None,
        words: Sequence[str] = (),
    ) -> None:
        """A table that sorts by the column that is clicked.

        Args:
            head: names of the columns.
            rows: cells, as many as columns each.
            main: index of the row that is set in bold.
            words: columns besides the first that hold words, not numbers.
        """
        kinds = [' class="words"' if name in words else "" for name in head]
        names = "".join(f"<th{kind}>{_in_two_lines(name)}</th>" for name, kind in zip(head, kinds, strict=True))
        lines = []
        for index, row in enumerate(rows):
            cells = (
                f"<td{kind}>{cell.html() if isinstance(cell, Cell) else escape(cell)}</td>"
                for cell, kind in zip(row, kinds, strict=True)
            )
            kind = ' class="main"' if index == main else ""
            lines.append(f"<tr{kind}>" + "".join(cells) + "</tr>")
        body = "\n".join(lines)
        box = " ".join(["wide", *["long"] * (len(rows) > LONG_TABLE), *["dense"] * (len(head) > MANY_COLUMNS)])
        self._parts.append(
            f'<div class="{box}"><table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        )

    def svg(self, element: str, caption: str) -> None:
        """A figure that `atlasnet.report.curves.svg` gave; its colours follow the page's."""
        named = element.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
        self._parts.append(f'<figure class="drawing">{named}<figcaption>{escape(caption)}</figcaption></figure>')

    def image(self, path: str | Path, caption: str) -> None:
        """A PNG, its bytes in the page."""
        data = data_uri(Path(path).read_bytes(), "png")
        self.part(
            f'<figure class="picture"><img alt="{escape(caption)}" src="{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>",
            what=f"the picture: {caption}",
        )

    def part(self, html: str, *, what: str = "") -> None:
        """HTML of another module of this room, which has escaped what it was given.

        Where ``what`` names it, it may be left out of a page of more than `MOST_BYTES`.
        """
        if what:
            self._instead[len(self._parts)] = what
        self._parts.append(html)

    @contextmanager
    def fold(self, title: str, *, shown: bool = False) -> Iterator[None]:
        """What is added inside is seen when the title is clicked, or from the start where ``shown``."""
        self._parts.append(f"<details{' open' if shown else ''}><summary>{escape(title)}</summary>")
        yield
        self._parts.append("</details>")

    def once(self, name: str, html: str) -> None:
        """HTML at the end of the page, however often it is asked for under this name."""
        self._ends.setdefault(name, html)

    def html(self, most: int = MOST_BYTES) -> str:
        """The whole page, without the largest of its pictures and volumes where it would have more than ``most`` bytes.

        A sentence says what was left out, in its place. Text and tables all stay.
        """
        shown, ends = [*self._parts], [*self._ends.values()]
        size = len(self._framed("\n".join([*shown, *ends])).encode(errors="backslashreplace"))
        for place in sorted(self._instead, key=lambda place: -len(shown[place])):
            if size <= most:
                break
            said = f"To keep the page below {most / 10**6:.0f} MB, this is left out: {self._instead[place]}."
            sentence = f'<p class="note">{escape(said)}</p>'
            size += len(sentence.encode()) - len(shown[place].encode(errors="backslashreplace"))
            shown[place] = sentence
        return self._framed("\n".join([*shown, *ends]))

    def _framed(self, parts: str) -> str:
        """The page around its parts."""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n"
            f"<style>\n{asset('page.css')}</style>\n</head>\n<body>\n<h1>{escape(self.title)}</h1>\n{parts}\n"
            f"<script>\n{asset('page.js')}</script>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        with atomic_path(path) as temporary:  # names may be no Unicode
            temporary.write_text(self.html(), encoding="utf-8", errors="backslashreplace", newline="\n")
        return path


def data_uri(data: bytes, kind: str) -> str:
    """The bytes of a picture, ``png`` or ``jpeg``, as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def script_json(value: Any) -> str:
    """A ``<script>`` that holds data; nothing in it can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>'


def _in_two_lines(heading: str) -> str:
    """A heading of a column, which is broken where it is long and room is scarce, once, into the narrowest halves."""
    words = heading.split(" ") if len(heading) > LONG_HEADING else [heading]
    halves = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    best: tuple[str, ...] = min(halves, key=lambda pair: max(map(len, pair)), default=(heading,))
    return " ".join(f"<span>{escape(half)}</span>" for half in best)


@cache
def asset(name: str) -> str:
    """A text that is kept beside this module."""
    return files("atlasnet.report").joinpath("assets", name).read_text(encoding="utf-8")


def number(value: float | None, form: str = ".3f") -> str:
    """A number of a table, nothing where it is not defined."""
    return "" if value is None else format(value, form)
