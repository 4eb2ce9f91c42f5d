"""Numbers for people; loads nothing, as `atlasnet.errors`."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in s."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds to two digits or so, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
