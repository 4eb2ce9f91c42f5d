"""`Problem`: what is wrong with a cohort, said so that it can be mended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Args:
        text: what, and what mends it.
        subject: whose, or None for the cohort.
        path: the file or folder at fault.
        severity: an ``"error"`` keeps the cohort from being used, a ``"warning"`` does not.
    """

    text: str
    subject: str | None = None
    path: Path | None = None
    severity: Literal["error", "warning"] = "error"

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "severity": self.severity,
            "subject": self.subject,
            "path": None if self.path is None else str(self.path),
            "text": self.text,
        }

    def __str__(self) -> str:
        place = ": ".join(str(part) for part in (self.subject, self.path) if part is not None)
        return f"{place}: {self.text}" if place else self.text
