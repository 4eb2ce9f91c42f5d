"""The spacing of the networks' grid as a person asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

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
    if _are_lengths(given):
        x, y, z = given
        return x, y, z
    raise InputError(
        "the spacing is not understood",
        expected="one length above 0 mm, three (x, y, z), or scan",
        found=" ".join(words),
    )


def require_spacing(wanted: WantedSpacing | None) -> None:
    """Refuse what a program asks for and is no spacing.

    Raises:
        InputError: it is neither None, nor ``"scan"``, nor three lengths.
    """
    if not (wanted is None or wanted == "scan" or _are_lengths(wanted)):
        raise InputError(
            "the spacing is not understood",
            expected="(x, y, z), each above 0 mm, or 'scan'",
            found=repr(wanted),
        )


def _are_lengths(values: Any) -> bool:
    three = isinstance(values, (tuple, list)) and len(values) == 3
    return three and all(isinstance(value, (int, float)) and 0 < value < math.inf for value in values)


def check_spacing(found: Spacing, wanted: WantedSpacing, of_scans: Callable[[], Spacing], path: Path) -> None:
    """Refuse a plan that lies at ``path`` and has another spacing than the one that was asked for.

    Args:
        found: of the plan.
        wanted: what was asked for.
        of_scans: measures that of the scans, where it was asked for.
        path: of the plan.

    Raises:
        InputError: it has another one.
    """
    asked = of_scans() if wanted == "scan" else tuple(wanted)
    if found != asked:
        raise InputError(
            "the plan that lies here has another spacing than was asked for",
            path=path,
            expected=f"{lengths(asked)} mm",
            found=f"{lengths(found)} mm",
            remedy="delete the file, or do not ask for a spacing",
        )
