"""Scans that are there twice: in another file, compressed anew, in another format, stored in another orientation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from atlasnet.cohort.subject import Subject
from atlasnet.volume.orientation import canonical
from atlasnet.volume.volume import Volume


def voxel_digest(image: Volume) -> str:
    """Of the values in canonical orientation, whatever type they are stored in and wherever the scan is said to lie."""
    array = canonical(image)[0].array
    found = hashlib.sha256(repr(array.shape).encode())
    for channel in array:
        for part in channel:  # slice by slice, so that no copy of the whole is made
            found.update((part.astype(np.float32) + 0).tobytes())  # +0 and -0 are one value
    return found.hexdigest()


def same_scans(
    subjects: Sequence[Subject], known: Sequence[Subject] | None = None
) -> Iterator[tuple[Subject, Subject]]:
    """The subjects whose image is that of a known one.

    Only images of one size are read.

    Args:
        subjects: whom to look for.
        known: other subjects; None: those of ``subjects`` that come before.

    Yields:
        A subject, and the first known one with the same voxels.

    Raises:
        VolumeError: an image cannot be read.
    """
    if not subjects:
        return
    by_shape: dict[tuple[int, ...], list[Subject]] = {}

    def shape(subject: Subject) -> tuple[int, ...]:
        return canonical(subject.read_grid())[0].shape

    @cache
    def voxels(subject: Subject) -> str:
        return voxel_digest(subject.read_image())

    for other in known or ():
        by_shape.setdefault(shape(other), []).append(other)
    for subject in subjects:
        alike = by_shape.setdefault(shape(subject), [])
        same = next((other for other in alike if voxels(other) == voxels(subject)), None)
        if same is not None:
            yield subject, same
        if known is None:
            alike.append(subject)
