"""What the names of image files say: their format, their case; and whether a path is DICOM."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from atlasnet.errors import InputError, VolumeError
from atlasnet.execution import leads_nowhere
from atlasnet.wording import quoted, shortened

READABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_SUFFIXES = (".dcm", ".ima", ".zip")
SLICER_SUFFIXES = (".seg.nrrd", ".seg.nhdr")
"""Of segmentations of 3D Slicer: label maps, in one or more layers, whose headers name their segments."""
LONGEST_FIRST = 1024  # bytes of a file's first element

_LONGEST_NAME = 200  # bytes; a suffix and the mark of an unfinished file come behind it


def image_suffix(path: str | Path) -> str | None:
    """The readable image suffix (lower case, ``.nii.gz`` as a whole) of a file name, or None."""
    name = Path(path).name.lower()
    return next((suffix for suffix in READABLE_SUFFIXES if name.endswith(suffix)), None)


def image_stem(path: Path) -> str | None:
    """The file name without its image suffix (``.seg.nrrd`` as a whole), or None when it has none."""
    name = path.name.lower()
    suffix = next((suffix for suffix in SLICER_SUFFIXES if name.endswith(suffix)), image_suffix(path))
    return None if suffix is None or len(name) == len(suffix) else path.name[: -len(suffix)]


def of_slicer(path: Path) -> bool:
    """Whether this is called like a segmentation of 3D Slicer."""
    return path.name.lower().endswith(SLICER_SUFFIXES)


def is_file_name(name: str) -> bool:
    """Whether what a case, atlas or model is called can be the name of its file or folder, and of no other place."""
    return (
        name.isprintable()
        and PurePath(name).name == name
        and name not in ("", ".", "..")
        and len(name.encode()) <= _LONGEST_NAME
    )


def composed(name: str) -> str:
    """A name as most systems write it: macOS gives letters and their accents apart, and means the same."""
    return unicodedata.normalize("NFC", name)


def folder_name(folder: Path) -> str:
    """What a folder is called, `composed`, of ``.`` too; of a link its own name, not that of what it leads to."""
    return composed(Path(os.path.abspath(folder)).name)


def case_and_channel(stem: str) -> tuple[str, int | None]:
    """What ``CASE_0001`` names: the case and the number of its channel; without four digits the whole, and None."""
    case, _, number = stem.rpartition("_")
    return (case, int(number)) if case and len(number) == 4 and number.isdecimal() else (stem, None)


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images of a folder, but for hidden ones, by the stems of their names, `composed`.

    Raises:
        InputError: two files have one stem.
        VolumeError: an image is a link that leads nowhere: it may not be passed over.
    """
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        stem = image_stem(file)
        if stem is None or file.name.startswith("."):
            continue
        require_target(file)
        if not file.is_file():
            continue
        stem = composed(stem)
        if stem in found:
            raise InputError(
                f"two files are called {stem}", path=file, found=f"{found[stem].name} beside it", remedy="remove one"
            )
        found[stem] = file
    return found


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern, in which ``*`` and ``?`` stand for any letters and all else for itself."""
    return fnmatchcase(composed(name), composed(pattern).replace("[", "[[]"))


def find_below(folder: Path, files: Iterable[Path], pattern: str, option: str) -> Path:
    """The one file or folder whose path below ``folder`` fits a pattern (``*`` and ``?``, for ``/`` too).

    A folder that fits stands for what fits in it, as all slices in a folder of DICOM do, unless an image is among it.

    Args:
        folder: where it lies.
        files: all that lie below it.
        pattern: of the path there.
        option: by which the pattern was given, for the message.

    Raises:
        InputError: none fits, or several do.
    """
    below = [file.relative_to(folder) for file in files]
    folders = sorted({parent for place in below for parent in place.parents if parent.name})
    names = {place.as_posix(): folder / place for place in (*folders, *below)}
    wanted = PurePath(pattern).as_posix()
    fitting = [name for name in names if fits(name, wanted)]
    alike = {*fitting}
    within = {name for name in fitting if any(str(parent) in alike for parent in PurePosixPath(name).parents)}
    if not any(map(image_suffix, within)):
        fitting = [name for name in fitting if name not in within]
    if len(fitting) != 1:
        raise InputError(
            f"{len(fitting)} files or folders fit {option} {quoted(pattern)}",
            path=folder,
            expected="one",
            found=shortened(fitting or list(names), 8) or "an empty folder",
            remedy="give its path below this folder, which is that of one case; * and ? stand for any letters",
        )
    return names[fitting[0]]


def find_images(folder: Path, files: Collection[Path], patterns: Sequence[str]) -> tuple[Path, ...]:
    """The image of each channel of a case, see `find_below`.

    Args:
        folder: of the case.
        files: all that lie below it.
        patterns: of their paths there, one for each.

    Raises:
        InputError: none or several fit a pattern, or two patterns are of one image.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        path = find_below(folder, files, pattern, "--image")
        if path in found:
            raise InputError(
                "two channels are one image",
                path=path,
                expected="an image for each --image",
                found=f"{quoted(found[path])} and {quoted(pattern)}",
            )
        found[path] = pattern
    return tuple(found)


def require_target(file: Path) -> None:
    """Refuse a link whose target is not there.

    Raises:
        VolumeError: it is one.
    """
    if leads_nowhere(file):
        raise VolumeError(
            "the link leads nowhere",
            path=file,
            remedy="get its content (such as by datalad get), or put a copy of the file in its place",
        )


def is_dicom(path: str | Path) -> bool:
    """Whether this is read as DICOM: a folder, a zip, or a file that is DICOM by its name or its first bytes."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if image_suffix(path) is not None or not path.is_file():
        return False
    with path.open("rb") as stream:
        return begins_dicom(stream.read(132))


def begins_dicom(start: bytes) -> bool:
    """Whether a file with these first 132 bytes may be DICOM; one older than the preamble begins with an element.

    That is one of the first two groups, in little endian, with a type or with the length of a short value.
    """
    if start[128:] == b"DICM":
        return True
    group, kind = start[:2], start[4:6]
    first = group in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00"
    typed = kind.isalpha() and kind.isupper()
    return first and (typed or int.from_bytes(start[4:8], "little") < LONGEST_FIRST)


def check_name(path: Path) -> None:
    """Refuse a name that is not in UTF-8: at one, ITK ends the whole process.

    Raises:
        VolumeError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise VolumeError("the name of the file is not in UTF-8", path=path, remedy="rename it") from error
