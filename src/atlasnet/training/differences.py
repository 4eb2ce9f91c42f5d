"""What was asked for then and is asked for now, where the two are not the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from atlasnet.cohort.subject import HIDDEN
from atlasnet.execution import digest
from atlasnet.training.update import Changes
from atlasnet.wording import shortened

_HASH = re.compile(r"\b([0-9a-f]{8})(?:[0-9a-f]{12}|[0-9a-f]{56})\b")  # of a value, of a file
_LONGEST = 60  # characters of a value
_GROUP = 3  # keys of a group that are told one by one, though the other side has none of them
_MOST = 12  # differences that are told


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON-able values, key by key: ``"epochs: 30 there, 60 asked for"``.

    Of a group of many keys of which the other side has none, their names are told alone, as one difference.
    """
    one_sided = [value if isinstance(value, Mapping) and len(value) > _GROUP else {} for value in (before, now)]
    if (not before or not now) and any(one_sided):
        there, asked = (f"{{{shortened(list(group), 4)}}}" if group else "nothing" for group in one_sided)
        return [f"{name}: {there} there, {asked} asked for"]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found: list[str] = []
        for key in dict.fromkeys((*before, *now)):
            found += differences(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        return found
    if digest(before) == digest(now):
        return []
    return [f"{name}: {_shown(before)} there, {_shown(now)} asked for"]


def changed_subjects(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How subjects differ, by what tells their files, as for `Changes.between`; which files where that has names."""
    found = Changes.between(before, now)
    others = [f"{name}{_kinds(before[name], now[name])}" for name in found.changed]
    parts = (("more subjects", found.added), ("without", found.removed), ("other data of", others))
    return [f"{what} {shortened(names)}" for what, names in parts if names]


def told(found: list[str]) -> str | None:
    """The differences in one line; None where there are none."""
    rest = len(found) - _MOST
    return "; ".join([*found[:_MOST], *([f"and {rest} more differences"] if rest > 0 else [])]) or None


def _kinds(before: Any, now: Any) -> str:
    """What differs of a subject: (images), (labels), (mask), (what was annotated)."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return ""
    kinds = [kind for kind in dict.fromkeys((*before, *now)) if before.get(kind) != now.get(kind)]
    return f" ({', '.join('what was annotated' if kind == HIDDEN else kind for kind in kinds)})"


def _shown(value: Any) -> str:
    if value is None or value == {}:
        return "nothing"
    text = _HASH.sub(r"\1…", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
