"""How a label is told to other software: codes for what it is, and a colour.

``dataset.json`` may say both, label by label; what it leaves out is neutral:

    "segments": {
      "left lung": {
        "category": ["123037004", "SCT", "Anatomical Structure"],
        "type": ["39607008", "SCT", "Lung"],
        "modifier": ["7771000", "SCT", "Left"],
        "colour": "#80ae80"
      }
    }

A code is its value, its scheme and its meaning, as in DICOM PS3.16; ``modifier`` is optional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from atlasnet.cohort.structures import Values
from atlasnet.errors import InputError

# Okabe and Ito's colours, which people with any colour vision tell apart (jfly.uni-koeln.de/color).
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#D55E00")

# Of a second round of the palette the colours are darker, of a third lighter, and so on: the share of black or white.
_DARKEST = 0.6

_KEYS = {"category", "type", "modifier", "colour"}
_LONGEST = (16, 16, 64)  # characters that DICOM allows for value, scheme and meaning


class Code(NamedTuple):
    """A coded concept of a terminology such as SNOMED CT (scheme ``SCT``)."""

    value: str
    scheme: str
    meaning: str


UNSPECIFIED = Code("85756007", "SCT", "Tissue")
"""Category and type of a label that the table does not describe: what 3D Slicer says of a segment without a name."""


@dataclass(frozen=True)
class Segment:
    """One label, or region of several, as other software is told of it.

    Args:
        name: of the label.
        value: in label files; 0 of a region, which has none of its own.
        category: the general kind, of DICOM's context group 7150.
        kind: what it is.
        modifier: which of several, left or right say.
        colour: ``#rrggbb``.
        region: the values of a region.
    """

    name: str
    value: int
    category: Code
    kind: Code
    modifier: Code | None
    colour: str
    region: tuple[int, ...] = ()

    @property
    def values(self) -> tuple[int, ...]:
        """Those of its voxels in label files."""
        return self.region or (self.value,)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


def palette_colour(place: int) -> str:
    """A colour for the label or curve at this place of a list, ``#rrggbb``: no other place has the same."""
    turn, index = divmod(place, len(PALETTE))
    shares, step, rest = 0.0, 0.5, turn + 1
    while rest:  # the van der Corput sequence from 1/2: 1/2, 1/4, 3/4, 1/8 and so on
        shares, step, rest = shares + step * (rest % 2), step / 2, rest // 2
    blend = 2 * _DARKEST * (shares - 0.5)
    ground = 255 if blend > 0 else 0
    channels = bytes.fromhex(PALETTE[index][1:])
    return "#" + "".join(f"{round(channel + abs(blend) * (ground - channel)):02X}" for channel in channels)


def label_segments(
    labels: Mapping[str, int], table: Mapping[str, Any], regions: Mapping[str, Values] | None = None
) -> tuple[Segment, ...]:
    """Describe every label but the background, in the order of their values.

    Args:
        labels: name to value.
        table: what ``dataset.json`` says under ``segments``, possibly nothing.
        regions: that the table may describe too, see `region_segments`.

    Raises:
        InputError: an entry is for no label, or is not understood.
    """
    if not isinstance(table, Mapping):
        raise InputError("'segments' is not an object", expected="one entry per label", found=type(table).__name__)
    unknown = sorted(set(table) - {name for name, value in labels.items() if value != 0} - _several(regions).keys())
    if unknown:
        raise InputError("'segments' describes labels that there are not", found=", ".join(map(repr, unknown)))
    described: list[Segment] = []
    for name, value in sorted(labels.items(), key=lambda item: item[1]):
        if value != 0:
            described.append(_segment(name, value, table.get(name, {}), palette_colour(len(described))))
    return tuple(described)


def region_segments(
    labels: Mapping[str, int], table: Mapping[str, Any], regions: Mapping[str, Values]
) -> tuple[Segment, ...]:
    """Describe every region of several values, in their order; their colours follow those of the labels.

    Args:
        labels: name to value.
        table: what ``dataset.json`` says under ``segments``.
        regions: name to values.

    Raises:
        InputError: an entry is not understood.
    """
    first = sum(value != 0 for value in labels.values())
    return tuple(
        _segment(name, 0, table.get(name, {}), palette_colour(first + place), values)
        for place, (name, values) in enumerate(_several(regions).items())
    )


def _several(regions: Mapping[str, Values] | None) -> dict[str, tuple[int, ...]]:
    """The regions of several values."""
    return {name: values for name, values in (regions or {}).items() if isinstance(values, tuple)}


def _segment(name: str, value: int, entry: Any, colour: str, region: tuple[int, ...] = ()) -> Segment:
    if not isinstance(entry, Mapping) or not set(entry) <= _KEYS:
        raise InputError(
            f"the segment {name!r} is not understood", expected=", ".join(sorted(_KEYS)), found=repr(entry)
        )
    if ("category" in entry) != ("type" in entry):
        raise InputError(f"the segment {name!r} needs both a category and a type, or neither", found=repr(entry))
    chosen = entry.get("colour", colour)
    if not isinstance(chosen, str) or not re.fullmatch("#[0-9A-Fa-f]{6}", chosen):
        raise InputError(f"the colour of segment {name!r} is not understood", expected="#rrggbb", found=repr(chosen))
    return Segment(
        name,
        value,
        _code(name, entry["category"]) if "category" in entry else UNSPECIFIED,
        _code(name, entry["type"]) if "type" in entry else UNSPECIFIED,
        _code(name, entry["modifier"]) if "modifier" in entry else None,
        chosen,
        region,
    )


def _code(name: str, parts: Any) -> Code:
    valid = (
        isinstance(parts, list)
        and len(parts) == 3
        and all(isinstance(part, str) and 0 < len(part) <= most for part, most in zip(parts, _LONGEST, strict=True))
    )
    if not valid:
        raise InputError(
            f"a code of segment {name!r} is not understood",
            expected='value, scheme and meaning, such as ["39607008", "SCT", "Lung"]',
            found=repr(parts),
        )
    return Code(*parts)
