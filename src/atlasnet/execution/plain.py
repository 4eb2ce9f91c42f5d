"""Numbers of NumPy and torch in options, as Python's own: JSON, which keys and records are made of, knows no others."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def plain(value: Any) -> Any:
    """A number or an array of another library as a number or a list; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def make_plain(options: Any) -> None:
    """Make the fields of a frozen dataclass `plain`, as the first thing after it is made."""
    for each in fields(options):
        object.__setattr__(options, each.name, plain(getattr(options, each.name)))
