"""How several models that segment together lie on disk: a folder, or its zip, with a folder of each and a manifest.

ensemble.json            format, and of every model its folder and its checksum, in their order
FOLDER/model.json, ...   each model; see `atlasnet.training.model`

Whatever else a folder holds, the predictions of a cross-validation say, is no part of the models and never shipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlasnet.errors import ModelError
from atlasnet.execution import Unpacked, json_text, read_json
from atlasnet.training.model import TOGETHER, Model, unpacked_archive
from atlasnet.volume.names import is_file_name

FORMAT = 1
Named = tuple[str, Model]


def read_members(path: Path) -> list[Named]:
    """The models of a folder or zip, by name: those of its manifest, or the one that it is.

    Raises:
        ModelError: one is not there, not finished, damaged or tampered with, or another than the manifest says.
    """
    unpacked = unpacked_archive(path) if path.is_file() else None
    folder = path if unpacked is None else unpacked.folder
    if (folder / TOGETHER).exists():
        return [_read(folder, unpacked, name, expected) for name, expected in _manifest(path, folder).items()]
    if (folder / "folds.json").exists():
        raise ModelError(
            "the models of this cross-validation were not asked for as an ensemble",
            path=path,
            remedy="run the same atlasnet train command with --ensemble; what is finished is not done again",
        )
    name = path.resolve().name if unpacked is None else path.stem
    return [(name, Model.load(folder, unpacked=unpacked))]


def manifest(members: Sequence[Named]) -> dict[str, Any]:
    """What ``ensemble.json`` holds."""
    return {"format": FORMAT, "models": [{"folder": name, "checksum": model.checksum} for name, model in members]}


def shipped(members: Sequence[Named]) -> dict[str, Path | str]:
    """What of the models is carried elsewhere, by its name in a folder or zip of them: a file, or its text.

    Raises:
        ModelError: they are called what folders cannot be.
    """
    names = [name for name, _ in members]
    if len({*names, TOGETHER}) <= len(names) or not all(map(is_file_name, names)):
        raise ModelError(
            "the models cannot lie in folders of these names",
            expected="names of folders, no two alike",
            found=", ".join(repr(name[:80]) for name in names),
        )
    files: dict[str, Path | str] = {TOGETHER: json_text(manifest(members))}
    return files | {f"{own}/{name}": path for own, model in members for name, path in model.shipped.items()}


def _manifest(path: Path, folder: Path) -> dict[str, str]:
    """The checksums of the models by their folders, in their order."""
    place = path / TOGETHER
    try:
        content = read_json(folder / TOGETHER)
        found = content["format"]
        listed = [_entry(entry) for entry in content["models"]] if found == FORMAT else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{TOGETHER} cannot be read", path=place, found=f"{type(error).__name__}: {error}") from error
    if found != FORMAT:
        raise ModelError(
            "the format of the ensemble is not one that this version reads",
            path=place,
            expected=f"format {FORMAT}",
            found=f"format {found}",
            remedy="install the version of atlasnet that wrote it",
        )
    names = [name for name, _ in listed]
    wrong = [name for name in names if not is_file_name(name)]
    if wrong:
        raise ModelError("a model of an ensemble has a name that is no folder's", path=place, found=repr(wrong[0][:80]))
    if not names or len(set(names)) < len(names):
        raise ModelError(
            "the ensemble does not name each of its models once",
            path=place,
            expected="at least one",
            found=", ".join(names) or "none",
        )
    return dict(listed)


def _entry(value: Any) -> tuple[str, str]:
    return str(value["folder"]), str(value["checksum"])


def _read(folder: Path, unpacked: Unpacked | None, name: str, expected: str) -> Named:
    model = Model.load(folder / name, unpacked=unpacked)
    if model.checksum != expected:
        raise ModelError(
            "the model is not the one that the ensemble was made of",
            path=model.place,
            expected=f"the checksum in {TOGETHER}",
            remedy="copy the ensemble again, or run the same atlasnet train command with --ensemble again",
        )
    return name, model
