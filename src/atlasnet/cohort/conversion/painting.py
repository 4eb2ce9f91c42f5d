"""From the structures of a case to its label map: one covers another, or what several share has a value of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.conversion.find import open_structures
from atlasnet.cohort.conversion.labels import Chosen, is_ignored
from atlasnet.cohort.conversion.structure_set import StructureSet
from atlasnet.cohort.conversion.structures import Mask
from atlasnet.cohort.declaration import BACKGROUND
from atlasnet.cohort.structures import Values
from atlasnet.errors import CohortError
from atlasnet.volume import Grid
from atlasnet.wording import counted

IGNORED = 255  # the value of voxels that nobody annotated, where values are those of combinations
_MOST_LABELS = 64  # bits of a code


class Painting(Protocol):
    """How the labels of a cohort are made of structures."""

    def paint(self, chosen: Chosen, grid: Grid) -> tuple[NDArray[np.unsignedinteger[Any]], list[str]]:
        """The label map (z, y, x) of a case on the grid of its image, and what is to be told of it.

        Raises:
            CohortError: structures overlap as they must not.
            VolumeError: a structure cannot be read, or was not drawn on this image.
        """

    def declared(self) -> dict[str, Values]:
        """The values of the labels, the background first, when all cases are painted."""

    def notes(self) -> list[str]:
        """What is to be told of all cases."""


@dataclass(frozen=True)
class Covering:
    """Every label has one value; a later one covers an earlier one.

    Args:
        values: name to value, background included, in the order of painting.
        ordered: whether somebody has named the labels in this order; else none may overlap.
        partial: whether cases may lack labels that nobody annotated; none may cover another then but what is ignored.
    """

    values: Mapping[str, int]
    ordered: bool
    partial: bool = False

    def paint(self, chosen: Chosen, grid: Grid) -> tuple[NDArray[np.unsignedinteger[Any]], list[str]]:
        """See `Painting`."""
        labels = np.zeros(grid.shape, dtype=np.min_scalar_type(max(self.values.values())))
        notes: list[str] = []
        for label, name, mask, told in _drawn(chosen, grid):
            before = labels[mask]
            covered = int(np.count_nonzero((before != 0) & (before != self.values[label])))
            if covered and self.partial and not is_ignored(label):
                raise CohortError(
                    f"{name!r} overlaps other structures in {counted(covered, 'voxel')}",
                    path=chosen.case.annotation,
                    remedy="keep all of each with --overlapping; which of them covers the other is not known of cases "
                    "in which one was not annotated",
                )
            if covered and not self.ordered:
                raise CohortError(
                    f"{name!r} overlaps other structures in {counted(covered, 'voxel')}",
                    path=chosen.case.annotation,
                    remedy="name the labels with --label in the order in which later ones cover earlier ones, or keep "
                    "all of each with --overlapping",
                )
            if covered:
                notes.append(f"{chosen.case.name}: {label!r} covers {counted(covered, 'voxel')} of labels before it")
            labels[mask] = self.values[label]
            notes += told
        return labels, notes

    def declared(self) -> dict[str, Values]:
        """See `Painting`."""
        return dict(self.values)

    def notes(self) -> list[str]:
        """Nothing: cases tell all."""
        return []


@dataclass
class _Combination:
    """Voxels of the same labels: their value, and how many there are in how many cases."""

    value: int
    voxels: int = 0
    cases: int = 0


class Combining:
    """Every combination of labels that occurs has a value of its own, so that each label is kept whole.

    A label that others lie in, or overlap, is a region of several values; see `atlasnet.cohort.structures`. Values are
    given in the order in which combinations are found, in one case those of few labels first.

    Args:
        labels: their names.

    Raises:
        CohortError: there are too many.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._ignored = [label for label in labels if is_ignored(label)]
        self._labels = [label for label in labels if not is_ignored(label)]
        if len(self._labels) > _MOST_LABELS:
            raise CohortError("too many labels", expected=f"at most {_MOST_LABELS}", found=str(len(self._labels)))
        self._found: dict[tuple[int, ...], _Combination] = {}
        self._painted: dict[str, tuple[frozenset[int], dict[tuple[int, ...], int]]] = {}

    def paint(self, chosen: Chosen, grid: Grid) -> tuple[NDArray[np.unsignedinteger[Any]], list[str]]:
        """See `Painting`."""
        dtype = np.dtype(np.min_scalar_type(2 ** len(self._labels) - 1)).type
        codes, ignored = np.zeros(grid.shape, dtype=dtype), np.zeros(grid.shape, dtype=bool)
        notes: list[str] = []
        for label, _, mask, told in _drawn(chosen, grid):
            if label in self._ignored:
                ignored |= mask
            else:
                codes[mask] |= dtype(1 << self._labels.index(label))
            notes += told
        codes[ignored] = 0
        inside = codes != 0
        several, place, voxels = np.unique(codes[inside], return_inverse=True, return_counts=True)
        members = [tuple(n for n in range(len(self._labels)) if int(code) >> n & 1) for code in several]
        for combination in sorted(members, key=lambda them: (len(them), them)):
            self._found.setdefault(combination, _Combination(len(self._found) + 1))
        if len(self._found) >= IGNORED:
            raise CohortError(
                "structures overlap in too many ways",
                path=chosen.case.annotation,
                expected=f"at most {IGNORED - 1} combinations of labels",
                found=f"{len(self._found)} so far",
                remedy="unite structures, or leave some out, with --label",
            )
        for combination, count in zip(members, voxels.tolist(), strict=True):
            found = self._found[combination]
            found.voxels, found.cases = found.voxels + count, found.cases + 1
        drawn = frozenset(number for number, label in enumerate(self._labels) if chosen.structures[label])
        self._painted[chosen.case.name] = drawn, dict(zip(members, voxels.tolist(), strict=True))
        labels = np.where(ignored, IGNORED, 0).astype(np.uint8)
        labels[inside] = np.array([self._found[m].value for m in members], dtype=np.uint8)[place]
        return labels, notes

    def settle(self) -> dict[str, dict[int, int]]:
        """What cases without all labels show is what others show, as far as it may be: a tumour lies in the organ.

        A combination that is found only where some of the other labels were not annotated is no value of its own if
        it is another one without these. Of several, it is the one that `atlasnet.cohort.annotated` takes to stand for
        all: that the fewest labels and regions hold.

        Returns:
            By case, what becomes of values in its label map.
        """
        kept: list[tuple[int, ...]] = []
        for drawn, members in sorted(self._painted.values(), key=lambda painted: -len(painted[0])):
            kept += [one for one in members if not any(drawn.intersection(other) == {*one} for other in kept)]
        if len({*self._places(kept)} - {()}) < len({*self._places(self._found)} - {()}):
            kept = [*self._found]  # else two labels would be everywhere the same
        alone = {number for number, places in enumerate(self._places(kept)) if len(places) == 1}
        kept.sort(key=lambda one: (len(one) + alone.isdisjoint(one), self._found[one].value))
        found = {one: _Combination(self._found[one].value) for one in self._found if one in kept}
        changed: dict[str, dict[int, int]] = {}
        for case, (drawn, members) in self._painted.items():
            stands = {one: next(k for k in kept if drawn.intersection(k) == {*one}) for one in members}
            for one, voxels in members.items():
                found[stands[one]].voxels += voxels
                found[stands[one]].cases += 1
            values = {self._found[one].value: found[other].value for one, other in stands.items() if one != other}
            if values:
                changed[case] = values
        self._found = found
        return changed

    def _places(self, combinations: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], ...]]:
        """Of every label the combinations that it is in."""
        every = [*combinations]
        return [tuple(one for one in every if number in one) for number in range(len(self._labels))]

    def declared(self) -> dict[str, Values]:
        """See `Painting`."""
        made: dict[str, Values] = {BACKGROUND: 0}
        unused = max((found.value for found in self._found.values()), default=0)
        for number, name in enumerate(self._labels):
            values = tuple(sorted(found.value for members, found in self._found.items() if number in members))
            if not values:  # drawn, and around no voxel
                unused += 1
                values = (unused,)
            made[name] = values[0] if len(values) == 1 else values
        return made | dict.fromkeys(self._ignored, IGNORED)

    def notes(self) -> list[str]:
        """What the values stand for, where labels overlap: a combination of few voxels may be a slip of the pen."""
        if all(len(members) == 1 for members in self._found):
            return []
        lines = []
        for members, found in self._found.items():
            names = " and ".join(repr(self._labels[n]) for n in members)
            alone = " alone" if len(members) == 1 else ""
            extent = f"{counted(found.voxels, 'voxel')} in {counted(found.cases, 'case')}"
            lines.append(f"{found.value} is {names}{alone}: {extent}")
        return lines


def _drawn(chosen: Chosen, grid: Grid) -> Iterator[tuple[str, str, Mask, list[str]]]:
    """Of every structure its label, its name, its mask (z, y, x), and what is to be told of it; labels in order."""
    case, opened = chosen.case, open_structures(chosen.case.annotation, chosen.case.images)
    for label, structures in chosen.structures.items():
        for name in structures:
            mask = opened.mask(name, grid)
            told = []
            if isinstance(opened, StructureSet):
                if gaps := opened.gaps(name, grid):
                    told.append(f"{case.name}: {name!r} has no contour in {counted(gaps, 'slice')} between others")
                slices, voxels = opened.overlaps[name]
                if slices:
                    told.append(
                        f"{case.name}: contours of {name!r} overlap in part, in {counted(voxels, 'voxel')} of "
                        f"{counted(slices, 'slice')}: they are united; look at them, if one is meant for a hole"
                    )
                if not mask.any():
                    told.append(f"{case.name}: the contours of {name!r} enclose the centre of no voxel")
            yield label, name, mask, told
