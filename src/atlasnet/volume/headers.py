"""What an image file says of itself, checked before ITK reads it.

ITK reads a truncated NIfTI file, compressed or not, without an exception, replaces a spacing of zero by one, and prints
its doubts on the console. What it hides is checked here on the file's own bytes: that the header makes sense and that
every voxel is there.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlasnet.errors import VolumeError

_CHUNK = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_COPY_AGAIN = "copy or export the file again"


class NiftiGeometry(NamedTuple):
    """The geometry that a NIfTI header states, RAS as stored.

    ``sform`` (3, 3) columns in mm or None where its code is 0; ``qform`` (3, 3) rotation or None; ``spacing`` of the
    axes, mm.
    """

    sform: NDArray[np.float64] | None
    qform: NDArray[np.float64] | None
    spacing: tuple[float, ...]


def check_nifti(path: Path, voxels: bool = True) -> NiftiGeometry:
    """Check a NIfTI-1 file's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not NIfTI-1, truncated, damaged, empty, or with a spacing that is not positive.
    """
    with path.open("rb") as plain:
        compressed = plain.read(2) == _GZIP_MAGIC
        plain.seek(0)
        if not compressed:
            return _check_nifti_stream(path, plain, voxels)
        try:
            with gzip.GzipFile(fileobj=plain) as stream:
                return _check_nifti_stream(path, stream, voxels)  # type: ignore[arg-type]  # GzipFile reads and seeks like any file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(path, str(error)) from error


def _check_nifti_stream(path: Path, stream: BinaryIO, voxels: bool) -> NiftiGeometry:
    header = stream.read(348)
    if len(header) < 348:
        raise _damaged(path, f"{len(header)} bytes, less than a header")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", header)[0] == 348), None)
    if order is None or header[344:348] not in (b"n+1\0", b"ni1\0"):
        raise VolumeError("this is not a NIfTI file", path=path, expected="a NIfTI-1 header", found=repr(header[:12]))
    if header[344:348] == b"ni1\0":
        raise VolumeError(
            "the NIfTI header refers to a separate image file", path=path, remedy="convert the pair to one .nii.gz file"
        )
    dimensions, *sizes = struct.unpack_from(f"{order}8h", header, 40)
    if not 1 <= dimensions <= 7 or min(sizes[:dimensions]) < 0:
        raise VolumeError("the NIfTI header gives impossible sizes", path=path, found=str([dimensions, *sizes]))
    sizes = sizes[:dimensions]
    _check_size(path, sizes)
    qfac, *spacing = struct.unpack_from(f"{order}8f", header, 76)
    spacing = spacing[: min(3, dimensions)]
    _check_spacing(path, spacing)
    bits, offset = struct.unpack_from(f"{order}h", header, 72)[0], struct.unpack_from(f"{order}f", header, 108)[0]
    expected = int(offset) + int(np.prod(sizes, dtype=np.int64)) * bits // 8
    found = len(header)
    while voxels and (chunk := stream.read(_CHUNK)):
        found += len(chunk)
    if voxels and found < expected:
        raise _truncated(path, expected, found)
    qcode, scode = struct.unpack_from(f"{order}2h", header, 252)
    sform = np.array(struct.unpack_from(f"{order}12f", header, 280), dtype=np.float64).reshape(3, 4)[:, :3]
    quaternion = struct.unpack_from(f"{order}3f", header, 256)
    return NiftiGeometry(
        sform if scode > 0 else None,
        _rotation(quaternion, qfac) if qcode > 0 else None,
        tuple(float(s) for s in spacing),
    )


def _rotation(quaternion: Sequence[float], qfac: float) -> NDArray[np.float64]:
    """The rotation of NIfTI's method 2; ``qfac`` below zero mirrors the third axis."""
    b, c, d = quaternion
    a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    matrix = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    matrix[:, 2] *= -1 if qfac < 0 else 1
    return matrix


def check_metaimage(path: Path, voxels: bool = True) -> None:
    """Check a MetaImage's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not MetaImage, truncated, damaged, empty, made of several files, or a spacing is not positive.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while "ElementDataFile" not in fields:
            line = stream.readline(4096)
            name, separator, value = line.partition(b"=")
            if not separator:
                raise VolumeError("this is not a MetaImage header, or it is cut off", path=path, found=repr(line[:40]))
            fields[name.decode("latin-1").strip()] = value.decode("utf-8", "replace").strip()
        start = stream.tell()
    sizes = _numbers(path, fields.get("DimSize", ""), "DimSize")
    _check_size(path, sizes)
    field = next((field for field in ("ElementSpacing", "ElementSize") if field in fields), None)
    if field is not None:
        _check_spacing(path, _numbers(path, fields[field], field)[:3])
    data = fields["ElementDataFile"]
    if data.split()[0:1] == ["LIST"] or "%" in data:
        raise VolumeError(
            "a MetaImage spread over several files is not supported", path=path, remedy="save it as one file"
        )
    if not voxels or fields.get("BinaryData", "True").lower() == "false":
        return
    width = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}.get(
        fields.get("ElementType", "")
        .upper()
        .removeprefix("MET_")
        .replace("UCHAR", "CHAR")
        .replace("USHORT", "SHORT")
        .replace("UINT", "INT")
        .replace("ULONG", "LONG")
    )
    if width is None:
        raise VolumeError("the type of the voxels is not supported", path=path, found=fields.get("ElementType", "none"))
    expected = int(np.prod(sizes)) * width * int(fields.get("ElementNumberOfChannels", "1"))
    file, offset = (path, start) if data.upper() == "LOCAL" else (path.parent / data, 0)
    if not file.is_file():
        raise VolumeError("the file with the voxels is missing", path=path, expected=str(file))
    if fields.get("CompressedData", "False").lower() == "true":
        _check_deflated(path, file, offset, expected, zlib.MAX_WBITS | 32)
    elif file.stat().st_size - offset < expected:
        raise _truncated(path, expected, file.stat().st_size - offset)


def check_nrrd(path: Path, voxels: bool = True) -> None:
    """Check an NRRD's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not NRRD, truncated, damaged, empty, or with a spacing that is not positive.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        if not stream.readline(64).startswith(b"NRRD000"):
            raise VolumeError("this is not an NRRD file", path=path, expected="a first line that starts with NRRD000")
        while text := stream.readline(1 << 16).strip():
            name, separator, value = text.decode("utf-8", "replace").partition(":")
            if separator and not name.startswith("#"):
                fields[name.strip().lower()] = value.strip()
        start = stream.tell()
    sizes = _numbers(path, fields.get("sizes", ""), "sizes")
    _check_size(path, sizes)
    if "spacings" in fields:
        spacings = _numbers(path, fields["spacings"], "spacings")
        _check_spacing(path, [value for value in spacings if not np.isnan(value)])
    if not voxels or fields.get("encoding", "raw").lower() not in ("gzip", "gz"):
        return  # ITK itself refuses raw data that are missing or short
    separate = fields.get("data file", fields.get("datafile"))
    if separate is None:
        _check_deflated(path, path, start, 0, zlib.MAX_WBITS | 32)
    elif (path.parent / separate).is_file():
        _check_deflated(path, path.parent / separate, 0, 0, zlib.MAX_WBITS | 32)


def _numbers(path: Path, text: str, name: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if not numbers:
        raise VolumeError(f"the header's {name} cannot be read", path=path, expected="numbers", found=repr(text))
    return numbers


def _check_size(path: Path, sizes: Sequence[float]) -> None:
    if min(sizes) < 1:
        raise VolumeError("the image is empty", path=path, expected="at least one voxel", found=f"size {list(sizes)}")


def _check_spacing(path: Path, spacing: Sequence[float]) -> None:
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise VolumeError(
            "the spacing is not positive",
            path=path,
            expected="millimetres above 0 along each axis",
            found=str([round(float(s), 6) for s in spacing]),
            remedy="correct the header, or export the image again",
        )


def _check_deflated(path: Path, file: Path, offset: int, expected: int, wbits: int) -> None:
    """Decompress from ``offset`` on, keeping nothing: the stream must end, and hold ``expected`` bytes at least."""
    inflate, found = zlib.decompressobj(wbits), 0
    with file.open("rb") as stream:
        stream.seek(offset)
        try:
            while not inflate.eof and (chunk := stream.read(_CHUNK)):
                while chunk and not inflate.eof:
                    found += len(inflate.decompress(chunk, _CHUNK))
                    chunk = inflate.unconsumed_tail
        except zlib.error as error:
            raise _damaged(path, str(error)) from error
    if not inflate.eof:
        raise _damaged(path, f"{found} bytes of voxels and no end of the compressed data")
    if found < expected:
        raise _truncated(path, expected, found)


def _truncated(path: Path, expected: int, found: int) -> VolumeError:
    return VolumeError(
        "the file is truncated", path=path, expected=f"{expected} bytes", found=f"{found} bytes", remedy=_COPY_AGAIN
    )


def _damaged(path: Path, found: str) -> VolumeError:
    return VolumeError("the file is truncated or damaged", path=path, found=found, remedy=_COPY_AGAIN)
