"""Folders searched with all that is in them, behind links too."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path, *, strict: bool = False) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go as `os.walk` does, through links as well; a folder that several ways lead to is entered once.

    Yields:
        a folder, the names of the folders in it (what is removed from them is not entered), and those of its files, to
        which links that lead nowhere belong.

    Raises:
        OSError: with ``strict``, a folder cannot be read, which is passed over without.
    """
    entered = set(folder.resolve().parents)  # a link to what holds the folder leads back into it
    for root, folders, files in os.walk(folder, onerror=_raise if strict else None, followlinks=True):
        place = Path(root).resolve()
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders.sort()  # of several ways to a folder, the same one on every machine
        yield Path(root), folders, files


def leads_nowhere(path: Path) -> bool:
    """Whether a link's target is not there, as in a DataLad folder whose contents have not been fetched."""
    return path.is_symlink() and not path.exists()


def place_of(path: Path) -> Path:
    """Where a path leads, to be compared with other such places, and for nothing else.

    The file system of macOS tells neither capitals from small letters nor how accents are encoded. (Paths of Windows
    compare as its files do by themselves.)
    """
    place = path.resolve()
    return Path(unicodedata.normalize("NFC", str(place)).casefold()) if sys.platform == "darwin" else place


def _raise(error: OSError) -> None:
    raise error


def files_below(folder: Path) -> list[Path]:
    """Every file in the folder and those in it, in the order of their paths; hidden ones are left out.

    Links that lead nowhere are among them: what a link should have led to may not be passed over.

    Raises:
        OSError: a folder cannot be read.
    """
    found = []
    for root, folders, names in walk(folder, strict=True):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        found += [root / name for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file() or file.is_symlink())
