"""Numbers and lists for people; loads nothing, as `atlasnet.errors`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import ceil

MANY_LABELS = 12
"""With more, a table has a row for each label and none a column: nobody reads a line of a hundred columns."""

QUOTED = re.compile("“[^”]*”")
"""What `quoted` gives; no log takes it."""


def counted(number: int, noun: str) -> str:
    """A number of things whose plural ends in s: 1 atlas, 2 atlases, 2 patches, 2 epochs."""
    hissing = noun.endswith(("s", "x", "ch", "sh")) and not noun.endswith("epoch")
    return f"{number} {noun}" + ("" if number == 1 else "es" if hissing else "s")


def shortened(names: Sequence[str], most: int = 10) -> str:
    """At most ``most`` names, then how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def in_lines(texts: Sequence[str], most: int = 20) -> str:
    """At most ``most`` texts, a line each, then how many more there are."""
    rest = len(texts) - most
    return "\n".join([*texts[:most], *([f"... and {rest} more"] if rest > 0 else [])])


def lengths(values: Iterable[float]) -> str:
    """Lengths along axes, to four digits: 0.7 x 0.7 x 3."""
    return " x ".join(f"{value:.4g}" for value in values)


def size(mib: float) -> str:
    """MiB to two digits or so, in KiB, MiB or GiB; what is something is never called none."""
    if mib < 1:
        return f"{ceil(mib * 1024)} KiB"
    if mib < 1000:
        return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.1f} MiB"
    return f"{mib / 1024:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds to two digits or so, in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def on_one_line(text: str) -> str:
    """Free text as messages show it, without the marks that stand around it there."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(re.sub("[“”]", '"', printable).split())


def quoted(text: str) -> str:
    """Free text, in which people type names, on one line between the marks by which a log knows it."""
    return f"“{on_one_line(text)}”"


def series_name(wanted: str) -> str:
    """A DICOM series as it was asked for: a number or UID, or else a description, in which people type names."""
    return wanted if re.fullmatch(r"[\d.]+", wanted) else quoted(wanted)
