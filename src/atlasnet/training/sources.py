"""Images and references with the hash of what they were made from, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from atlasnet.cohort import Cohort, Subject
from atlasnet.cohort.structures import Hidden
from atlasnet.errors import CohortError
from atlasnet.execution import Reporter, digest
from atlasnet.volume import Volume, canonical, read_labels, read_volume


@dataclass(frozen=True)
class Keyed:
    """An image in canonical orientation, with its reference where there is one.

    Args:
        name: of the subject or atlas.
        key: equal keys mean equal voxels on an equal grid.
        read: gives the image, (c, z, y, x).
        labels_key: the same for the reference, empty without one.
        read_labels: gives the reference, (1, z, y, x) label values, or None without one.
        mask_key: the same for the organ mask, empty without one.
        read_mask: gives the organ mask, (1, z, y, x), not zero in the organ, or None without one.
        hidden: what nobody annotated, see `Subject`.
    """

    name: str
    key: str
    read: Callable[[], Volume]
    labels_key: str = ""
    read_labels: Callable[[], Volume] | None = None
    mask_key: str = ""
    read_mask: Callable[[], Volume] | None = None
    hidden: Hidden = ()

    def remembered(self) -> Keyed:
        """The same, its files read once and kept as long as this object lives."""
        labels = None if self.read_labels is None else cache(self.read_labels)
        return replace(self, read=cache(self.read), read_labels=labels)


def keyed_subject(subject: Subject, hashes: Mapping[str, Sequence[str]]) -> Keyed:
    """A subject whose files have these `Subject.hashes`."""
    images, labels, mask = ([*hashes.get(kind, ())] for kind in ("images", "labels", "mask"))
    read_labels = None if subject.labels is None else partial(_labels, subject)
    keyed = Keyed(
        subject.name, digest(images), partial(_image, subject), digest(labels), read_labels, hidden=subject.hidden
    )
    return replace(keyed, mask_key=digest(mask), read_mask=partial(_mask, subject)) if mask else keyed


def keyed_atlas(name: str, key: str, path: Path, channels: int, labels: tuple[str, Path] | None = None) -> Keyed:
    """An atlas stored in a model, with the key and the place of its reference where that is kept; it is read once."""
    labels_key, read_labels = ("", None) if labels is None else (labels[0], partial(_stored_labels, labels[1]))
    return Keyed(name, key, partial(_stored, path, channels), labels_key, read_labels).remembered()


def cohort_hashes(cohort: Cohort, reporter: Reporter) -> dict[str, dict[str, list[str]]]:
    """`Subject.hashes` by the names of the subjects.

    Raises:
        CohortError: a file cannot be read.
    """
    hashes: dict[str, dict[str, list[str]]] = {}
    for subject in reporter.track(cohort, "checking the files", len(cohort)):
        try:
            hashes[subject.name] = subject.hashes()
        except OSError as error:
            raise CohortError(f"subject {subject.name} cannot be read", path=cohort.root, found=str(error)) from error
    return hashes


def _image(subject: Subject) -> Volume:
    return canonical(subject.read_image())[0]


def _labels(subject: Subject) -> Volume:
    return canonical(subject.read_labels())[0]


def _mask(subject: Subject) -> Volume:
    mask = subject.read_mask()
    if mask is None:
        raise CohortError(f"subject {subject.name} has no organ mask")
    return canonical(mask)[0]


def _stored(path: Path, channels: int) -> Volume:
    return canonical(read_volume(path, channels=channels > 1))[0]


def _stored_labels(path: Path) -> Volume:
    return canonical(read_labels(path))[0]
