"""Organ masks: the part of each scan in which labels are looked for. They lie in a folder of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.subject import Subject
from atlasnet.errors import CohortError
from atlasnet.execution import Reporter, SilentReporter
from atlasnet.volume.names import composed, image_stem
from atlasnet.volume.volume import Volume
from atlasnet.wording import counted, shortened


def find_masks(names: Sequence[str], place: str | Path) -> dict[str, Path]:
    """The mask of every case.

    Args:
        names: of the cases.
        place: folder with CASE.nii.gz, or another readable suffix, for each case; of a single case also its file.

    Raises:
        CohortError: the folder is not there, a case has no mask in it, or several.
    """
    place = Path(place)
    if place.is_file() and len(names) == 1:
        return {names[0]: place}
    if not place.is_dir():
        raise CohortError("there is no such folder of organ masks", path=place, expected="a folder with CASE.nii.gz")
    found: dict[str, list[Path]] = {composed(name): [] for name in names}
    for path in sorted(place.iterdir()):
        stem = composed(image_stem(path) or "")
        if stem in found and path.is_file():
            found[stem].append(path)
    for name, paths in found.items():
        if len(paths) > 1:
            raise CohortError(f"two organ masks of the case {name}", path=paths[1], found=f"{paths[0].name} beside it")
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        raise CohortError(
            f"no organ mask for {len(missing)} of {counted(len(names), 'case')}",
            path=place,
            expected="a file CASE.nii.gz, non-zero in the organ, for each case",
            found="none for " + shortened(missing),
        )
    return {name: found[composed(name)][0] for name in names}


def masked(cases: Iterable[Subject], place: str | Path) -> list[Subject]:
    """The cases with the mask of each, see `find_masks`."""
    every = tuple(cases)
    masks = find_masks([case.name for case in every], place)
    return [replace(case, mask=masks[case.name]) for case in every]


def with_masks(cohort: Cohort, place: str | Path) -> Cohort:
    """The cohort with the mask of every subject, see `find_masks`."""
    return replace(cohort, subjects=tuple(masked(cohort, place)))


def are_masked(subjects: Iterable[Subject]) -> bool:
    """Whether subjects have organ masks.

    Raises:
        CohortError: only some of them have.
    """
    every = tuple(subjects)
    without = [subject.name for subject in every if subject.mask is None]
    if without and len(without) < len(every):
        raise CohortError("some subjects have an organ mask and others none", found="none for " + ", ".join(without))
    return bool(every) and not without


def check_masks(subjects: Iterable[Subject], reporter: Reporter | None = None) -> None:
    """Read every organ mask before any work, where there are some.

    Raises:
        CohortError: only some subjects have one.
        VolumeError: a mask cannot be read, is empty, or does not lie on the grid of its image.
    """
    every = tuple(subjects)
    if are_masked(every):
        for subject in (reporter or SilentReporter()).track(every, "checking the organ masks", len(every)):
            subject.read_mask()


def within(labels: Volume, mask: Volume) -> Volume:
    """A label map (1, z, y, x) with background where the mask (1, z, y, x) on the same grid is zero."""
    return labels.replace(np.where(mask.array != 0, labels.array, labels.array.dtype.type(0)))
