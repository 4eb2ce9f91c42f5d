"""The files that a volume is made of, and their hash."""

from __future__ import annotations

from pathlib import Path

from atlasnet.errors import VolumeError
from atlasnet.execution import digest, file_digest, files_below
from atlasnet.volume.names import image_suffix, require_target
from atlasnet.volume.text_headers import metaimage_voxels, nrrd_voxels

_VOXELS = {".mhd": metaimage_voxels, ".mha": metaimage_voxels, ".nhdr": nrrd_voxels, ".nrrd": nrrd_voxels}


def volume_files(path: Path) -> list[Path]:
    """All files that are read: those of a DICOM folder and the folders in it; a header, and where its voxels lie.

    A damaged header stands alone, and links that lead nowhere are left out: whoever reads them says what is wrong.
    """
    if path.is_dir():
        return [file for file in files_below(path) if file.is_file()]
    find = _VOXELS.get(image_suffix(path) or "")
    try:
        voxels = None if find is None else find(path)
    except (VolumeError, OSError):
        voxels = None
    return [path] if voxels is None else [path, voxels]


def require_files(path: Path) -> None:
    """Find out that of a volume a file is not there, which `volume_files` leaves out.

    Raises:
        OSError: a folder or a header cannot be read.
        VolumeError: a link, in a DICOM folder too, leads nowhere, or where the voxels lie is not to be found.
    """
    require_target(path)
    if path.is_dir():
        for file in files_below(path):
            require_target(file)
    elif (find := _VOXELS.get(image_suffix(path) or "")) is not None:
        find(path)


def volume_digest(path: Path) -> str:
    """SHA-256 of the file, or a hash of those of all its files; the same voxels in the same files have the same.

    Raises:
        OSError: a file cannot be read.
    """
    files = volume_files(path)
    return file_digest(path) if files == [path] else digest([file_digest(file) for file in files])
