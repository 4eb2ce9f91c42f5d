"""Writing volumes: NIfTI, NRRD and MetaImage files, by SimpleITK."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.execution import atomic_path, move
from atlasnet.volume.headers import check_nifti
from atlasnet.volume.io import itk_reason, quiet_itk
from atlasnet.volume.names import check_name, image_suffix
from atlasnet.volume.volume import Volume, all_finite, require_volume

WRITABLE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd")  # the longer of two endings first

_STORED_TYPES = tuple(np.dtype(t) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"))
_INTENT_OFFSET, _INTENT_LABEL = 68, 1002  # of a NIfTI-1 header: where its intent stands, and that of a label map
_GZIP_LEVEL = 6  # as ITK compresses; Python's own choice, 9, takes ten times as long


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume in the format that the suffix names: .nii, .nii.gz, .nrrd, .mha or .mhd.

    All but .nii and .mhd are compressed. The file appears whole or not at all (of the two files of .mhd, the voxels
    come first). Several channels become NIfTI's fourth axis, and a vector per voxel in the other formats. bool is
    stored as uint8, float16 as float32, 64-bit integers in the smallest integer type that holds every value.

    Raises:
        VolumeError: an array without geometry, an unknown suffix, a name that is not in UTF-8, a voxel type that no
            format keeps faithfully, or voxels that are not finite, which nothing could read again.
        OSError: the file cannot be written whole, for one because the disk is full.
    """
    require_volume(volume)
    path = Path(path)
    image = _as_stored(path, volume)
    with atomic_path(path) as temporary:
        write_sitk(temporary, image, path)
        if _suffix(path) == ".mhd":
            move(temporary.with_suffix(".raw"), path.with_suffix(".raw"))


def write_labels(path: str | Path, labels: Volume, fields: Mapping[str, str] | None = None) -> None:
    """Write a label map as `write_volume` does, and in NIfTI say that it is one: intent code 1002, NIFTI_INTENT_LABEL.

    Viewers then show labels instead of intensities. The other formats have no word for it.

    Args:
        path: of the file.
        labels: whole numbers in an integer type, or bool, (c, z, y, x).
        fields: of the header, by their names; NRRD keeps them, the others have no place for them.

    Raises:
        VolumeError: as `write_volume`, or the voxels are of another type.
        OSError: as `write_volume`.
    """
    require_volume(labels, "the label map")
    path = Path(path)
    if labels.array.dtype.kind not in "biu":
        raise VolumeError(
            "a label map must hold whole numbers",
            path=path,
            expected="an integer type",
            found=str(labels.array.dtype),
            remedy="write an image with write_volume, or convert labels to integers",
        )
    suffix = _suffix(path)
    if not suffix.startswith(".nii") and not (fields and suffix == ".nrrd"):
        write_volume(path, labels)
        return
    image = _as_stored(path, labels)
    if suffix == ".nrrd":
        for name, value in (fields or {}).items():
            image.SetMetaData(name, value)
        with atomic_path(path) as temporary:
            write_sitk(temporary, image, path)
        return
    with atomic_path(path) as temporary:
        # Nothing can be changed within compressed bytes, so the header is completed before they are compressed.
        plain = temporary.with_suffix("") if suffix == ".nii.gz" else temporary
        write_sitk(plain, image, path)
        with plain.open("r+b") as stream:
            stream.seek(_INTENT_OFFSET)
            stream.write(struct.pack("=h", _INTENT_LABEL))  # ITK writes in the order of this machine
        if plain != temporary:
            _compress(plain, temporary)


def _suffix(path: Path) -> str:
    """The writable suffix of a file name, in lower case."""
    suffix = image_suffix(path)
    if suffix not in WRITABLE_SUFFIXES:
        raise VolumeError(
            "the format cannot be written", path=path, expected="a name ending in " + ", ".join(WRITABLE_SUFFIXES)
        )
    return suffix


def _as_stored(path: Path, volume: Volume) -> sitk.Image:
    """The image that ITK writes to ``path``, in a voxel type that the format keeps."""
    check_name(path)
    if not all_finite(volume.array):
        raise VolumeError(
            "the image has voxels that are not finite",
            path=path,
            found="NaN or infinity",
            remedy="replace them by a number, for instance the air or background value",
        )
    vector = not _suffix(path).startswith(".nii")
    return to_sitk(Volume(_storable(path, volume.array), volume.grid), vector=vector)


def write_sitk(temporary: Path, image: sitk.Image, path: Path) -> None:
    """Have ITK write an image to ``temporary``, which is to become ``path``, and see that all of it is there.

    ITK does not notice that a disk is full while it writes NIfTI: what was written is read again.

    Raises:
        OSError: it cannot be written whole.
    """
    suffix = _suffix(temporary)
    # ITK writes by suffixes in small letters only. The voxels of .mhd stay beside it, under the name that it says.
    written = temporary.with_name(temporary.name[: -len(suffix)] + suffix)
    with quiet_itk():
        try:
            sitk.WriteImage(image, str(written), useCompression=suffix not in (".nii", ".mhd"))
        except RuntimeError as error:
            raise OSError(f"{path}: the image cannot be written: {itk_reason(error)}") from error
    if suffix.startswith(".nii"):
        try:
            check_nifti(written)
        except VolumeError as error:
            raise OSError(f"{path}: it could not be written whole ({error.problem}): is the disk full?") from error
    move(written, temporary)


def _compress(plain: Path, compressed: Path) -> None:
    """Compress a file; no name and no time go into the result, so that equal files stay equal."""
    with (
        plain.open("rb") as source,
        compressed.open("wb") as target,
        gzip.GzipFile("", "wb", _GZIP_LEVEL, target, mtime=0) as stream,
    ):
        shutil.copyfileobj(source, stream, 1 << 20)


def to_sitk(volume: Volume, *, vector: bool = True) -> sitk.Image:
    """A SimpleITK image of the volume: 3-D; with several channels a vector image, or 4-D where ``vector`` is false."""
    grid, array = volume.grid, volume.array
    if volume.channels == 1:
        image = sitk.GetImageFromArray(array[0])
    elif vector:
        image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(array, 0, -1)), isVector=True)
    else:
        image = sitk.GetImageFromArray(array, isVector=False)
    extra = image.GetDimension() - 3
    direction = np.eye(3 + extra)
    direction[:3, :3] = grid.direction
    image.SetSpacing([*grid.spacing.tolist(), *[1.0] * extra])
    image.SetOrigin([*grid.origin.tolist(), *[0.0] * extra])
    image.SetDirection(direction.ravel().tolist())
    return image


def _storable(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    kind, dtype = array.dtype.kind, array.dtype
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "f" and dtype.itemsize == 2:
        return array.astype(np.float32)
    native = dtype.newbyteorder("=")
    if native in _STORED_TYPES:
        return np.ascontiguousarray(array, dtype=native)
    if kind in "iu":
        low, high = int(array.min()), int(array.max())
        for candidate in _STORED_TYPES[:6]:
            limits = np.iinfo(candidate)
            if limits.min <= low and high <= limits.max:
                return array.astype(candidate)
        raise VolumeError(
            "the values do not fit 32 bits", path=path, found=f"{low} to {high}", remedy="write them as float64"
        )
    raise VolumeError(
        "this voxel type cannot be written", path=path, expected="integers or floats of up to 64 bits", found=str(dtype)
    )
