"""The three layouts on disk: which files are whose image and whose reference."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from atlasnet.cohort.declaration import Declaration
from atlasnet.cohort.problem import Problem
from atlasnet.cohort.subject import Subject
from atlasnet.errors import CohortError
from atlasnet.execution import leads_nowhere
from atlasnet.volume.names import READABLE_SUFFIXES, case_and_channel, composed, image_stem, image_suffix, is_file_name
from atlasnet.wording import shortened

PARTS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "images", "labels")  # of a cohort

_LONGEST_NAME, _LONGEST_PATH = 255, 1000
_SHOWN = 3  # of files that are left out


@dataclass
class Listing:
    """What a layout holds: subjects in the order of their names, and what is wrong with it."""

    format: str
    subjects: list[Subject] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, text: str, subject: str | None = None, path: Path | None = None, *, warning: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(text, subject, path, "warning" if warning else "error"))


def list_subjects(root: Path, declaration: Declaration, *, labelled: bool) -> Listing:
    """Find the subjects below ``root``.

    nnU-Net's: ``imagesTr/CASE_0000.nii.gz`` (one file per channel), ``labelsTr/CASE.nii.gz``, of these the cases that
    ``dataset.json`` lists, if it lists any, or the files that it names for each case. The Decathlon's: the pairs that
    ``dataset.json`` lists. Plain: ``images/`` and ``labels/`` with equal names; a folder in ``images/`` is a DICOM
    series. Without references also ``imagesTs/`` alone, or scans that lie in ``root`` itself.

    Raises:
        CohortError: none of the three.
    """
    channels = len(declaration.channels) if declaration.channels is not None else None
    if declaration.dataset is not None:
        return _named_files(root, declaration.dataset, channels, labelled)
    if declaration.training and (not _has_channel_names(root / "imagesTr") or _lists_pairs(root, declaration)):
        return _decathlon(root, declaration, channels or 1, labelled)
    for name, images, labels in (("nnU-Net", "imagesTr", "labelsTr"), ("plain", "images", "labels")):
        if (root / images).is_dir():
            listing = _folders(name, root / images, root / labels, channels, declaration.file_ending, labelled)
            if name == "nnU-Net":
                _keep_listed(listing, root, declaration, labelled)
            return listing
    if not labelled:
        if (root / "imagesTs").is_dir():
            return _folders(
                "nnU-Net", root / "imagesTs", root / "labelsTs", channels, declaration.file_ending, labelled
            )
        if any(image_suffix(entry) for entry in root.iterdir()):
            return _folders("plain", root, root / "labels", channels, declaration.file_ending, labelled)
    within = [entry for entry in sorted(root.iterdir()) if (entry / "imagesTr").is_dir()]
    raise CohortError(
        "no layout of subjects is recognised",
        path=root,
        expected="imagesTr/ and labelsTr/ (nnU-Net), a dataset.json with a 'training' list (Decathlon), "
        "or images/ and labels/" + ("" if labelled else "; without references also imagesTs/, or scans in the folder"),
        found=", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "an empty folder",
        remedy=f"name the folder above, {root.absolute().parent}"
        if root.name in PARTS
        else f"name the folder of the data set, {within[0]}"
        if within
        else "scans without references are checked by atlasnet check --unlabelled, and segmented by atlasnet predict"
        if labelled and any(image_suffix(entry) for entry in root.iterdir())
        else None,
    )


def _is_name(value: object) -> TypeGuard[str]:
    """Whether this can be the path of a file on every system."""
    return (
        isinstance(value, str)
        and value.isprintable()
        and len(value) <= _LONGEST_PATH
        and all(len(part.encode()) <= _LONGEST_NAME for part in PurePosixPath(value).parts)
        and bool(PurePosixPath(value).name)
    )


def _has_channel_names(folder: Path) -> bool:
    return folder.is_dir() and any(
        case_and_channel(_stem(entry))[1] is not None for entry in folder.iterdir() if image_suffix(entry)
    )


def _lists_pairs(root: Path, declaration: Declaration) -> bool:
    """Whether ``dataset.json`` lists an image that is there and is called like its labels: its number is no channel."""
    pairs = ((case.get("image"), case.get("label")) for case in declaration.training)
    return any(
        _is_name(image)
        and _is_name(labels)
        and _stem(Path(PurePosixPath(image).name)) == _stem(Path(PurePosixPath(labels).name))
        and (root / image).exists()
        for image, labels in pairs
    )


def _decathlon(root: Path, declaration: Declaration, channels: int, labelled: bool) -> Listing:
    listing = Listing("Decathlon")
    seen: set[str] = set()
    for case in declaration.training:
        image, labels = case.get("image"), case.get("label")
        if not _is_name(image) or not (labels is None or _is_name(labels)):
            listing.add(
                f"an entry of 'training' in dataset.json is not understood: {repr(case)[:200]}",
                path=root / "dataset.json",
            )
            continue
        name = _stem(Path(PurePosixPath(image).name))
        if name in seen:
            listing.add("the name is listed twice in dataset.json", name, root / "dataset.json")
            continue
        seen.add(name)
        image_path, label_path = root / image, None if labels is None else root / labels
        if not image_path.exists():
            listing.add("the image that dataset.json lists is missing", name, image_path)
            continue
        if label_path is not None and not label_path.exists():
            listing.add("the labels that dataset.json lists are missing", name, label_path)
            if labelled:
                continue
            label_path = None
        elif label_path is None and labelled:
            listing.add("dataset.json lists no labels for it", name, root / "dataset.json")
            continue
        listing.subjects.append(Subject(name, (image_path,), label_path, channels))
    listing.subjects.sort(key=lambda subject: subject.name)
    named = [root / file for case in declaration.training for file in case.values() if _is_name(file)]
    _warn_of_others(listing, root, named)
    return listing


def _named_files(root: Path, dataset: Mapping[str, object], channels: int | None, labelled: bool) -> Listing:
    """The cases of nnU-Net's ``"dataset"``: of each the files of its images, a channel each, and of its labels."""
    listing, place, named = Listing("nnU-Net"), root / "dataset.json", list[Path]()
    for name, case in sorted((composed(name), case) for name, case in dataset.items()):
        if not is_file_name(name):
            listing.add(f"a case of 'dataset' in dataset.json has a name that no file can have: {name!r}", path=place)
            continue
        files = case if isinstance(case, Mapping) else {}
        images, labels = files.get("images"), files.get("label")
        if not (
            isinstance(images, list) and images and all(map(_is_name, images)) and (labels is None or _is_name(labels))
        ):
            listing.add(f"its entry of 'dataset' in dataset.json is not understood: {repr(case)[:200]}", name, place)
            continue
        paths = tuple(root / image for image in images)
        label = None if labels is None else root / labels
        own = paths if label is None else (*paths, label)
        named += own
        absent = [path for path in own if not path.exists()]
        for path in absent:
            listing.add("a file that dataset.json names is missing", name, path)
        if label is None and labelled:
            listing.add("dataset.json names no labels for it", name, place)
        if channels is not None and len(paths) not in (1, channels):
            listing.add(f"dataset.json names {len(paths)} images for it, and {channels} channels", name, place)
        elif not absent and (label is not None or not labelled):
            listing.subjects.append(Subject(name, paths, label, channels or len(paths)))
    _warn_of_others(listing, root, named)
    return listing


def _keep_listed(listing: Listing, root: Path, declaration: Declaration, labelled: bool) -> None:
    """Of nnU-Net's cases those that the list in ``dataset.json`` names, where it names any; and count them."""
    found = {subject.name for subject in listing.subjects}
    listed = {_listed_name(case.get("image"), found) for case in declaration.training} - {None}
    if listed & found:
        beside = sorted(found - listed)
        listing.subjects = [subject for subject in listing.subjects if subject.name in listed]
        if beside:
            text = f"subjects that dataset.json does not list are left out: {shortened(beside, _SHOWN)}"
            listing.add(text, path=root / "dataset.json", warning=True)
        told = {problem.subject for problem in listing.problems}
        for name in sorted(str(name) for name in listed - found - told):
            listing.add("dataset.json lists it, and its files are missing", name, root / "dataset.json")
    elif listed:
        text = "the list 'training' in dataset.json names none of the subjects, and is left out of account"
        listing.add(text, path=root / "dataset.json", warning=True)
    number = len(listing.subjects)
    if (
        labelled
        and declaration.count not in (None, number)
        and not any(p.severity == "error" for p in listing.problems)
    ):
        text = (
            f"dataset.json says that there are {declaration.count} training cases (numTraining), and here are {number}"
        )
        listing.add(text, path=root / "dataset.json", warning=True)


def _listed_name(image: object, known: Collection[str]) -> str | None:
    """The case that an entry of the list is of: its image may be named with a channel or without."""
    if not _is_name(image):
        return None
    stem = _stem(Path(PurePosixPath(image).name))
    return stem if stem in known else case_and_channel(stem)[0]


def _warn_of_others(listing: Listing, root: Path, named: Sequence[Path]) -> None:
    """Name images in the folders of these files that are none of them."""
    listed = {file.resolve() for file in named}
    for folder in sorted({file.parent for file in named if file.parent.is_dir() and file.parent != root}):
        images = [entry for entry in sorted(folder.iterdir()) if image_suffix(entry) and not entry.name.startswith(".")]
        beside = [entry.name for entry in images if entry.resolve() not in listed]
        if beside:
            text = f"{len(beside)} files that dataset.json does not list are left out: {shortened(beside, _SHOWN)}"
            listing.add(text, path=folder, warning=True)


def _folders(
    layout: str, images: Path, labels: Path, channels: int | None, ending: str | None, labelled: bool
) -> Listing:
    listing = Listing(layout)
    if ending is not None and ending not in READABLE_SUFFIXES:
        text = (
            f"images ending in {ending} (file_ending) cannot be read; expected {', '.join(READABLE_SUFFIXES)}; "
            "to mend it: convert images and labels to NIfTI"
        )
        listing.add(text, path=images.parent / "dataset.json")
        return listing
    image_files = _images(listing, images, ending, dicom=layout == "plain")
    label_files = _by_name(listing, _images(listing, labels, ending, dicom=False)) if labels.is_dir() else {}
    if labelled and not labels.is_dir():
        listing.add("the folder of labels is missing", path=labels)
    # The plain layout may number its channels too; it does if every image does and no label is named like an image.
    named = {path: case_and_channel(_stem(path)) for path in image_files}
    numbered = layout == "nnU-Net" or (
        all(channel is not None for _, channel in named.values())
        and not {_stem(path) for path in image_files} & set(label_files)
    )
    cases = (
        _numbered(listing, named) if numbered else {name: {0: p} for name, p in _by_name(listing, image_files).items()}
    )
    if channels is None:
        channels = max((len(files) for files in cases.values()), default=1)
    for name, files in sorted(cases.items()):
        label = label_files.pop(name, None)
        if numbered and not _channels_complete(listing, name, files, channels):
            continue
        if label is None and labelled:
            if labels.is_dir():
                file_name = f"{name}{ending}" if ending else f"{name} with an image suffix"
                text = f"the labels are missing: expected {file_name} in {labels.name}/"
                alike = [own for own in label_files if own not in cases and (name in own or own in name)]
                if len(alike) == 1:
                    file = label_files[alike[0]]
                    text += f"; if {file.name} is meant, rename it to {name}{image_suffix(file)}"
                listing.add(text, name, labels)
            continue
        listing.subjects.append(Subject(name, tuple(files.values()), label, channels))
    for name, path in sorted(label_files.items()):
        listing.add("labels without an image", name, path)
    if not cases:
        listing.add("there are no images in this folder", path=images)
    return listing


def _images(listing: Listing, folder: Path, ending: str | None, *, dicom: bool) -> list[Path]:
    """Image files in a folder, and the DICOM folders where they are allowed; whatever else lies there is noted."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower().endswith(".raw") or entry.name.lower().endswith(".zraw"):
            continue
        suffix = image_suffix(entry)
        if leads_nowhere(entry):
            listing.add("the link leads nowhere: get its content (such as by datalad get), or remove it", path=entry)
        elif (entry.is_dir() and dicom) or (entry.is_file() and suffix and ending in (None, suffix)):
            found.append(entry)
        else:
            wanted = f"an image ending in {ending}" if ending else "an image"
            listing.add(f"the file is not {wanted} and is left out", path=entry, warning=True)
    return found


def _by_name(listing: Listing, paths: Iterable[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        name = _stem(path)
        if name in named:
            listing.add(f"two files have this name: {named[name].name} and {path.name}", name, path)
        named.setdefault(name, path)
    return named


def _numbered(listing: Listing, named: Mapping[Path, tuple[str, int | None]]) -> dict[str, dict[int, Path]]:
    """The files of every case by their channels, in the order of these."""
    cases: dict[str, dict[int, Path]] = {}
    for path, (case, channel) in named.items():
        if channel is None:
            listing.add("the name does not end in a channel number such as _0000", path=path)
            continue
        files = cases.setdefault(case, {})
        if channel in files:
            listing.add(f"two files hold channel {channel:04d}", case, path)
        files.setdefault(channel, path)
    return {name: dict(sorted(files.items())) for name, files in cases.items()}


def _channels_complete(listing: Listing, name: str, files: Mapping[int, Path], channels: int) -> bool:
    missing = sorted(set(range(channels)) - set(files))
    extra = sorted(set(files) - set(range(channels)))
    for number in missing:
        listing.add(f"channel _{number:04d} is missing", name, next(iter(files.values())).parent)
    for number in extra:
        listing.add(f"channel _{number:04d} is not declared ({channels} declared)", name, files[number])
    return not missing and not extra


def _stem(path: Path) -> str:
    return composed(image_stem(path) or path.name)
