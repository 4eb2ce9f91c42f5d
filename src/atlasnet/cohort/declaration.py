"""What ``dataset.json`` declares: channels and labels, in nnU-Net's (both versions) or the Decathlon's words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from atlasnet.cohort.annotated import ANNOTATED, hidden_values
from atlasnet.cohort.segments import label_segments, region_segments
from atlasnet.cohort.structures import Hidden, Values, all_values
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import read_json
from atlasnet.volume.io import LARGEST_LABEL

BACKGROUND = "background"
IGNORE = "ignore"

_CHANNELS = ("channel_names", "modality")  # the same in nnU-Net's words and in the Decathlon's
_KEYS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(_CHANNELS, (dict, list)),
    "labels": (dict,),
    "training": (list,),
    "dataset": (dict,),
    "numTraining": (int,),
    "file_ending": (str,),
    "segments": (dict,),
    ANNOTATED: (dict,),
}
"""What is read of ``dataset.json``, and what it may be."""

_ALIKE = 0.7  # of the letters of two keys: as many have "annotation" and "annotated" in common


@dataclass(frozen=True)
class Declaration:
    """The parts of ``dataset.json`` that AtlasNet uses.

    Args:
        channels: names in the order of the channels, or None where not declared.
        labels: name to value, background included, the ignore label not; None where not declared. A value that regions
            alone hold is called ``label 2`` and so on.
        regions: name to values of all that was declared, where some of it is a list of values; else empty.
        ignore_label: the value of voxels that nobody annotated, or None.
        training: the list of cases of the Decathlon and of nnU-Net's first version, empty elsewhere.
        dataset: the images and labels of each case, by its name, of nnU-Net's second version; None elsewhere.
        count: how many training cases there are said to be, or None.
        file_ending: nnU-Net's, or None.
        segments: codes and colours by label name; see `atlasnet.cohort.segments`.
        hidden: by the name of a case, what nobody annotated in it, see `Subject`; all others have all labels.
        doubts: keys that are passed over and may be misspelt ones, for a person.
    """

    channels: tuple[str, ...] | None = None
    labels: dict[str, int] | None = None
    regions: dict[str, Values] = field(default_factory=dict)
    ignore_label: int | None = None
    training: tuple[Mapping[str, Any], ...] = ()
    dataset: Mapping[str, Any] | None = None
    count: int | None = None
    file_ending: str | None = None
    segments: Mapping[str, Any] = field(default_factory=dict)
    hidden: Mapping[str, Hidden] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def read_declaration(path: Path) -> Declaration:
    """Read ``dataset.json``.

    Raises:
        CohortError: it is not JSON, or its channels, its labels or which were annotated are not understood.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CohortError("dataset.json cannot be read", path=path, found=str(error)) from error
    if not isinstance(content, dict):
        raise CohortError("dataset.json is not an object", path=path, found=type(content).__name__)
    labels, regions, ignore = _labels(path, content)
    training = content.get("training", [])
    if not isinstance(training, list):
        raise CohortError("'training' in dataset.json is not a list", path=path, found=type(training).__name__)
    cases = tuple(_slashes(case if isinstance(case, dict) else {"image": case}) for case in training)
    ending = content.get("file_ending")
    if ending is not None:
        if not isinstance(ending, str) or not ending.strip("."):
            raise CohortError(
                "'file_ending' in dataset.json is not a text such as .nii.gz", path=path, found=repr(ending)
            )
        ending = "." + ending.lower().lstrip(".")
    segments = content.get("segments", {})
    try:
        label_segments(labels or {}, segments, regions)
        region_segments(labels or {}, segments, regions)
    except InputError as error:
        raise CohortError(
            error.problem, path=path, expected=error.expected, found=error.found, remedy=error.remedy
        ) from error
    dataset, count = content.get("dataset"), content.get("numTraining")
    if dataset is not None and not isinstance(dataset, dict):
        raise CohortError("'dataset' in dataset.json is not an object", path=path, found=type(dataset).__name__)
    return Declaration(
        channels=_channels(path, content),
        labels=labels,
        regions=regions,
        ignore_label=ignore,
        training=cases,
        dataset=_slashes(dataset),
        count=count if isinstance(count, int) else None,
        file_ending=ending,
        segments=segments,
        hidden=hidden_values(content.get(ANNOTATED, {}), labels, regions, path),
        doubts=tuple(_misspelt(content)),
    )


def _misspelt(content: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are none of `_KEYS`, and are written and filled almost like one that is not there."""
    there = {*content, *(_CHANNELS if any(name in content for name in _CHANNELS) else ())}
    for key, value in content.items():
        possible = [name for name, kinds in _KEYS.items() if name not in there and isinstance(value, kinds)]
        if key not in _KEYS and (near := get_close_matches(key.lower(), possible, 1, _ALIKE)):
            yield f"{key!r} in dataset.json is passed over; if {near[0]!r} is meant, call it so"


def _slashes(value: Any) -> Any:
    """The same with paths as every system reads them: a program on Windows may have written backslashes."""
    if isinstance(value, str):
        return value.replace("\\", "/")
    if isinstance(value, list):
        return [_slashes(item) for item in value]
    return {key: _slashes(item) for key, item in value.items()} if isinstance(value, dict) else value


def _channels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    key = next((key for key in _CHANNELS if key in content), None)
    if key is None:
        return None
    names = content[key]
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    valid = isinstance(names, dict) and bool(names) and all(isinstance(name, str) for name in names.values())
    if not valid or sorted(names) != sorted(str(i) for i in range(len(names))):
        raise CohortError(
            f"{key!r} in dataset.json is not understood",
            path=path,
            expected='names by number from "0" on, such as {"0": "CT"}',
            found=repr(names),
        )
    return tuple(names[str(i)] for i in range(len(names)))


def _labels(path: Path, content: Mapping[str, Any]) -> tuple[dict[str, int] | None, dict[str, Values], int | None]:
    """Labels, regions and the ignore label."""
    if "labels" not in content:
        return None, {}, None
    declared = content["labels"]
    if not isinstance(declared, dict) or not declared:
        raise CohortError(
            "'labels' in dataset.json is not understood",
            path=path,
            expected='{"background": 0, "lung": 1} or {"0": "background", "1": "lung"}',
            found=repr(declared),
        )
    every: dict[str, Values] = {}
    for key, value in declared.items():
        name, numbers = (value, key) if isinstance(value, str) and _is_whole(key) else (key, value)
        if str(name) in every:
            raise CohortError(f"two labels are named {name!r}", path=path)
        if isinstance(numbers, list):
            values = tuple(sorted({_value(path, name, number) for number in numbers}))
            if not values or 0 in values:
                raise CohortError(
                    f"the region {name!r} in dataset.json is not understood",
                    path=path,
                    expected="a list of the label values that it is made of, none of them the background 0",
                    found=repr(numbers),
                )
            every[str(name)] = values[0] if len(values) == 1 else values
        else:
            every[str(name)] = _value(path, name, numbers)
    ignored = [name for name in every if name.casefold() == IGNORE]
    if len(ignored) > 1:
        raise CohortError("two labels are to be ignored", path=path, found=", ".join(map(repr, ignored)))
    ignore = every.pop(ignored[0]) if ignored else None
    alike = [values for values in every.values() if [*every.values(), ignore].count(values) > 1]
    if alike:
        twice = sorted({all_values(values) for values in alike})
        found = ", ".join(" and ".join(map(str, values)) for values in twice)
        raise CohortError("two labels have the same value", path=path, found=found)
    if isinstance(ignore, tuple) or any(ignore in all_values(values) for values in every.values()):
        raise CohortError("the value of the label 'ignore' is part of a region", path=path, found=repr(declared))
    labels = {name: values for name, values in every.items() if isinstance(values, int)}
    if labels.get(BACKGROUND, 0) != 0 or ignore == 0:
        raise CohortError("the background must have the value 0", path=path, found=repr(declared))
    if 0 not in labels.values():
        labels = {BACKGROUND: 0, **labels}
    structures = {name: values for name, values in every.items() if values != 0}
    regions = structures if any(isinstance(values, tuple) for values in structures.values()) else {}
    unnamed = {value for values in regions.values() for value in all_values(values)} - set(labels.values())
    for value in unnamed:
        if unnamed_label(value) in every:
            raise CohortError(
                f"{unnamed_label(value)!r} is what the value {value} is called, which regions alone hold",
                path=path,
                remedy=f"give the value {value} a name in 'labels', or call the other label otherwise",
            )
        labels[unnamed_label(value)] = value
    return dict(sorted(labels.items(), key=lambda item: (item[1] != 0, item[1]))), regions, ignore


def unnamed_label(value: int) -> str:
    """What a label is called that nobody gave a name."""
    return f"label {value}"


def _value(path: Path, name: str, number: Any) -> int:
    """A label's value.

    Raises:
        CohortError: it is none.
    """
    if not _is_whole(number):
        raise CohortError(f"the value of label {name!r} is not a whole number", path=path, found=repr(number))
    if abs(int(number)) > LARGEST_LABEL:
        raise CohortError(
            f"the value of label {name!r} is too large",
            path=path,
            expected=f"at most {LARGEST_LABEL}",
            found=str(number)[:40],
        )
    return int(number)


def _is_whole(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\s*[+-]?[0-9]{1,20}\s*", value) is not None
    return isinstance(value, int) and not isinstance(value, bool)
