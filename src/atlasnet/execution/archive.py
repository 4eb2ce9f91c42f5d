"""Zip archives: whole or absent when they are written, and unpacked without trusting them."""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from atlasnet.errors import InputError
from atlasnet.execution.files import atomic_path, made_alone

MOST_ENTRIES = 100_000
LARGEST_RATIO = 100
"""How many times its own size an archive may unpack to, beyond a gibibyte; images shrink to a twentieth at best."""


class Unpacked:
    """The content of a zip in a temporary folder, which goes when this object does; see `unpack` for the arguments."""

    def __init__(self, path: Path, *, largest: int, error: type[InputError], what: str) -> None:
        self.archive, self.folder = path, Path(tempfile.mkdtemp(prefix="atlasnet-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        unpack(path, self.folder, largest=largest, error=error, what=what)

    def known(self, place: Path) -> Path:
        """A place in the folder as the user knows it: in the archive."""
        return self.archive / place.relative_to(self.folder)


def pack(path: str | Path, entries: Mapping[str, Path | str]) -> None:
    """Write a zip, whole or not at all.

    Args:
        path: of the zip.
        entries: by the name in the zip, a file or a text.

    Raises:
        InputError: another process is writing it.
    """
    # Nothing is compressed: images and weights are not smaller for it.
    with (
        made_alone(Path(path)),
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive,
    ):
        for name, content in entries.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)


def unpack(path: Path, folder: Path, *, largest: int, error: type[InputError], what: str) -> None:
    """Unpack the zip ``path`` into the existing ``folder``.

    Nothing is written before every name and size is checked, nothing outside ``folder``, and of each entry no more
    than the size that it states.

    Args:
        path: the archive.
        folder: receives the files.
        largest: bytes that it may unpack to.
        error: the kind of error to raise.
        what: the file should be, with its article, for the message.

    Raises:
        InputError: (as ``error``) not a zip, damaged, encrypted, compressed in a way but deflate, naming a file outside
            itself, too large, or larger than the space that is left.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check(path, folder, entries, largest, error)
            archive.extractall(folder, entries)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, struct.error, zlib.error) as problem:
        raise error(
            f"the file is not {what}, or it is damaged",
            path=path,
            found=str(problem),
            remedy="copy or export it again",
        ) from problem


def _check(path: Path, folder: Path, entries: Sequence[zipfile.ZipInfo], largest: int, error: type[InputError]) -> None:
    """Refuse what may not be unpacked; the entries go by the names that were checked afterwards."""
    for entry in entries:
        name = entry.filename = entry.filename.replace("\\", "/")  # as older Windows programs wrote it
        if entry.flag_bits & 1:
            raise error(
                "the zip is protected by a password",
                path=path,
                remedy="unpack it with the password, and give the folder",
            )
        if not name or name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in PurePosixPath(name).parts:
            raise error("the zip names a file outside itself", path=path, found=repr(name[:80]))
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise error("the zip is compressed in a way that is not read", path=path, expected="deflate")
    size = sum(entry.file_size for entry in entries)
    allowed = min(largest, max(2**30, LARGEST_RATIO * path.stat().st_size))
    if size > allowed or len(entries) > MOST_ENTRIES:
        raise error(
            "the zip claims to hold more than it may",
            path=path,
            expected=f"at most {allowed} bytes in {MOST_ENTRIES} files",
            found=f"{size} bytes in {len(entries)} files",
            remedy="unpack it yourself, if you trust it, and give the folder",
        )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise error(
            "there is no space to unpack the zip",
            path=path,
            expected=f"{size} bytes free in {folder}",
            found=f"{free} bytes",
            remedy="free some, or name another place with TMPDIR",
        )
