"""A page of ours as a reader finds it: its elements, its tables, its pictures."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

VOID = {"meta", "link", "img", "input", "br"}
LOADING = {"src", "href", "data", "srcset", "poster", "action"}


class Reader(HTMLParser):
    """Parses a page, and notes what is not well-formed or would be loaded from somewhere."""

    def __init__(self, page: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text = ""
        self._open: list[str] = []
        self._attributes: dict[str, str] = {}
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        self.faults += [f"<{name}> is never closed" for name in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self._open.append(tag)
        self.loads += [v for name, v in self._attributes.items() if name in LOADING and not v.startswith("data:")]
        if tag == "img":
            self.images.append(self._attributes)
        elif tag == "svg" and not self._attributes.get("aria-label"):
            self.faults.append("a drawing without a name")
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append((self._attributes, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "svg" not in self._open:
            self.faults.append(f"<{tag}/> outside a drawing")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif "style" not in self._open:
            self.text += data
            if "td" in self._open or "th" in self._open:
                self.tables[-1][-1][-1] += data

    def table(self, heading: str) -> list[dict[str, str]]:
        """The rows of the table whose first column has this heading, each by the headings."""
        (found,) = [table for table in self.tables if table[0][0] == heading]
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def check(page: Path) -> Reader:
    """Read a page; fail where it is not well-formed, loads anything, or shows a picture without a word for it."""
    found = Reader(page)
    assert found.faults == []
    assert [load for load in found.loads if "/" in load or ":" in load] == []
    assert all(image.get("alt") for image in found.images)
    return found


def picture(address: str) -> bytes:
    """The bytes of a picture that a page holds."""
    return base64.b64decode(address.partition("base64,")[2])


def pixels(data: bytes) -> np.ndarray:
    """Of an encoded picture, (rows, columns, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
