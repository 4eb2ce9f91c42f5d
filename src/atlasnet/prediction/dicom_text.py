"""Text as DICOM's short and long strings allow it."""

from __future__ import annotations

LONGEST_STRING = 64
"""Characters of a long string (LO)."""


def short(text: str) -> str:
    """A text without backslashes and control characters, cut."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in text)[:LONGEST_STRING].strip() or "-"
