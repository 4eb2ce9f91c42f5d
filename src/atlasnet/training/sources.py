"""Images and references with the hash of what they were made from, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from atlasnet.cohort import Subject
from atlasnet.execution import digest, file_digest
from atlasnet.volume import Volume, canonical, read_volume


@dataclass(frozen=True)
class Keyed:
    """An image in canonical orientation, with its reference where there is one.

    Args:
        name: of the subject or atlas.
        key: equal keys mean equal voxels on an equal grid.
        read: gives the image, (c, z, y, x).
        labels_key: the same for the reference, empty without one.
        read_labels: gives the reference, (1, z, y, x) label values, or None without one.
    """

    name: str
    key: str
    read: Callable[[], Volume]
    labels_key: str = ""
    read_labels: Callable[[], Volume] | None = None

    def remembered(self) -> Keyed:
        """The same, its files read once and kept as long as this object lives."""
        labels = None if self.read_labels is None else cache(self.read_labels)
        return Keyed(self.name, self.key, cache(self.read), self.labels_key, labels)


def keyed_subject(subject: Subject, images: list[str], labels: list[str]) -> Keyed:
    """A subject whose files have these hashes."""
    read_labels = None if subject.labels is None else partial(_labels, subject)
    return Keyed(subject.name, digest(images), partial(_image, subject), digest(labels), read_labels)


def keyed_atlas(name: str, key: str, path: Path, channels: int) -> Keyed:
    """An atlas stored in a model; it is read once."""
    return Keyed(name, key, partial(_stored, path, channels)).remembered()


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a DICOM folder and the folders in it."""
    if path.is_dir():
        return digest([file_digest(file) for file in sorted(path.rglob("*")) if file.is_file()])
    return file_digest(path)


def _image(subject: Subject) -> Volume:
    return canonical(subject.read_image())[0]


def _labels(subject: Subject) -> Volume:
    return canonical(subject.read_labels())[0]


def _stored(path: Path, channels: int) -> Volume:
    return canonical(read_volume(path, channels=channels > 1))[0]
