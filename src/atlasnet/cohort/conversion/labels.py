"""Which structures of each case make up which label."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlasnet.cohort.conversion.find import Case
from atlasnet.cohort.declaration import BACKGROUND, IGNORE
from atlasnet.errors import CohortError, InputError
from atlasnet.volume.io import LARGEST_LABEL
from atlasnet.wording import shortened

Labels = Mapping[str, Sequence[str]]
"""The structures that a label unites."""


@dataclass(frozen=True)
class Chosen:
    """A case with the structures that make up each label."""

    case: Case
    structures: dict[str, list[str]]

    @classmethod
    def of(cls, case: Case, wanted: Labels) -> Chosen:
        """Those that ``wanted`` names, whatever their capitals."""
        names: dict[str, list[str]] = {}
        for name in case.structures:
            names.setdefault(_folded(name), []).append(name)
        return cls(
            case,
            {
                label: [name for part in parts for name in names.get(_folded(part), ())]
                for label, parts in wanted.items()
            },
        )


def every_structure(cases: Sequence[Case]) -> Labels:
    """A label for each structure of the cases, under the first spelling of its name, in their order."""
    names = [name for case in cases for name in case.structures]
    spellings = {_folded(name): name for name in reversed(names)}
    return {name: [name] for name in sorted(spellings.values(), key=_in_order)}


def _folded(name: str) -> str:
    """What two spellings of one name have in common: capitals, and how a letter with an accent is encoded, aside."""
    return unicodedata.normalize("NFC", name).casefold()


def _in_order(name: str) -> tuple[int, str, str]:
    """Values of a label map by size, other names by the alphabet."""
    return (int(name), "", name) if name.isdecimal() else (-1, name.casefold(), name)


def is_ignored(label: str) -> bool:
    """Whether the label marks voxels that nobody annotated."""
    return label.casefold() == IGNORE


def label_values(wanted: Labels) -> dict[str, int]:
    """The values of the labels, background included: those that they are called by where all are, else 1, 2 and so on.

    Raises:
        InputError: a label cannot be called that, two are to be ignored, or all.
        CohortError: there are none.
    """
    for name in wanted:
        if not name or name.casefold() == BACKGROUND:
            raise InputError(
                "a label cannot be called that",
                expected=f"not {BACKGROUND}",
                found=repr(name),
                remedy="name the labels with --label, without it or made of it under another name",
            )
    if not wanted:
        raise CohortError("nothing is annotated in any case")
    ignored = [name for name in wanted if is_ignored(name)]
    if len(ignored) > 1:
        raise InputError(
            "two labels are to be ignored",
            expected=f"one called {IGNORE}",
            found=", ".join(ignored),
            remedy=f"unite them with --label {IGNORE}={','.join(part for name in ignored for part in wanted[name])}",
        )
    if len(ignored) == len(wanted):
        raise InputError(
            "there is no label but what is to be ignored",
            expected="one label at least",
            found=ignored[0],
            remedy="name others with --label",
        )
    numbers = {name: int(name) for name in wanted if name.isdecimal()}  # label maps have values
    if len({value for value in numbers.values() if 0 < value <= LARGEST_LABEL}) == len(wanted):
        return {BACKGROUND: 0, **numbers}
    return {BACKGROUND: 0, **{name: value for value, name in enumerate(wanted, start=1)}}


def drawn_whole(chosen: Sequence[Chosen]) -> tuple[list[Chosen], list[str]]:
    """The cases, less the labels of which they have only a part, and a note on each that was left out.

    A case has a part of a label where another one has what it has and more: the left lung where others have both. Where
    one case has ``Lung`` and another ``Lungs``, both are whole.
    """
    drawn: dict[str, set[frozenset[str]]] = {}
    for one in chosen:
        for label, names in one.structures.items():
            drawn.setdefault(label, set()).add(frozenset(map(_folded, names)))
    made, notes = [], []
    for one in chosen:
        structures = dict(one.structures)
        for label, names in structures.items():
            own = frozenset(map(_folded, names))
            if own and not is_ignored(label) and any(own < others for others in drawn[label]):
                structures[label] = []
                part = ", ".join(names)
                notes.append(f"{one.case.name}: {part} alone is not the whole of {label!r}, and is left out")
        made.append(Chosen(one.case, structures))
    return made, notes


def check_missing(chosen: Sequence[Chosen], wanted: Labels, allow: bool, partial: bool) -> list[str]:
    """What was taken for absent, or if cases are ``partial`` for not annotated, told; ``ignore`` need be in no case.

    Raises:
        CohortError: a label is missing in a case and may not be, or in all of them, or a case has none.
    """
    missing = {
        label: [c.case.name for c in chosen if not c.structures[label]] for label in wanted if not is_ignored(label)
    }
    for label, cases in missing.items():
        if len(cases) == len(chosen):
            names = sorted({name for c in chosen for name in c.case.structures})
            raise CohortError(
                f"no case has the label {label!r}",
                expected=", ".join(wanted[label]),
                found=shortened(names, 30) or "no structure in any case",
            )
    lines = [f"{label!r} in {shortened(cases)}" for label, cases in missing.items() if cases]
    if partial:
        nothing = [c.case.name for c in chosen if not any(c.structures[label] for label in missing)]
        if nothing:
            raise CohortError(
                "nothing is annotated in a case",
                expected="one label at least, and all of the structures that it unites",
                found=shortened(nothing),
                remedy="move these cases elsewhere, or name labels that they have with --label",
            )
        return [f"not annotated: {line}" for line in lines]
    if lines and not allow:
        has = sorted({name for c in chosen if not all(c.structures.values()) for name in c.case.structures})
        raise CohortError(
            "structures are missing: " + "; ".join(lines),
            found=f"in these cases {shortened(has, 30) or 'nothing'}",
            remedy="unite other names of a structure (--label lung=Lung,Lungs), name only what all cases have, or say "
            "with --allow-missing that it is not there in the patient, or with --partial that nobody annotated it",
        )
    return [f"taken for absent: {line}" for line in lines]


def check_united(chosen: Sequence[Chosen], wanted: Labels, allow_missing: bool) -> list[str]:
    """Structures that make up a label in one case and not in another, and those that differ in capitals alone, told.

    Raises:
        CohortError: a structure is in no case, and none may be missing.
    """
    has = {_folded(name): name for c in chosen for name in c.case.structures}
    nowhere = [part for parts in wanted.values() for part in parts if _folded(part) not in has]
    if nowhere and not allow_missing:
        raise CohortError(
            f"no case has the structure {shortened([repr(part) for part in nowhere])}",
            found=shortened(sorted(has.values()), 30),
            remedy="correct or leave out the name after --label, or say with --allow-missing that it may be nowhere",
        )
    notes = [f"in no case: {shortened([repr(part) for part in nowhere])}"] if nowhere else []
    for label in wanted:
        most = max(len(c.structures[label]) for c in chosen)
        for c in chosen:
            names = c.structures[label]
            if 0 < len(names) < most:
                notes.append(f"{c.case.name}: {label!r} is {', '.join(names)} alone")
            if len({_folded(name) for name in names}) < len(names):
                notes.append(f"{c.case.name}: {label!r} unites {', '.join(names)}")
    return notes
