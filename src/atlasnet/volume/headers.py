"""What a NIfTI file says of itself, checked before ITK reads it; and the checks that other formats share.

ITK reads a truncated NIfTI file, compressed or not, without an exception, replaces a spacing of zero by one and voxels
that are not finite by zero, and prints its doubts on the console. What it hides is checked here on the file's own
bytes: that the header makes sense and that every voxel is there.
"""

from __future__ import annotations

import gzip
import math
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
_NIFTI_REALS = {16: "f4", 64: "f8"}
_NIFTI_BYTES = {2: 1, 4: 2, 8: 4, 16: 4, 64: 8, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8}  # by its code of the type
_NIFTI_OTHERS = {1: "bits", 32: "complex", 128: "RGB", 1536: "128 bits", 1792: "complex", 2048: "complex", 2304: "RGBA"}
_NIFTI_VOXELS = 352  # where the voxels begin at the earliest: behind the header and four bytes
_SHORTEST, _LONGEST = 1e-6, 1e6  # mm; a spacing outside this range is a damaged number, and arithmetic fails on it


class NiftiGeometry(NamedTuple):
    """The geometry that a NIfTI header states, RAS as stored.

    ``sform`` (3, 3) columns in mm or None where its code is 0; ``qform`` (3, 3) rotation or None; ``spacing`` of the
    axes, mm; ``scanner``: whether the sform has code 1, the scanner's space.
    """

    sform: NDArray[np.float64] | None
    qform: NDArray[np.float64] | None
    spacing: tuple[float, ...]
    scanner: bool

    @property
    def placed(self) -> bool:
        """Whether it says where in a room the image lies."""
        return self.sform is not None or self.qform is not None

    @property
    def sform_counts(self) -> bool:
        """Whether the sform says where the image lies: with code 1, or without a qform; as ITK decides."""
        return self.sform is not None and (self.scanner or self.qform is None)

    @property
    def flat(self) -> bool:
        """Whether it is an image of two axes that says where in a room it lies."""
        return len(self.spacing) == 2 and self.placed


def of_three_axes(path: Path) -> bytes:
    """A NIfTI-1 file of two axes, which `check_nifti` found sound, as one of three, the third of length 1."""
    content = bytearray(path.read_bytes())
    if content[:2] == _GZIP_MAGIC:
        content = bytearray(gzip.decompress(content))
    order = "<" if struct.unpack_from("<i", content)[0] == 348 else ">"
    struct.pack_into(f"{order}h", content, 40, 3)
    struct.pack_into(f"{order}h", content, 46, 1)
    (thickness,) = struct.unpack_from(f"{order}f", content, 88)
    if not _SHORTEST <= thickness <= _LONGEST:
        columns = np.array(struct.unpack_from(f"{order}12f", content, 280)).reshape(3, 4)[:, 2]
        length = float(np.linalg.norm(columns))
        struct.pack_into(f"{order}f", content, 88, length if _SHORTEST <= length <= _LONGEST else 1.0)
    return bytes(content)


def check_nifti(path: Path, voxels: bool = True) -> NiftiGeometry:
    """Check a NIfTI-1 file's header and, with ``voxels``, that all of them are there.

    Raises:
        VolumeError: not NIfTI-1, truncated, damaged, empty, with a spacing that is not positive, with a scaling that
            contradicts itself, or with voxels that are not finite.
    """
    with path.open("rb") as plain:
        compressed = plain.read(2) == _GZIP_MAGIC
        plain.seek(0)
        if compressed and path.suffix.lower() == ".nii":  # which ITK takes for voxels that are not compressed
            raise VolumeError("the file is compressed", path=path, remedy="rename it to .nii.gz")
        if not compressed:
            return _check_nifti_stream(path, plain, voxels)
        try:
            with gzip.GzipFile(fileobj=plain) as stream:
                return _check_nifti_stream(path, stream, voxels)  # type: ignore[arg-type]  # GzipFile reads and seeks like any file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise damaged(path, str(error)) from error


def _check_nifti_stream(path: Path, stream: BinaryIO, voxels: bool) -> NiftiGeometry:
    header = stream.read(348)
    if len(header) < 348:
        raise damaged(path, f"{len(header)} bytes, less than a header")
    order = next((o for o in "<>" if struct.unpack_from(f"{o}i", header)[0] == 348), None)
    if any(struct.unpack_from(f"{o}i", header)[0] == 540 for o in "<>"):
        raise VolumeError(
            "this is a NIfTI-2 file",
            path=path,
            expected="a NIfTI-1 header",
            remedy="convert it, for instance with nibabel: Nifti1Image.from_image(nibabel.load(OLD)).to_filename(NEW)",
        )
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
    check_size(path, sizes)
    qfac, *spacing = struct.unpack_from(f"{order}8f", header, 76)
    spacing = spacing[: min(3, dimensions)]
    check_spacing(path, spacing)
    (kind,) = struct.unpack_from(f"{order}h", header, 70)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", header, 108)
    if kind not in _NIFTI_BYTES:
        raise VolumeError(
            "the type of the voxels is not supported",
            path=path,
            expected="whole or real numbers of 8 to 64 bits",
            found=f"NIfTI type {kind}" + (f" ({_NIFTI_OTHERS[kind]})" if kind in _NIFTI_OTHERS else ""),
            remedy="store one real number per voxel, such as a grey value or a magnitude",
        )
    if not _NIFTI_VOXELS <= offset < 2**31:  # from a place within the header, ITK moves on by itself
        raise VolumeError(
            "the NIfTI header places the voxels where they cannot be",
            path=path,
            expected=f"vox_offset {_NIFTI_VOXELS} or more",
            found=f"{offset:g}",
            remedy="correct vox_offset, or export the image again",
        )
    _check_scaling(path, slope, intercept)
    expected = int(offset) + math.prod(sizes) * _NIFTI_BYTES[kind]
    found, real, odd = len(header), _NIFTI_REALS.get(kind), 0
    cut = b""  # of a voxel that goes on in the next chunk
    while voxels and (chunk := stream.read(_CHUNK)):
        if real is not None:
            cut += chunk[max(0, int(offset) - found) : max(0, expected - found)]
            numbers = np.frombuffer(cut, f"{order}{real}", len(cut) // _NIFTI_BYTES[kind])
            odd += numbers.size - int(np.count_nonzero(np.isfinite(numbers)))
            cut = cut[numbers.nbytes :]
        found += len(chunk)
        _check_surplus(path, expected, found)
    if voxels and found < expected:
        raise truncated(path, expected, found)
    check_finite(path, odd, math.prod(sizes))
    qcode, scode = struct.unpack_from(f"{order}2h", header, 252)
    sform = np.array(struct.unpack_from(f"{order}12f", header, 280), dtype=np.float64).reshape(3, 4)[:, :3]
    quaternion = struct.unpack_from(f"{order}3f", header, 256)
    _check_places(path, header, order, qcode > 0, scode > 0)
    return NiftiGeometry(
        sform if scode > 0 else None,
        _rotation(quaternion, qfac) if qcode > 0 else None,
        tuple(float(s) for s in spacing),
        scode == 1,
    )


def _check_scaling(path: Path, slope: float, intercept: float) -> None:
    """Refuse a scaling of which one half says that there is none: ITK takes the other half all the same.

    By the standard voxels are not scaled where the slope is 0; nibabel writes NaN there.
    """
    scaled = math.isfinite(slope) and slope != 0
    if not math.isfinite(intercept) if scaled else math.isfinite(intercept) and intercept != 0:
        raise VolumeError(
            "the NIfTI header contradicts itself about the scaling of the voxels",
            path=path,
            expected="scl_slope and scl_inter to be two finite numbers, or both 0 for none",
            found=f"scl_slope {slope:g}, scl_inter {intercept:g}",
            remedy="correct the header, or export the image again",
        )


def _check_places(path: Path, header: bytes, order: str, qform: bool, sform: bool) -> None:
    """Refuse numbers that no rotation and no place in a room has; ITK computes with them."""
    rotation, offset = np.split(np.array(struct.unpack_from(f"{order}6f", header, 256)), 2)
    rows = np.array(struct.unpack_from(f"{order}12f", header, 280))
    for form, used, sound in (
        ("qform", qform, bool((np.abs(rotation) < 1.1).all() and (np.abs(offset) < _LONGEST).all())),
        ("sform", sform, bool((np.abs(rows) < _LONGEST).all())),
    ):
        if used and not sound:
            numbers = np.concatenate([rotation, offset]) if form == "qform" else rows
            raise VolumeError(
                f"the NIfTI header's {form} is impossible",
                path=path,
                expected="a rotation and places in mm",
                found=str([float(f"{value:.6g}") for value in numbers]),
                remedy="correct the header, or export the image again",
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


def check_finite(path: Path, odd: int, voxels: int) -> None:
    """Refuse an image of which some voxels are no finite numbers."""
    if odd:
        raise VolumeError(
            "the image has voxels that are not finite",
            path=path,
            found=f"{odd} of {voxels} are NaN or infinite",
            remedy="replace them by a number, for instance the air or background value",
        )


def check_size(path: Path, sizes: Sequence[float]) -> None:
    """Refuse an image without voxels."""
    if min(sizes) < 1:
        raise VolumeError("the image is empty", path=path, expected="at least one voxel", found=f"size {list(sizes)}")


def check_spacing(path: Path, spacing: Sequence[float]) -> None:
    """Refuse a spacing that is not positive, or that nothing in medicine has."""
    if not all(_SHORTEST <= s <= _LONGEST for s in spacing):
        raise VolumeError(
            "the spacing is not positive" if not all(s > 0 for s in spacing) else "the spacing is impossible",
            path=path,
            expected="millimetres above 0 along each axis",
            found=str([float(f"{s:.6g}") for s in spacing]),
            remedy="correct the header, or export the image again",
        )


def check_deflated(path: Path, file: Path, offset: int, expected: int) -> int:
    """Decompress zlib or gzip from ``offset`` on, keeping nothing: it must end, and hold ``expected`` bytes at least.

    Returns:
        How many bytes of the file it takes.
    """
    inflate, found, taken = zlib.decompressobj(zlib.MAX_WBITS | 32), 0, 0
    with file.open("rb") as stream:
        stream.seek(offset)
        try:
            while not inflate.eof and (chunk := stream.read(_CHUNK)):
                taken += len(chunk)
                while chunk and not inflate.eof:
                    found += len(inflate.decompress(chunk, _CHUNK))
                    _check_surplus(path, expected, found)
                    chunk = inflate.unconsumed_tail
        except zlib.error as error:
            raise damaged(path, str(error)) from error
    if not inflate.eof:
        raise damaged(path, f"{found} bytes of voxels and no end of the compressed data")
    if found < expected:
        raise truncated(path, expected, found)
    return taken - len(inflate.unused_data)


def _check_surplus(path: Path, expected: int, found: int) -> None:
    """Stop unpacking what holds far more than the header says."""
    if found > 2 * expected + 2**24:
        raise damaged(path, f"over {found} bytes where the header promises {expected}")


def truncated(path: Path, expected: int, found: int) -> VolumeError:
    """The error for voxels that are not all there."""
    return VolumeError(
        "the file is truncated", path=path, expected=f"{expected} bytes", found=f"{found} bytes", remedy=_COPY_AGAIN
    )


def damaged(path: Path, found: str) -> VolumeError:
    """The error for bytes that cannot be what was written."""
    return VolumeError("the file is truncated or damaged", path=path, found=found, remedy=_COPY_AGAIN)
