"""Which subjects take part, as a user lists them."""

from __future__ import annotations

from pathlib import Path

from atlasnet.errors import CohortError
from atlasnet.volume.names import composed


def read_names(path: str | Path) -> list[str]:
    """Read a text file with one case name a line; empty lines and lines that begin with # are left out.

    Raises:
        CohortError: the file cannot be read, names nobody, or names somebody twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError("the list of subjects cannot be read", path=path, found=str(error)) from error
    names = [composed(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise CohortError("the list of subjects is empty", path=path, expected="one case name a line")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CohortError("a subject is listed twice", path=path, found=", ".join(twice))
    return names
