"""Atlases that the user names: cases of the cohort, or any image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import CohortError
from atlasnet.volume import Volume
from atlasnet.volume.names import case_and_channel, composed, image_stem


@dataclass(frozen=True)
class AtlasSource:
    """Where the image of an atlas comes from.

    Args:
        name: unique among the atlases and, for an outside image, different from every subject's.
        paths: as `Subject.images`: one per channel, or one that holds all.
        subject: the cohort's subject that it is, or None for an outside image.
        channels: how many channels ``paths`` hold in all.
    """

    name: str
    paths: tuple[Path, ...]
    subject: str | None
    channels: int

    def read(self) -> Volume:
        """The image, (c, z, y, x) as stored.

        Raises:
            VolumeError: a file cannot be used, or the channels are not the cohort's.
        """
        return Subject(self.name, self.paths, channels=self.channels).read_image()


def resolve_atlases(cohort: Cohort, names: Sequence[str | Path]) -> list[AtlasSource]:
    """Find each atlas among the cohort's subjects, by name, or on disk, by path.

    A path to a subject's own image is that subject. An outside image of several channels is one file with all, or the
    file ``CASE_0000.SUFFIX`` beside those of the other channels. A folder is a DICOM series.

    Args:
        cohort: gives subjects and the number of channels.
        names: subject names, or paths.

    Returns:
        One source per name, in order.

    Raises:
        CohortError: no name is given, one is neither a subject nor an image, one is given twice, or an outside image
            is called as a subject or another atlas is. Every name at fault is listed.
    """
    if not names:
        raise CohortError("no atlas is named", path=cohort.root, remedy="name a subject or an image file")
    sources, unknown = [], []
    for name in names:
        source = _subject(cohort, name) or _outside(cohort, Path(name))
        if source is None:
            unknown.append(str(name))
        else:
            sources.append(source)
    if unknown:
        shown = ", ".join(subject.name for subject in cohort.subjects[:6]) + (", ..." if len(cohort) > 6 else "")
        raise CohortError(
            "these atlases are neither subjects of the cohort nor images",
            path=cohort.root,
            expected=f"a subject ({shown}) or the path of an image",
            found=", ".join(unknown),
        )
    _check_names(cohort, sources)
    return sources


def scans_beside(cohort: Cohort, folder: str | Path) -> tuple[str, ...]:
    """The scans of a folder that are none of the cohort's subjects, as `resolve_atlases` takes them.

    Args:
        cohort: whose subjects are passed over, and scans that are called as one of them is.
        folder: in one of a cohort's layouts, without references, or with scans in the folder itself.

    Raises:
        CohortError: no layout is recognised, files are missing or misnamed, the number of channels is another one, or
            there are no other scans.
    """
    own = {subject.name for subject in cohort}
    files = {path.resolve() for subject in cohort for path in subject.images}
    others = Cohort.read(folder, labelled=False)
    if len(others.channels) != len(cohort.channels):
        raise CohortError(
            "the scans among which to choose atlases have other channels than the cohort",
            path=folder,
            expected=", ".join(cohort.channels),
            found=", ".join(others.channels),
        )
    scans = [scan for scan in others if scan.name not in own]
    beside = tuple(str(scan.images[0]) for scan in scans if scan.images[0].resolve() not in files)
    if not beside:
        raise CohortError(
            "there are no scans among which to choose atlases but the subjects themselves",
            path=folder,
            expected="scans that nobody need have annotated, under names of their own",
        )
    return beside


def _subject(cohort: Cohort, name: str | Path) -> AtlasSource | None:
    for subject in cohort:
        if subject.name == composed(str(name)) or any(_same_file(Path(name), path) for path in subject.images):
            return AtlasSource(subject.name, subject.images, subject.name, subject.channels)
    return None


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.resolve() == other.resolve()


def _outside(cohort: Cohort, path: Path) -> AtlasSource | None:
    channels = len(cohort.channels)
    if path.is_dir():
        return AtlasSource(composed(path.resolve().name), (path,), None, channels)
    stem = image_stem(path)
    if stem is None or not path.is_file():
        return None
    case, first = case_and_channel(stem)
    if first != 0:
        return AtlasSource(composed(stem), (path,), None, channels)
    suffix = path.name[len(stem) :]
    paths = tuple(path.with_name(f"{case}_{channel:04d}{suffix}") for channel in range(channels))
    missing = [str(file) for file in paths if not file.is_file()]
    if missing:
        raise CohortError(
            f"the atlas lacks channels of the cohort ({', '.join(cohort.channels)})",
            path=path,
            expected=", ".join(file.name for file in paths),
            found="no " + ", ".join(missing),
        )
    return AtlasSource(composed(case), paths, None, channels)


def _check_names(cohort: Cohort, sources: Sequence[AtlasSource]) -> None:
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError(
            "an atlas is named twice", found=", ".join(twice), remedy="name each once, and give files different names"
        )
    subjects = {subject.name for subject in cohort}
    taken = sorted(source.name for source in sources if source.subject is None and source.name in subjects)
    if taken:
        raise CohortError(
            "an image file is called as a subject of the cohort is, but is not that subject's",
            expected="a name of its own",
            found=", ".join(taken),
            remedy="rename the file, or name the subject",
        )
