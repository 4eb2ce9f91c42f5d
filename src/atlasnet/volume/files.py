"""The files that a volume is made of, and their hash."""

from __future__ import annotations

from pathlib import Path

from atlasnet.errors import VolumeError
from atlasnet.execution import digest, file_digest, files_below
from atlasnet.volume.names import image_suffix
from atlasnet.volume.text_headers import metaimage_voxels, nrrd_voxels


def volume_files(path: Path) -> list[Path]:
    """All files that are read: those of a DICOM folder and the folders in it; a header, and where its voxels lie.

    A damaged header stands alone, and links that lead nowhere are left out: whoever reads them says what is wrong.
    """
    if path.is_dir():
        return [file for file in files_below(path) if file.is_file()]
    find = {".mhd": metaimage_voxels, ".mha": metaimage_voxels, ".nhdr": nrrd_voxels, ".nrrd": nrrd_voxels}.get(
        image_suffix(path) or ""
    )
    try:
        voxels = None if find is None else find(path)
    except (VolumeError, OSError):
        voxels = None
    return [path] if voxels is None else [path, voxels]


def volume_digest(path: Path) -> str:
    """SHA-256 of the file, or a hash of those of all its files; the same voxels in the same files have the same.

    Raises:
        OSError: a file cannot be read.
    """
    files = volume_files(path)
    return file_digest(path) if files == [path] else digest([file_digest(file) for file in files])
