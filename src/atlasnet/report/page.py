"""One self-contained HTML page: text, tables that sort, figures; nothing is loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from atlasnet.execution import atomic_path

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --line: #d5dae0; --soft: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --back: #14171b; --line: #3a4149; --soft: #1e2329; } }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th, td { border-bottom: 1px solid var(--line); padding: 0.3rem 0.6rem; text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 12rem; }
thead th { background: var(--soft); cursor: pointer; }
tr.main td { font-weight: bold; }
figure { margin: 1rem 0; padding: 0.5rem; background: #ffffff; color: #1b1f24; border: 1px solid var(--line); }
figure svg, figure img { max-width: 100%; height: auto; }
.note { font-size: 0.9rem; }
"""
_SCRIPT = """
for (const head of document.querySelectorAll("thead th")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], place = head.cellIndex;
  const down = head.dataset.down !== "1";
  head.dataset.down = down ? "1" : "0";
  const value = row => { const t = row.cells[place].textContent.trim(), n = parseFloat(t); return isNaN(n) ? t : n; };
  [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : (typeof x === "number" ? -1 : 1);
    return down ? -order : order; }).forEach(row => body.append(row));
});
"""


class Page:
    """Collects the parts of a page; every text given is escaped.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], *, main: int | None = None) -> None:
        """A table that sorts by the column that is clicked.

        Args:
            head: names of the columns.
            rows: cells, as many as columns each.
            main: index of the row that is set in bold.
        """
        names = "".join(f"<th>{escape(name)}</th>" for name in head)
        lines = []
        for index, row in enumerate(rows):
            kind = ' class="main"' if index == main else ""
            lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
        body = "\n".join(lines)
        self._parts.append(
            f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
        )

    def svg(self, element: str, caption: str) -> None:
        """A figure that `atlasnet.report.curves.svg` gave."""
        self._parts.append(f"<figure>{element}<figcaption>{escape(caption)}</figcaption></figure>")

    def image(self, path: str | Path, caption: str) -> None:
        """A PNG, its bytes in the page."""
        data = base64.b64encode(Path(path).read_bytes()).decode("ascii")
        self._parts.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The whole page."""
        parts = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n"
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(self.title)}</h1>\n{parts}\n"
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page, whole or not at all."""
        path = Path(path)
        with atomic_path(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path
