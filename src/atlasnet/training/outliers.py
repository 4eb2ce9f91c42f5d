"""Training subjects that are not like the others: images or references that may be wrong, told before they train."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.training.reasons import apart, reason
from atlasnet.training.store import IGNORED, MappedCase
from atlasnet.training.transformer import MappedCohort
from atlasnet.training.typical import FALSE_ALARMS, KINDS, NOBODY, Earlier, Kind, Measured
from atlasnet.wording import shortened

N = TypeVar("N", bound=Hashable)

REFERENCE = Kind("reference", high=True, logarithmic=True, precision=0.1, harmless=0.25)
"""1 - Dice of a subject's reference with what most of the others have in the same place."""

ATLAS = Kind("atlas", high=False, logarithmic=False, precision=0.02, harmless=1.0)
"""Mean quality of the training subjects' registrations onto an atlas."""

_MOST = 1 / 3  # of the numbers that may be unlike the others: what more have in common is no error of a few


def training_outliers(
    measured: Measured,
    mapped: Sequence[MappedCohort],
    atlases: Sequence[str],
    labels: Sequence[str],
    earlier: Earlier = NOBODY,
) -> list[str]:
    """What is unlike in the training, a sentence each.

    Where nothing is wrong that is nothing in 99 of 100 trainings, as far as numbers are normally distributed; tails are
    heavier, and what is told need not be wrong (`benchmarks/results/training_outliers.json`).

    Every number is compared with those of the others by `outlying`. Of a subject these are the numbers by which new
    scans are judged (`atlasnet.training.typical.KINDS`) and, for every label, how well its reference agrees with the
    others'; of an atlas, how well the subjects fit it.

    Args:
        measured: of the subjects.
        mapped: the subjects in the space of each atlas.
        atlases: their names, in that order.
        labels: of each class, background first.
        earlier: subjects with whose numbers they are compared too.
    """
    references = disagreements(mapped, len(labels))
    alarms = FALSE_ALARMS / (len(measured.numbers) * (len(KINDS) + len(references)) + len(atlases))
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        numbers: dict[str | int, float] = dict(enumerate(earlier.record.values.get(kind.name, ())))
        numbers.update({name: own[kind.name] for name, own in measured.numbers.items() if kind.name in own})
        for who, (value, limit) in outlying(kind, numbers, alarms).items():
            if isinstance(who, str):
                found.setdefault(who, []).append(reason(kind.name, value, limit, measured.mirrored.get(who, "")))
    for name, labelled in _unlike_references(references, labels, alarms).items():
        dice, usual = shortened([dice for dice, _ in labelled], 3), ", ".join(usual for _, usual in labelled[:3])
        text = f"the Dice of its reference with the others' is {dice}, usual are {usual} or more"
        found.setdefault(name, []).append(f"{text} (labels swapped, shifted, missing, or of another scan?)")
    said = [f"{name} is unlike the other training subjects: {'; '.join(texts)}" for name, texts in found.items()]
    onto = {name: measured.typical.quality[name] for name in atlases if name in measured.typical.quality}
    for name, found_and_limit in outlying(ATLAS, onto, alarms).items():
        quality, usual = apart(*found_and_limit, ".2f")
        said.append(
            f"atlas {name} is unlike the others: the subjects fit it with a quality of {quality}, usual are {usual} or "
            "more (another part of the body or modality?)"
        )
    return said


def _unlike_references(
    references: Mapping[int, Mapping[str, float]], labels: Sequence[str], alarms: float
) -> dict[str, list[tuple[str, str]]]:
    """By subject, of each label in which its reference is unlike the others', the Dice and what is usual."""
    found: dict[str, list[tuple[str, str]]] = {}
    for value, numbers in references.items():
        for name, (number, limit) in outlying(REFERENCE, numbers, alarms).items():
            dice, usual = apart(1 - number, 1 - limit, ".2f")
            found.setdefault(name, []).append((f"{dice} in {labels[value]}", usual))
    return found


def outlying(kind: Kind, numbers: Mapping[N, float], alarms: float) -> dict[N, tuple[float, float]]:
    """Whose number is not like the others', with the number and the bound of what is usual among those.

    The most extreme ones are left out, up to a third of all, as long as the last of them is beyond the bound of the
    rest: several errors do not hide each other (the generalised extreme Studentised deviate test, one-sided: Rosner,
    "Percentage points for a generalized ESD many-outlier procedure", Technometrics 25(2), 1983).

    Args:
        kind: what numbers are unusual.
        numbers: by name.
        alarms: the chance that one more number like the others is beyond the bound.
    """
    ordered = sorted(numbers, key=lambda name: numbers[name], reverse=kind.high)
    for count in range(int(len(ordered) * _MOST), 0, -1):
        usual = kind.usual([numbers[name] for name in ordered[count:]], alarms)
        if usual is not None and kind.score(numbers[ordered[count - 1]], usual) > 1:
            return {name: (numbers[name], usual[1]) for name in ordered[:count]}
    return {}


def disagreements(mapped: Sequence[MappedCohort], classes: int) -> dict[int, dict[str, float]]:
    """By class and subject, 1 - Dice of its reference with what more than half of the others have, mean over atlases.

    Subjects in whom nobody annotated the class are left out, and voxels that do not count.

    Args:
        mapped: the subjects in the space of each atlas.
        classes: how many, background included.
    """
    found: dict[int, dict[str, list[float]]] = {}
    for cohort in mapped:
        labels = {case.name: np.asarray(case.labels) for case in cohort.cases}
        boxes = [ndimage.find_objects(np.where(own == IGNORED, 0, own), classes - 1) for own in labels.values()]
        for value in range(1, classes):
            box = _united([own[value - 1] for own in boxes])
            if box is None:
                continue
            annotated = [case for case in cohort.cases if not _hides(case, value)]
            parts = {case.name: labels[case.name][box] for case in annotated}
            for name, number in _disagreement(parts, value).items():
                found.setdefault(value, {}).setdefault(name, []).append(number)
    return {
        value: {name: float(np.mean(numbers)) for name, numbers in of_subjects.items()}
        for value, of_subjects in sorted(found.items())
    }


def _disagreement(parts: Mapping[str, NDArray[np.uint8]], value: int) -> dict[str, float]:
    """Of each subject whose reference, or most of the others', has the class."""
    votes = sum((own == value).astype(np.uint16) for own in parts.values())
    counted = sum((own != IGNORED).astype(np.uint16) for own in parts.values())
    found = {}
    for name, own in parts.items():
        valid, there = own != IGNORED, own == value
        most = (2 * (votes - there) > counted - valid) & valid
        total = int(there.sum()) + int(most.sum())
        if total:
            found[name] = 1 - 2 * int((there & most).sum()) / total
    return found


def _hides(case: MappedCase, value: int) -> bool:
    """Whether nobody annotated the class in a subject, or one that may be it."""
    return any(value in pair for pair in case.hidden)


def _united(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...] | None:
    """The least box around all of them."""
    there = [box for box in boxes if box is not None]
    if not there:
        return None
    return tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in zip(*there, strict=True))
