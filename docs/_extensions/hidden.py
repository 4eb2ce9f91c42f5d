"""Directives that only the site understands, in comments that a code forge does not show.

A comment that begins with ``<!-- site`` holds MyST; its marks are taken away before the page is parsed. All else of the
pages is plain Markdown, with links that lead on everywhere.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

COMMENT = re.compile(r"^<!-- site\n(?P<directives>.*?)^-->$", re.DOTALL | re.MULTILINE)


def shown(_app: Sphinx, _page: str, content: list[str]) -> None:
    """Sphinx gives the text of every page as the one item of ``content``."""
    content[0] = COMMENT.sub(lambda found: found["directives"], content[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("source-read", shown)
    return {"parallel_read_safe": True}
