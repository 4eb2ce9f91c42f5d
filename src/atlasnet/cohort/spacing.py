"""The spacing of the networks' grid as a person asks for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from atlasnet.errors import InputError
from atlasnet.wording import lengths

Spacing = tuple[float, float, float]
WantedSpacing = Spacing | Literal["scan"]
"""(x, y, z) in mm, or that of the scans."""


def wanted_spacing(words: Sequence[str]) -> WantedSpacing:
    """What a person asks for: ``scan``, one length in mm for all axes, or three (x, y, z).

    Raises:
        InputError: it is none of these.
    """
    if list(words) == ["scan"]:
        return "scan"
    try:
        given = [float(word) for word in words]
    except ValueError:
        given = []
    if len(given) == 1:
        given *= 3
    if len(given) == 3 and all(0 < length < math.inf for length in given):
        x, y, z = given
        return x, y, z
    raise InputError(
        "the spacing is not understood",
        expected="one length above 0 mm, three (x, y, z), or scan",
        found=" ".join(words),
    )


def check_spacing(found: Spacing, asked: Spacing, path: Path) -> None:
    """Refuse a plan that lies at ``path`` and has another spacing than the one that was asked for.

    Raises:
        InputError: it has another one.
    """
    if found != asked:
        raise InputError(
            "the plan that lies here has another spacing than was asked for",
            path=path,
            expected=f"{lengths(asked)} mm",
            found=f"{lengths(found)} mm",
            remedy="delete the file, or do not ask for a spacing",
        )
