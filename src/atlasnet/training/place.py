"""What a folder holds already, so that files of one kind do not come to lie among those of another."""

from __future__ import annotations

from pathlib import Path

from atlasnet.errors import ModelError
from atlasnet.training.model import TOGETHER

MODEL, VALIDATION, STUDY = "a model", "a cross-validation", "a study"

# The ensemble of a cross-validation is called after that.
_MARKS = {"model.json": MODEL, "folds.json": VALIDATION, TOGETHER: "an ensemble", "study.json": STUDY}


def require_no_other(folder: Path, wanted: str) -> None:
    """Find out before any work that a folder holds something else than what is to be made in it.

    Args:
        folder: of the results; it need not exist.
        wanted: what they are, one of `MODEL`, `VALIDATION` and `STUDY`.

    Raises:
        ModelError: it holds something else, and nothing of this kind.
    """
    found = {what: name for name, what in _MARKS.items() if (folder / name).exists()}
    if found and wanted not in found:
        what, name = next(iter(found.items()))
        raise ModelError(
            f"the folder holds {what}, not {wanted}",
            path=folder,
            found=name,
            remedy="give another folder with -o",
        )
