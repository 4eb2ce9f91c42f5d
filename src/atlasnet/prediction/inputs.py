"""What to predict: files, folders of cases and DICOM exports turned into a checked list of cases."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from atlasnet.cohort import Subject
from atlasnet.cohort.channels import require_export
from atlasnet.cohort.layout import PARTS
from atlasnet.errors import InputError
from atlasnet.execution import Reporter, files_below
from atlasnet.volume import volume_files
from atlasnet.volume.names import (
    DICOM_SUFFIXES,
    READABLE_SUFFIXES,
    SLICER_SUFFIXES,
    case_and_channel,
    composed,
    find_images,
    folder_name,
    image_stem,
    is_dicom,
    of_slicer,
)
from atlasnet.wording import counted, in_lines, quoted, series_name, shortened

# What lies beside scans and is none, by the end of its name: what other programs say of them, and results of ours.
_BESIDE = (
    *(".json", ".csv", ".tsv", ".txt", ".md", ".pdf", ".xls", ".xlsx", ".docx", ".xml", ".yaml", ".yml", ".html"),
    *(".log", ".label", ".ctbl", ".bval", ".bvec", ".png", ".jpg", ".py", ".sh", ".db", ".ini", ".md5", ".sha256"),
    *("_seg.dcm", "_rtstruct.dcm", *SLICER_SUFFIXES),
)
NAMES_FROM = ("file", "folder")
_NO_SUFFIX = ("README", "LICENSE", "VERSION", "DICOMDIR")


def find_cases(
    inputs: Sequence[str | Path],
    channels: int,
    series: str | Sequence[str] | None = None,
    *,
    images: str | Sequence[str] = (),
    name_from: str = "file",
) -> list[Subject]:
    """Turn the inputs of ``atlasnet predict`` into cases, in the order given, folders sorted by name.

    A file is a case, except that with several channels the files ``CASE_0000`` … of one case belong together (naming
    one of them is enough); a number that is no channel's, as in ``patient_1234`` without ``patient_0000``, is part of
    the name of a file that holds all. A ``.seg.nrrd``, a segmentation of 3D Slicer, is none. With one channel
    ``CASE_0000`` is called CASE, unless ``CASE_0001`` lies beside it. A folder is a folder of cases when it holds image
    files, and then zips and sub-folders with DICOM files are cases too; else it is a DICOM folder, which is one case,
    as a DICOM file and a zip are; with several channels, ``series`` names one in it for each. Of several inputs, as a
    shell makes them of ``inbox/*``, files that are no images and folders in which nothing lies are passed over, see
    `unread`; one alone is refused. With ``images`` every folder is one case, which is called after it.

    Args:
        inputs: files and folders.
        channels: how many channels the model expects.
        series: the one to take out of each DICOM folder or zip, as `read_volume` takes it; of several channels one for
            each, in their order.
        images: a pattern (``*`` and ``?``) for each channel, or for the one image that holds all, of paths below each
            folder.
        name_from: ``"folder"`` calls a case after the folder in which its file, zip or DICOM folder lies, as where each
            patient has a folder and all files have one name.

    Raises:
        InputError: something is absent or lacks a channel, nothing is an image, or two cases have one name.
    """
    if name_from not in NAMES_FROM:
        raise InputError("cases cannot be called so", expected=" or ".join(NAMES_FROM), found=name_from)
    chosen, images = _named(series), _named(images)
    if images:
        _check_patterns(images, channels, chosen, name_from)
    cases: dict[str, Subject] = {}
    strays: list[_NoScanError] = []
    problems: list[InputError] = []
    for path in map(Path, inputs):
        try:
            of_path = [_picked(path, channels, chosen, images)] if images else _cases_of(path, channels, chosen)
        except _NoScanError as error:
            strays.append(error)
            continue
        except InputError as error:
            if not images:
                raise
            problems.append(error)  # of a folder; others may lack an image too
            continue
        for found in of_path:
            case = found if name_from == "file" else replace(found, name=_folder_of(found))
            if not case.name:
                raise InputError("no folder lies around this input to call it after", path=path)
            other = cases.get(case.name)
            if other == case:
                continue
            if other is not None:
                raise InputError(
                    f"two inputs would both be called {case.name!r}",
                    path=case.images[0],
                    found=str(other.images[0]),
                    remedy=_told_apart(case, other, name_from, picked=bool(images)),
                )
            cases[case.name] = case
    _refuse(problems)
    if strays and not cases:
        raise strays[0]
    if not cases:
        raise InputError("no scan is given", expected="files or folders", found="an empty list")
    return list(cases.values())


def find_case(
    image: str | Path | Sequence[str | Path], channels: int, series: str | Sequence[str] | None = None
) -> Subject:
    """The one case that a path names, see `find_cases`, or that is made of a list of images, one for each channel.

    Args:
        image: path or paths.
        channels: how many channels the model expects.
        series: as for `find_cases`; of a list, that in each.

    Raises:
        InputError: as `find_cases`; or these are several cases, or not as many images as channels.
    """
    if isinstance(image, (str, os.PathLike)):
        cases = find_cases([image], channels, series)
        if len(cases) != 1:
            raise InputError(
                "the path is not that of one scan",
                path=image,
                found=counted(len(cases), "scan"),
                remedy="predict_all segments a folder of scans",
            )
        return cases[0]
    for part in image:
        if not isinstance(part, (str, os.PathLike)):
            raise InputError(
                "of several images each is given as a path",
                expected="paths, or one Volume (c, z, y, x)",
                found=type(part).__name__,
            )
    paths, chosen = tuple(map(Path, image)), _named(series)
    if len(paths) != channels or len(chosen) not in (0, channels):
        raise InputError(
            f"the model expects {counted(channels, 'channel')}",
            expected="an image for each, and either no series or one for each",
            found=f"{counted(len(paths), 'image')}, {len(chosen)} series",
        )
    for path in paths:
        if not path.exists():
            raise InputError("there is no such file or folder", path=path)
        require_export(path, chosen)
    return Subject("", paths, channels=channels, series=chosen)


def _named(words: str | Sequence[str] | None) -> tuple[str, ...]:
    """What is named, as text, one thing or several; whoever reads that a series is a number, gives one."""
    if words is None:
        return ()
    return (str(words),) if isinstance(words, (str, int)) else tuple(map(str, words))


class _NoScanError(InputError):
    """An input is certainly no scan."""


def _folder_of(case: Subject) -> str:
    """The name of the folder in which a case's input lies."""
    return composed(Path(os.path.abspath(case.images[0])).parent.name)


def _told_apart(one: Subject, other: Subject, name_from: str, *, picked: bool) -> str:
    """How two cases come to have two names."""
    if picked:
        return "give the folders above them, and patterns of the paths from there"
    if name_from == "file" and _folder_of(one) != _folder_of(other):
        return "call cases after their folders with --name-from folder (name_from in Python)"
    return "rename one, or predict them into two folders"


def unread(inputs: Sequence[str | Path], cases: Sequence[Subject], *, picked: bool = False) -> list[Path]:
    """What no case was made of: inputs that are no scans, and what may be scans in folders of cases.

    Those are single DICOM files and other formats. Not counted are what usually lies beside scans (tables, notes,
    results of AtlasNet), folders, and hidden files.

    Args:
        inputs: as for `find_cases`.
        cases: what it found in them.
        picked: whether patterns say which files in the folders are meant, so that no others are told.
    """
    read = {file for case in cases for path in case.images for file in (path, *volume_files(path))}
    found = []
    for folder in (path for path in map(Path, inputs) if path not in read):
        if not folder.is_dir() or not files_below(folder):
            found.append(folder)
            continue
        if picked:
            continue
        for entry in sorted(folder.iterdir()):
            usual = entry.name.startswith(".") or entry.name.lower().endswith(_BESIDE) or entry.name in _NO_SUFFIX
            if entry not in read and not usual and (not entry.is_dir() or _is_export(entry)):
                found.append(entry)
    return found


def warn_of_unread(files: Sequence[Path], reporter: Reporter) -> None:
    """Say which files no case was made of, if any."""
    if files:
        reporter.warn(
            f"not read: {shortened([str(file) for file in files])}; beside image files only folders and zips of DICOM "
            "are cases, of several channels where --series names each; put a DICOM series into a folder of its own, "
            "convert other formats to NIfTI"
        )


def _cases_of(path: Path, channels: int, series: Sequence[str]) -> Iterable[Subject]:
    if not path.exists():
        raise InputError("there is no such file or folder", path=path)
    if path.is_file():
        stem = image_stem(path)
        if of_slicer(path):
            raise _NoScanError("this is a segmentation of 3D Slicer and no scan", path=path, remedy="name the image")
        if stem is None and is_dicom(path):
            return [_dicom(path, path.stem if path.suffix.lower() in DICOM_SUFFIXES else path.name, channels, series)]
        if stem is None:
            raise _NoScanError(
                "the file is not an image that can be read",
                path=path,
                expected=" ".join((*READABLE_SUFFIXES, *DICOM_SUFFIXES)),
            )
        require_export(path, series)
        return [_case(path, stem, channels)]
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    files = [entry for entry in entries if image_stem(entry) and not of_slicer(entry)]
    if not files:
        _check_no_cohort(path, entries, channels)
        return [_dicom(path, folder_name(path), channels, series)]
    exports = [entry for entry in entries if max(len(series), 1) == channels and _is_export(entry)]
    found: dict[str, Subject] = {}
    for file in (*files, *exports):
        stem = image_stem(file)
        if stem is None:
            case = _dicom(file, file.stem if file.is_file() else file.name, channels, series)
        else:
            case = _case(file, stem, channels)
        other = found.setdefault(case.name, case)
        if other != case:
            raise InputError(f"two files would both be case {case.name!r}", path=file, found=str(other.images[0]))
    return found.values()


def _check_patterns(images: Sequence[str], channels: int, series: Sequence[str], name_from: str) -> None:
    """Refuse patterns that are those of no case, whatever lies in its folder."""
    if name_from != "file":
        raise InputError("with patterns of images, cases are called after the folders that are given", found=name_from)
    if len(images) not in (1, channels):
        raise InputError(
            f"the model expects {counted(channels, 'channel')}",
            expected="--image once for each of them, or for one that holds all",
            found=", ".join(map(quoted, images)),
        )
    if series and len(images) > 1:
        raise InputError(
            "channels are either images or DICOM series of one",
            expected="--series with one --image at most",
            found=f"{counted(len(images), 'image')}, {len(series)} series",
        )


def _picked(folder: Path, channels: int, series: Sequence[str], images: Sequence[str]) -> Subject:
    """The images of one case, by a pattern each."""
    if not folder.is_dir():
        problem = "this is no folder, in which images could be found" if folder.exists() else "there is no such folder"
        raise (_NoScanError if folder.exists() else InputError)(problem, path=folder)
    name, files = folder_name(folder), files_below(folder)
    if not files:
        raise _NoScanError("there is nothing in this folder", path=folder)
    paths = find_images(folder, files, images)
    for path in paths:
        if not (_is_export(path) if path.is_dir() else is_dicom(path) or (image_stem(path) and not of_slicer(path))):
            raise InputError(
                "this is not an image that can be read", path=path, expected=" ".join((*READABLE_SUFFIXES, "DICOM"))
            )
    if len(paths) == 1 and is_dicom(paths[0]):
        return _dicom(paths[0], name, channels, series)
    require_export(paths[0], series)
    return Subject(name, paths, channels=channels)


def _refuse(problems: Sequence[InputError]) -> None:
    """Raise what is wrong with the folders of cases, all of it."""
    if len(problems) > 1:
        said = f"of {len(problems)} folders no case can be made, and nothing was begun"
        raise InputError(f"{said}\n{in_lines([*map(str, problems)])}")
    if problems:
        raise problems[0]


def _check_no_cohort(path: Path, entries: Sequence[Path], channels: int) -> None:
    """Refuse a folder without an image file that can be no DICOM series: one of a cohort, or an empty one."""
    expected, parts = "image files, or a DICOM series", [e for e in entries if e.name in PARTS and e.is_dir()]
    if parts:
        scans = [entry for entry in parts if entry.name.startswith("images")]
        raise InputError(
            "this is the folder of a cohort, and not of scans",
            path=path,
            expected=expected,
            found=", ".join(entry.name for entry in parts),
            remedy=f"name the folder of the scans, such as {(scans or parts)[-1]}",
        )
    below = files_below(path)
    if not below:
        raise _NoScanError("there is nothing in this folder", path=path, expected=expected)
    if any(is_dicom(file) or file.suffix.lower() == ".zip" for file in below):
        return
    images = [file for file in below if image_stem(file) and not of_slicer(file)]
    if images:
        remedy = "give the folder of each case, and with --image a pattern of the image of each channel"
        if channels == 1:
            remedy = "give each of these folders as an input, or the files; cases are called after the files, with "
            remedy += "--name-from folder after the folders"
        raise InputError(
            "the images lie in folders of their own",
            path=path,
            expected=f"{expected}, in the folder itself",
            found=shortened([str(file.relative_to(path)) for file in images], 3),
            remedy=remedy,
        )
    raise _NoScanError(
        "no file in this folder is an image that can be read",
        path=path,
        expected=f"{' '.join(READABLE_SUFFIXES)}, or DICOM",
        found=shortened([str(file.relative_to(path)) for file in below], 3),
        remedy="convert them to NIfTI",
    )


def _is_export(entry: Path) -> bool:
    """Whether it is a zip, or a folder with a DICOM file somewhere in it."""
    if entry.is_dir():
        return any(is_dicom(file) for file in files_below(entry))
    return entry.suffix.lower() == ".zip"


def _dicom(path: Path, name: str, channels: int, series: Sequence[str]) -> Subject:
    if max(len(series), 1) != channels:
        from atlasnet.volume.dicom_series import list_series

        raise InputError(
            f"a DICOM series is one channel, and the model expects {channels}",
            path=path,
            expected="--series once for each channel, in the order of the model's (a list of series in Python)",
            found=f"{', '.join(map(series_name, series)) or 'none named'}; there are {list_series(path)}",
            remedy="atlasnet model info names the channels of a model in their order",
        )
    return Subject(composed(name), (path,), channels=channels, series=tuple(series))


def _case(path: Path, stem: str, channels: int) -> Subject:
    name, number = case_and_channel(stem)
    if number is None:
        return Subject(composed(stem), (path,), channels=channels)
    suffix = path.name[len(stem) :]
    if channels == 1:
        alone = number == 0 and not path.with_name(f"{name}_0001{suffix}").exists()
        return Subject(composed(name if alone else stem), (path,))
    paths = tuple(path.with_name(f"{name}_{channel:04d}{suffix}") for channel in range(channels))
    if number >= channels and not paths[0].exists():
        return Subject(composed(stem), (path,), channels=channels)
    absent = [p.name for p in paths if not p.exists()]
    if absent:
        raise InputError(
            "the case lacks a channel",
            path=path,
            expected=f"{counted(channels, 'file')} {name}_0000{suffix} …",
            found="no " + ", ".join(absent),
        )
    return Subject(composed(name), paths, channels=channels)
