"""The blocks of code of README and the documentation site, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts))
SHELL = ("bash", "sh", "console", "")  # "": indented blocks, which hold nothing but command lines
RUN = ("python", *SHELL)
SHOWN = ("json", "text")
_NOT_RUN = re.compile(r"<!--\s*not run: (?P<reason>.+?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        page: its path below the repository.
        line: its first, from 1.
        language: of the fence, empty for an indented block.
        text: what it holds.
        not_run: why it cannot run here, as the comment before it says.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Its command lines, continued ones joined, comments gone; none of a block of Python."""
        if self.language not in SHELL:
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Those of a page, in order; an unknown language is an error, because nobody would notice that it is not run."""
    found, reason = [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            comment = _NOT_RUN.search(token.content)
            reason = comment["reason"] if comment else None
            continue
        if token.type in ("fence", "code_block") and token.map is not None:
            language = token.info.strip()
            name = page.relative_to(ROOT).as_posix()
            if language in RUN:
                found.append(Block(name, token.map[0] + 1, language, token.content, reason))
            elif language not in SHOWN:
                raise ValueError(f"{name}:{token.map[0] + 1}: a block in {language!r}")
        reason = None
    return found


def calls(command: str) -> Iterator[list[str]]:
    """The arguments of every call of ``atlasnet`` in a command line."""
    for part in re.split(r"\$\(|\)|\||&&|;", command):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:  # half of a quotation, cut off with what is around a call
            words = shlex.split(part.replace('"', ""), comments=True)
        if "atlasnet" in words and words[0] in ("atlasnet", "srun"):
            yield words[words.index("atlasnet") + 1 :]


def options(page: Path) -> set[str]:
    """The options that the text of a page names, as in ``--fusion``, but those of other commands."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text(encoding="utf-8"))
    ours = [span for span in spans if not span.startswith(("pip ", "sbatch ", "docker "))]
    return {word for span in ours for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
