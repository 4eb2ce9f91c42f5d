"""Every exception that AtlasNet raises on purpose.

    AtlasNetError
    ├── InputError            what the user gave cannot be used
    │   ├── VolumeError       an image file, its voxels or its geometry
    │   ├── CohortError       a folder of subjects
    │   ├── ModelError        a model folder or archive
    │   └── TransformError    a spatial map, in memory or in a file
    ├── RegistrationError     no acceptable map was found
    ├── UnusualInputError     a scan is not like the training subjects, and no such scan shall be segmented
    └── Cancelled             the caller asked for the work to stop

A message names the file, what was expected, what was found and what mends it: enough to act on without reading code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

# NumPy raises a MemoryError; torch, the libraries of a GPU, and ITK a RuntimeError, each in words of its own.
_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|[Ff]ailed to allocate memory|bad_alloc|_ALLOC_FAILED"
)
# What the system's loader, Python and oneDNN say where memory is the reason, and seldom another one is.
_SEEMS_NO_MEMORY = re.compile("failed to map segment|can't start new thread|could not create a (primitive|memory)")


class AtlasNetError(Exception):
    """Root of the tree; the command line prints its text without a traceback."""

    exit_code = 1


class InputError(AtlasNetError):
    """Something that the user gave cannot be used.

    Args:
        problem: one sentence, without a full stop.
        path: the file or folder at fault.
        expected: what would have been right.
        found: what was there instead.
        remedy: the change or command that mends it.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        path: str | Path | None = None,
        expected: str | None = None,
        found: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem, self.path, self.expected, self.found, self.remedy = problem, path, expected, found, remedy
        text = f"{path}: {problem}" if path is not None else problem
        details = [
            f"{word} {value}"
            for word, value in (("expected", expected), ("found", found), ("to mend it:", remedy))
            if value is not None
        ]
        super().__init__("; ".join([text, *details]))

    def told(self, *, problem: str | None = None, path: str | Path | None = None, remedy: str | None = None) -> Self:
        """The same error as whoever catches it knows more: another problem, about another path, another remedy."""
        return type(self)(
            self.problem if problem is None else problem,
            path=self.path if path is None else path,
            expected=self.expected,
            found=self.found,
            remedy=self.remedy if remedy is None else remedy,
        )


class VolumeError(InputError):
    """An image file, its voxels or its geometry cannot be used."""


class CohortError(InputError):
    """A folder of subjects cannot be used."""


class ModelError(InputError):
    """A model folder or archive cannot be used."""


class TransformError(InputError):
    """A spatial map cannot be used."""


class RegistrationError(AtlasNetError):
    """No acceptable map between two images was found."""


class UnusualInputError(AtlasNetError):
    """A scan is not like the training subjects, and the caller wants no such scan segmented."""

    exit_code = 3


class Cancelled(AtlasNetError):
    """The caller asked for the work to stop; what was finished stays on disk."""

    exit_code = 130


def require_folder(path: Path) -> None:
    """Refuse a cohort's folder that is not there; the command line asks before libraries take seconds to load.

    Raises:
        CohortError: it is not.
    """
    if not path.is_dir():
        what = "this is not a folder" if path.exists() else "there is no such folder"
        raise CohortError(what, path=path, expected="a folder of subjects")


def explained(problem: Exception) -> AtlasNetError | None:
    """What work failed of, as one of ours; None where that is for nobody to mend but us."""
    if isinstance(problem, AtlasNetError):
        return problem
    if isinstance(problem, OSError):
        return AtlasNetError(f"a file cannot be read or written: {problem}")
    if isinstance(problem, MemoryError) or _NO_MEMORY.search(str(problem)):
        text = str(problem).strip().splitlines()
        return AtlasNetError("; ".join(["the memory does not suffice", *text[-1:]]))
    if _SEEMS_NO_MEMORY.search(str(problem)):
        return AtlasNetError(f"the memory does not suffice, it seems, or a limit (ulimit) is too low: {problem}")
    return None
