"""Reading volumes: NIfTI, NRRD and MetaImage files, and DICOM.

SimpleITK does the reading. What it lets pass, this module refuses: a geometry or a voxel that cannot be trusted never
enters.
"""

from __future__ import annotations

import locale
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from atlasnet.errors import VolumeError
from atlasnet.volume.geometry import DIRECTION_TOLERANCE, check_orthonormal, in_brackets, singular, trusted_grid
from atlasnet.volume.grid import Grid
from atlasnet.volume.headers import NiftiGeometry, check_finite, check_nifti, of_three_axes
from atlasnet.volume.names import READABLE_SUFFIXES, check_name, image_suffix, is_dicom
from atlasnet.volume.text_headers import check_metaimage, check_nrrd
from atlasnet.volume.volume import Volume, all_finite

if TYPE_CHECKING:
    from atlasnet.volume.dicom import StatedSeries

_LARGEST = 1e30  # of a voxel; beyond, the float32 in which images are computed with comes to its end
SEVERAL_VOLUMES = "the image is 4-D"
LARGEST_LABEL = 2**31 - 1  # what every format of predictions holds
_ITK_SETTINGS = threading.RLock()


def _reader(path: Path) -> str:
    """What ITK calls its reader of the format. By itself it finds none for some names in capitals."""
    suffix = image_suffix(path) or ""
    if suffix.startswith(".nii"):
        return "NiftiImageIO"
    return "NrrdImageIO" if suffix in (".nrrd", ".nhdr") else "MetaImageIO"


def read_volume(path: str | Path, *, channels: bool = False, series: str | None = None) -> Volume:
    """Read an image, (c, z, y, x) with its grid in LPS mm.

    A 2-D image has a singleton z. Voxels keep their stored type, int8 to float64; scaled NIfTI intensities arrive
    scaled. A direction matrix off by rounding (elements up to 1e-3 from the nearest orthonormal one) is mended.

    Args:
        path: a NIfTI, NRRD or MetaImage file, or DICOM: a folder, a zip or a file.
        channels: take a fourth axis, or a vector per voxel, as channels.
        series: which one to read where a DICOM folder or zip holds several: its SeriesNumber, its SeriesInstanceUID,
            or else its SeriesDescription, in which ``*`` and ``?`` stand for any letters and capitals do not matter.

    Raises:
        VolumeError: the file is absent, unreadable, truncated, empty, 4-D without ``channels``; its spacing is not
            positive, its direction is singular or sheared, or a voxel is not finite or beyond 1e30; for DICOM see
            `read_dicom`.
    """
    path = Path(path)
    if path.exists() and is_dicom(path):
        from atlasnet.volume.dicom import read_dicom  # pydicom takes a while to load

        with quiet_itk():
            volume = read_dicom(path, series)
        _check_finite(path, volume.array)
        return volume
    image, grid = read_sitk(path)
    array = _channels_first(path, image, channels)
    _check_finite(path, array)
    return Volume(array, grid)


def read_sitk(path: Path) -> tuple[sitk.Image, Grid]:
    """A NIfTI, NRRD or MetaImage file as ITK reads it, and the grid of its first three axes, both checked.

    Raises:
        VolumeError: as `read_volume`, but for what concerns axes and values of the voxels.
    """
    nifti = _check_file(path)
    if nifti is not None and nifti.flat:
        with _of_three_axes(path) as raised:
            return read_sitk(raised)
    with quiet_itk(permissive=_by_sform_alone(nifti)), _alone(path) as name:
        try:
            image = sitk.ReadImage(str(name), imageIO=_reader(path))
        except RuntimeError as error:
            raise _explained(path, error) from error
    x, y, z = [*image.GetSize(), 1, 1][:3]
    return image, _itk_grid(path, image, nifti, (z, y, x))


def read_grid(path: str | Path, *, series: str | None = None) -> Grid:
    """The grid of an image, from the header or, in DICOM, the headers alone.

    Raises:
        VolumeError: as `read_volume`, for the header.
    """
    path = Path(path)
    if path.exists() and is_dicom(path):
        from atlasnet.volume.dicom import read_dicom_grid

        return read_dicom_grid(path, series)
    nifti = _check_file(path, voxels=False)
    if nifti is not None and nifti.flat:
        with _of_three_axes(path) as raised:
            return read_grid(raised)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_reader(path))
    with quiet_itk(permissive=_by_sform_alone(nifti)):
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _explained(path, error) from error
    x, y, z = [*reader.GetSize(), 1, 1][:3]
    return _itk_grid(path, reader, nifti, (z, y, x))


def is_placed(path: str | Path) -> bool:
    """Whether a sound image says how it lies in the patient; NIfTI alone has a word for not knowing."""
    path = Path(path)
    nifti = path.is_file() and (image_suffix(path) or "").startswith(".nii")
    return not nifti or check_nifti(path, voxels=False).placed


def states_rescale(path: str | Path, *, series: str | None = None) -> bool:
    """Whether a readable image says how its stored values become those of the modality; DICOM alone may leave it open.

    Args:
        path: as for `read_volume`, and so the next.
        series: which one, where there are several.

    Raises:
        VolumeError: as `read_volume`, for the headers of DICOM.
    """
    if not is_dicom(path):
        return True
    from atlasnet.volume.dicom import dicom_states_rescale

    return dicom_states_rescale(Path(path), series)


def stated_series(path: str | Path, *, series: str | None = None) -> StatedSeries | None:
    """What a readable image states of itself in the terms of DICOM; None of all other formats.

    Raises:
        VolumeError: as `read_volume`, for the headers of DICOM.
    """
    if not is_dicom(path):
        return None
    from atlasnet.volume.dicom import read_stated_series

    return read_stated_series(Path(path), series)


def read_labels(path: str | Path) -> Volume:
    """Read a label map: whole numbers in any storage type, returned as integers, (1, z, y, x).

    Raises:
        VolumeError: as `read_volume`, a voxel is not a whole number or is beyond 32 bits, or there are several layers.
    """
    volume = read_volume(path, channels=True)
    array = volume.array
    if volume.channels > 1:
        raise VolumeError(
            "the label map has several layers",
            path=path,
            expected="one value per voxel",
            found=f"{volume.channels} layers (overlapping segments, or colours)",
            remedy="export one label map, in which segments do not overlap",
        )
    low, high = array.min().item(), array.max().item()
    if max(-low, high) > LARGEST_LABEL:
        raise VolumeError(
            "the label values are too large",
            path=path,
            expected=f"label values up to {LARGEST_LABEL}",
            found=f"{low} to {high}",
            remedy="give the labels smaller numbers",
        )
    if array.dtype.kind in "iu":
        return volume
    whole = np.rint(array)
    # Scaled storage (slope times integer in float32) leaves a whole number off by rounding only.
    if np.abs(array - whole).max() > 1e-3:
        position = np.unravel_index(int(np.abs(array - whole).argmax()), array.shape)
        raise VolumeError(
            "a label map must hold whole numbers",
            path=path,
            found=f"{array[position]!s} at (z, y, x) = {tuple(int(i) for i in position[1:])}",
            remedy="resample labels with nearest neighbours, or give the label map and not a probability",
        )
    small = whole.min() >= -(2**15) and whole.max() < 2**15
    return volume.replace(whole.astype(np.int16 if small else np.int32))


def _itk_grid(path: Path, image: Any, nifti: NiftiGeometry | None, shape: tuple[int, int, int]) -> Grid:
    """The geometry that ITK read into an image or a file reader, of the first three axes, checked."""
    dimensions = image.GetDimension()
    direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
    axes = min(3, dimensions)
    direction[:axes, :axes] = np.reshape(image.GetDirection(), (dimensions, dimensions))[:axes, :axes]
    spacing[:axes], origin[:axes] = image.GetSpacing()[:axes], image.GetOrigin()[:axes]
    if nifti is not None:
        _check_nifti_direction(path, nifti)
    return trusted_grid(path, shape, spacing, origin, direction)


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """The file where ITK finds no other: it would read CASE.nii.gz with the voxels of a CASE.nii beside it."""
    plain = path.with_suffix("")
    if image_suffix(path) != ".nii.gz" or not plain.exists():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        link = Path(folder) / path.name
        try:
            link.symlink_to(path.absolute())
        except OSError:  # a file system, or a user, without links
            shutil.copyfile(path, link)
        yield link


@contextmanager
def _of_three_axes(path: Path) -> Iterator[Path]:
    """A copy of a NIfTI image of two axes as one of three, with one slice: of two, ITK loses where they lie."""
    with tempfile.TemporaryDirectory(prefix="atlasnet-") as folder:
        raised = Path(folder) / f"{path.name.removesuffix('.gz')}"
        raised.write_bytes(of_three_axes(path))
        try:
            yield raised
        except VolumeError as error:
            raise error.told(path=path) from error


def _by_sform_alone(nifti: NiftiGeometry | None) -> bool:
    return nifti is not None and nifti.qform is None


@contextmanager
def quiet_itk(*, permissive: bool = False) -> Iterator[None]:
    """ITK without console warnings; with ``permissive``, letting any sform through: this module judges it itself.

    Where there is a qform, a permissive ITK would take an sform before it that is a little sheared, whatever its code.
    These settings are the whole process's, so one thread at a time is in such a block.
    """
    with _ITK_SETTINGS, _paths_in_utf8():
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        before = os.environ.get("ITK_NIFTI_SFORM_PERMISSIVE")
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "YES" if permissive else "NO"
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)
            if before is None:
                del os.environ["ITK_NIFTI_SFORM_PERMISSIVE"]
            else:
                os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = before


@contextmanager
def _paths_in_utf8() -> Iterator[None]:
    """Inside the block C's functions read paths as UTF-8, in which SimpleITK hands them over.

    On Windows they take them for the code page of the system, and find no file in a folder that is called Müller: see
    SimpleITK's FAQ on special characters in file names, and "UTF-8 support" of ``setlocale`` in Microsoft's C library.
    """
    if sys.platform != "win32":
        yield
        return
    before = locale.setlocale(locale.LC_CTYPE)
    with suppress(locale.Error):  # a Windows older than 2018
        locale.setlocale(locale.LC_CTYPE, ".UTF-8")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_CTYPE, before)


def _check_file(path: Path, voxels: bool = True) -> NiftiGeometry | None:
    """Check what the file says of itself, and that all its voxels are there."""
    check_name(path)
    suffix = image_suffix(path)
    if not path.exists():
        raise VolumeError("there is no such file", path=path)
    if suffix is None:
        raise VolumeError(
            "the format is not supported",
            path=path,
            expected="a name ending in " + ", ".join(READABLE_SUFFIXES) + ", or a DICOM file, folder or zip",
        )
    try:
        if suffix.startswith(".nii"):
            return check_nifti(path, voxels)
        (check_nrrd if suffix in (".nrrd", ".nhdr") else check_metaimage)(path, voxels)
    except OSError as error:
        raise VolumeError("the file cannot be read", path=path, found=str(error)) from error
    return None


def _channels_first(path: Path, image: sitk.Image, channels: bool) -> NDArray[Any]:
    """(c, z, y, x) voxels of a 2-D, 3-D or 4-D image."""
    array: NDArray[Any] = sitk.GetArrayFromImage(image)
    dimensions, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if array.dtype.kind not in "iuf":
        raise VolumeError("the voxels are not real numbers", path=path, found=str(array.dtype))
    if components > 1:
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    elif dimensions <= 3:
        array = array[None]
    if dimensions == 2:
        array = array[:, None]
    if array.ndim != 4:
        raise VolumeError(
            "the image has too many axes", path=path, expected="2-D, 3-D, or 4-D with channels", found=f"{dimensions}-D"
        )
    if array.shape[0] > 1 and not channels:
        raise VolumeError(
            SEVERAL_VOLUMES,
            path=path,
            expected="one value per voxel of a 3-D image",
            found=f"{array.shape[0]} volumes in one file",
            remedy="declare them as channels in dataset.json (channel_names or modality), or split the file",
        )
    return array


def _check_nifti_direction(path: Path, header: NiftiGeometry) -> None:
    """Refuse a sheared sform that counts: ITK makes a rotation of it, or takes the qform, and only warns."""
    if header.sform is None or len(header.spacing) < 3:
        return
    norms = np.linalg.norm(header.sform, axis=0)
    if not norms.all() or abs(np.linalg.det(header.sform / norms)) < 1e-3:
        if header.qform is not None:
            return
        raise singular(path, header.sform)
    if header.sform_counts:
        check_orthonormal(path, np.diag([-1.0, -1.0, 1.0]) @ (header.sform / norms))
    # Of forms that point the same way, the sform says something about the lengths too.
    elif header.qform is not None and np.abs(header.sform / norms - header.qform).max() > DIRECTION_TOLERANCE:
        return
    if np.abs(norms / header.spacing - 1).max() > 1e-3:
        raise VolumeError(
            "the NIfTI header contradicts itself about the spacing",
            path=path,
            expected=f"the sform's columns as long as the spacing {in_brackets(np.array(header.spacing))} mm",
            found=f"{in_brackets(norms)} mm",
            remedy="correct the sform or pixdim",
        )


def _check_finite(path: Path, array: NDArray[Any]) -> None:
    if not all_finite(array):
        check_finite(path, array.size - int(np.isfinite(array).sum()), array.size)
    low, high = array.min(), array.max()
    if low < -_LARGEST or high > _LARGEST:
        raise VolumeError(
            "the image has voxels that are too large to compute with",
            path=path,
            expected=f"magnitudes up to {_LARGEST:g}",
            found=f"{low:g} to {high:g}",
            remedy="divide the image by a number, or correct the scaling in its header",
        )


def _explained(path: Path, error: RuntimeError) -> VolumeError:
    reason = itk_reason(error)
    if "determinant is 0" in str(error):
        return VolumeError("the direction matrix is singular", path=path, found=reason, remedy="correct the header")
    if "ero-valued spacing" in str(error):
        return VolumeError("the spacing is not positive", path=path, found=reason, remedy="correct the header")
    return VolumeError("the file cannot be read", path=path, found=reason, remedy="copy or export the file again")


def itk_reason(error: RuntimeError) -> str:
    """What ITK says, without its source paths and object addresses."""
    lines = [
        re.sub(r"\w+\(0x[0-9a-f]+\): ", "", line.split("ERROR:")[-1]).strip() for line in str(error).splitlines()[1:]
    ]
    return " ".join(line for line in lines if line) or str(error)
