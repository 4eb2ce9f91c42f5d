"""Results lie apart from the scans: a model's plan and figures are none of theirs."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from atlasnet.cohort.subject import Subject
from atlasnet.errors import InputError


def require_apart(folder: Path, subjects: Sequence[Subject], root: Path | None = None) -> None:
    """Find out before any work that results would lie among the scans.

    Args:
        folder: of the results.
        subjects: what is read.
        root: their folder, by default the innermost that holds all their files. A folder in it is apart from the scans,
            as ``DATA/model`` is.

    Raises:
        InputError: it is that folder, or lies in one of images, references or organ masks.
    """
    files = [file for s in subjects for file in (*s.images, s.labels, s.mask) if file is not None]
    read = {file.parent.resolve() for file in files}
    if not read:
        return
    place, whole = folder.resolve(), _innermost(read) if root is None else root.resolve()
    # Whoever trains does not read the last two.
    read |= {whole / "imagesTs", whole / "labelsTs"}
    # A dataset.json may list what lies in the folder itself, or above it.
    if place == whole or any(place.is_relative_to(f) and not whole.is_relative_to(f) for f in read):
        raise InputError(
            "results would lie among the scans",
            path=folder,
            expected="another folder than that of the scans",
            remedy=f"give another one, such as {(whole if root is None else root) / 'results'}",
        )


def _innermost(folders: Collection[Path]) -> Path:
    """The folder that holds all of them; a drive of Windows where they lie on several."""
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:
        return Path(min(folders).anchor)
