"""Reading and writing: round trips against SimpleITK, and refusal of what cannot be trusted."""

from __future__ import annotations

import gzip
import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from atlasnet.errors import VolumeError
from atlasnet.volume import Grid, Volume, read_grid, read_labels, read_volume, write_labels, write_volume
from atlasnet.volume.io import quiet_itk

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()


def volume(dtype: str = "int16", channels: int = 1, direction: NDArray[np.float64] | None = None) -> Volume:
    array = np.random.default_rng(0).integers(0, 120, (channels, 4, 5, 6)).astype(dtype)
    return Volume(array, Grid.from_parts((4, 5, 6), (0.7, 0.8, 2.5), (-11.0, 22.5, -1433.25), direction))


def nifti_header(path: Path, **fields: tuple[int, str, tuple[float, ...]]) -> None:
    """Overwrite header fields of an uncompressed NIfTI file: name -> (offset, struct format, values)."""
    content = bytearray(path.read_bytes())
    for offset, form, values in fields.values():
        struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(content)


def with_sform(path: Path, matrix: NDArray[np.float64]) -> Path:
    """A NIfTI file of spacing 1 whose only geometry is an sform."""
    write_volume(path, Volume(np.zeros((4, 5, 6), np.int16), Grid.from_parts((4, 5, 6))))
    rows = np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()
    nifti_header(path, codes=(252, "2h", (0, 1)), sform=(280, "12f", tuple(rows)))
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_round_trip_keeps_voxels_type_and_geometry(tmp_path: Path, suffix: str, dtype: str) -> None:
    original = volume(dtype, direction=OBLIQUE)
    write_volume(tmp_path / f"v{suffix}", original)
    read = read_volume(tmp_path / f"v{suffix}")
    assert read.array.dtype == original.array.dtype
    np.testing.assert_array_equal(read.array, original.array)
    assert read.grid.matches(original.grid, 1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_simpleitk_reads_what_is_written_at_the_same_places(tmp_path: Path, suffix: str) -> None:
    original = volume(direction=OBLIQUE)
    write_volume(tmp_path / f"v{suffix}", original)
    image = sitk.ReadImage(str(tmp_path / f"v{suffix}"))
    for z, y, x in ((0, 0, 0), (3, 1, 2), (1, 4, 5)):
        assert image[x, y, z] == original.array[0, z, y, x]
        point = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(point, original.grid.to_world((x, y, z)), atol=2e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_channels_come_back_in_order(tmp_path: Path, suffix: str) -> None:
    original = volume("float32", channels=3)
    write_volume(tmp_path / f"v{suffix}", original)
    if suffix.startswith(".nii"):
        assert sitk.ReadImage(str(tmp_path / f"v{suffix}")).GetSize() == (6, 5, 4, 3)  # along the fourth axis
    read = read_volume(tmp_path / f"v{suffix}", channels=True)
    np.testing.assert_array_equal(read.array, original.array)
    assert read.grid.matches(original.grid, 1e-4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_four_axes_are_refused_unless_declared_as_channels(tmp_path: Path, suffix: str) -> None:
    write_volume(tmp_path / f"v{suffix}", volume(channels=2))
    with pytest.raises(VolumeError, match="4-D"):
        read_volume(tmp_path / f"v{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_grid_alone_equals_the_grid_of_the_whole(tmp_path: Path, suffix: str) -> None:
    write_volume(tmp_path / f"v{suffix}", volume(direction=OBLIQUE))
    np.testing.assert_array_equal(
        read_grid(tmp_path / f"v{suffix}").affine, read_volume(tmp_path / f"v{suffix}").grid.affine
    )


@pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
def test_a_2d_image_has_a_singleton_z(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.arange(30, dtype=np.int16).reshape(5, 6))
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / f"v{suffix}"))
    read = read_volume(tmp_path / f"v{suffix}")
    assert read.array.shape == (1, 1, 5, 6)
    np.testing.assert_allclose(read.grid.spacing, (0.5, 2.0, 1.0))


def test_scaled_nifti_intensities_arrive_scaled(tmp_path: Path) -> None:
    path = tmp_path / "v.nii"
    write_volume(path, volume())
    nifti_header(path, scaling=(112, "2f", (0.5, -10.0)))
    np.testing.assert_allclose(read_volume(path).array, volume().array * 0.5 - 10)


@pytest.mark.parametrize("scaling", [(0.0, 0.0), (np.nan, np.nan), (0.0, np.nan), (np.inf, 0.0)])
def test_nifti_voxels_without_a_scaling_arrive_as_they_are(tmp_path: Path, scaling: tuple[float, float]) -> None:
    path = tmp_path / "v.nii"
    write_volume(path, volume())
    nifti_header(path, scaling=(112, "2f", scaling))
    np.testing.assert_array_equal(read_volume(path).array, volume().array)


@pytest.mark.parametrize("scaling", [(0.0, 77.0), (np.nan, 77.0), (np.inf, -1024.0), (2.0, np.nan), (1.0, np.inf)])
def test_half_a_nifti_scaling_is_refused(tmp_path: Path, scaling: tuple[float, float]) -> None:
    path = tmp_path / "v.nii"
    write_volume(path, volume())
    nifti_header(path, scaling=(112, "2f", scaling))
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match=r"v\.nii: .*scaling.*found scl_slope .*, scl_inter "):
            read(path)


def test_a_nifti_image_of_colours_is_refused_by_name(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii", Volume(np.zeros((4, 5, 18), np.uint8), Grid.from_parts((4, 5, 18))))
    nifti_header(tmp_path / "v.nii", sizes=(42, "h", (6,)), kind=(70, "2h", (128, 24)))
    with pytest.raises(VolumeError, match=r"found NIfTI type 128 \(RGB\); to mend it: store one real number"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize(
    ("values", "stored"),
    [([-3, 40_000], np.int32), ([0, 255], np.uint8), ([-128, 127], np.int8), ([0, 2**32 - 1], np.uint32)],
)
def test_64_bit_integers_are_written_in_the_smallest_type_that_holds_them(
    tmp_path: Path, values: list[int], stored: type
) -> None:
    array = np.array(values, dtype=np.int64).reshape(1, 1, 2)
    write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((1, 1, 2))))
    read = read_volume(tmp_path / "v.nii")
    assert read.array.dtype == stored
    np.testing.assert_array_equal(read.array[0], array)


def test_integers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    array = np.full((1, 1, 2), 2**40)
    with pytest.raises(VolumeError, match="32 bits"):
        write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((1, 1, 2))))
    assert not (tmp_path / "v.nii").exists()


def test_numbers_of_another_byte_order_are_written_as_the_same_numbers(tmp_path: Path) -> None:
    for kind in (">i2", ">f4"):
        array = np.array([-3, 400], dtype=kind).reshape(1, 1, 2)
        write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((1, 1, 2))))
        np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array[0], array)


def test_booleans_are_written_as_bytes(tmp_path: Path) -> None:
    array = np.array([True, False]).reshape(1, 1, 2)
    write_volume(tmp_path / "v.mha", Volume(array, Grid.from_parts((1, 1, 2))))
    assert read_volume(tmp_path / "v.mha").array.ravel().tolist() == [1, 0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_voxels_that_nothing_could_read_again_are_not_written(tmp_path: Path, suffix: str, bad: float) -> None:
    array = np.zeros((3, 4, 5), np.float32)
    array[1, 2, 3] = bad
    with pytest.raises(VolumeError, match=rf"v{suffix}: the image has voxels that are not finite.*replace them"):
        write_volume(tmp_path / f"v{suffix}", Volume(array, Grid.from_parts(array.shape)))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="format"):
        write_volume(tmp_path / "v.png", volume())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9, "one byte"])
def test_a_truncated_file_is_refused(
    tmp_path: Path, suffix: str, cut: float | str, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(1).integers(-1000, 1000, (8, 20, 20)).astype(np.int16)
    write_volume(tmp_path / f"v{suffix}", Volume(noise, Grid.from_parts(noise.shape)))
    file = tmp_path / ("v.raw" if suffix == ".mhd" else f"v{suffix}")
    content = file.read_bytes()
    file.write_bytes(content[:-1] if cut == "one byte" else content[: int(float(cut) * len(content))])
    with pytest.raises(VolumeError):
        read_volume(tmp_path / f"v{suffix}")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_damaged_compressed_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    noise = np.random.default_rng(1).integers(-1000, 1000, (8, 20, 20)).astype(np.int16)
    write_volume(path, Volume(noise, Grid.from_parts(noise.shape)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(VolumeError):
        read_volume(path)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.nrrd", "v.mha"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("not an image\n" * 100)
    with pytest.raises(VolumeError):
        read_volume(tmp_path / name)


def test_numbers_in_text_are_counted_across_the_pieces_in_which_they_are_read(tmp_path: Path) -> None:
    count = 2**20 // 3 + 10  # the first mebibyte ends between a number and its comma
    header = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {count} 1 1\nencoding: text\n\n"
    (tmp_path / "v.nrrd").write_text(header + "1, " * count, encoding="ascii")
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nrrd").array, np.ones((1, 1, 1, count)))
    (tmp_path / "v.nrrd").write_text(header + "1, " * (count - 1), encoding="ascii")
    with pytest.raises(VolumeError, match="truncated"):
        read_volume(tmp_path / "v.nrrd")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_name_that_is_not_in_utf_8_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.nii", volume())
    path = tmp_path / os.fsdecode(b"M\xfcller.nii")
    (tmp_path / "a.nii").rename(path)
    for call in (read_volume, read_grid, lambda path: write_volume(path, volume())):  # at it, ITK ends the process
        with pytest.raises(VolumeError, match="not in UTF-8"):
            call(path)


def test_a_compressed_nifti_that_is_not_called_so_is_to_be_renamed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "v.nii.gz", volume())
    (tmp_path / "v.nii.gz").rename(tmp_path / "w.nii")
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match=r"compressed.*rename it to \.nii\.gz"):
            read(tmp_path / "w.nii")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("order", "<>")
def test_a_nifti_2_file_is_named_as_one(tmp_path: Path, order: str) -> None:
    header = struct.pack(f"{order}i8s", 540, b"n+2\0\r\n\032\n")
    (tmp_path / "v.nii").write_bytes(header.ljust(544, b"\0") + bytes(100))
    with pytest.raises(VolumeError, match=r"NIfTI-2.*convert it"):
        read_volume(tmp_path / "v.nii")


def test_an_absent_file_and_an_unknown_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "v.nii")
    (tmp_path / "v.jpg").write_bytes(b"x")
    with pytest.raises(VolumeError, match="not supported"):
        read_volume(tmp_path / "v.jpg")


def test_a_compressed_file_without_the_gz_suffix_is_read(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii", volume())
    (tmp_path / "w.nii.gz").write_bytes(gzip.compress((tmp_path / "v.nii").read_bytes()))
    np.testing.assert_array_equal(read_volume(tmp_path / "w.nii.gz").array, volume().array)


def test_a_compressed_file_beside_a_plain_one_of_its_name_keeps_its_own_voxels(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii", volume())
    other = volume().array + 1000
    write_volume(tmp_path / "v.nii.gz", Volume(other, volume().grid))
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii.gz").array, other)
    np.testing.assert_array_equal(read_volume(tmp_path / "v.nii").array, volume().array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_refused(tmp_path: Path, kind: type, suffix: str, bad: float) -> None:
    array = np.zeros((3, 3, 3), kind)
    array[1, 2, 0] = bad
    path = tmp_path / f"v{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    for read in (read_volume, read_labels):
        with pytest.raises(VolumeError, match="1 of 27"):
            read(path)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_every_voxel_of_a_large_nifti_is_looked_at(tmp_path: Path, kind: type) -> None:
    array = np.random.default_rng(0).normal(size=(3, 700, 701)).astype(kind)  # longer than what is read at once
    array[0, 0, 0] = array[1, 350, 17] = array[-1, -1, -1] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.nii"))
    with pytest.raises(VolumeError, match=f"3 of {array.size}"):
        read_volume(tmp_path / "v.nii")
    content = (tmp_path / "v.nii").read_bytes()
    (tmp_path / "v.nii").write_bytes(content + np.full(99, np.nan).tobytes())  # beyond the voxels
    with pytest.raises(VolumeError, match=f"3 of {array.size}"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("spacing", [0.0, -2.0, float("nan"), float("inf")])
def test_a_nifti_spacing_that_is_not_positive_is_refused(tmp_path: Path, spacing: float) -> None:
    write_volume(tmp_path / "v.nii", volume())
    nifti_header(tmp_path / "v.nii", pixdim=(84, "f", (spacing,)))
    with pytest.raises(VolumeError, match="spacing"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("spacing", [b"1 -2 3", b"1 0 3"])
def test_a_metaimage_spacing_that_is_not_positive_is_refused(tmp_path: Path, spacing: bytes) -> None:
    image = sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16))
    image.SetSpacing((1, 2, 3))
    sitk.WriteImage(image, str(tmp_path / "v.mha"))
    content = (tmp_path / "v.mha").read_bytes()
    (tmp_path / "v.mha").write_bytes(content.replace(b"ElementSpacing = 1 2 3", b"ElementSpacing = " + spacing))
    with pytest.raises(VolumeError, match="spacing"):
        read_volume(tmp_path / "v.mha")


def test_an_nrrd_axis_of_no_length_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / "v.nrrd"))
    content = (tmp_path / "v.nrrd").read_bytes()
    (tmp_path / "v.nrrd").write_bytes(content.replace(b"(1,0,0) (0,1,0)", b"(0,0,0) (0,1,0)"))
    with pytest.raises(VolumeError, match="spacing"):
        read_volume(tmp_path / "v.nrrd")


@pytest.mark.parametrize("off", [1e-6, 1e-4, 1e-3])
def test_a_nifti_direction_off_by_rounding_is_orthonormalised(tmp_path: Path, off: float) -> None:
    matrix = np.eye(3)
    matrix[0, 1] = off
    direction = read_volume(with_sform(tmp_path / "v.nii", matrix)).grid.direction
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction, np.diag([-1, -1, 1]), atol=off)


@pytest.mark.parametrize("off", [5e-3, 0.05, 0.5])
def test_a_sheared_nifti_direction_is_refused(tmp_path: Path, off: float) -> None:
    matrix = np.eye(3)
    matrix[0, 1] = off
    path = with_sform(tmp_path / "v.nii", matrix)
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match="sheared"):
            read(path)


def test_a_singular_nifti_direction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="singular"):
        read_volume(with_sform(tmp_path / "v.nii", np.array([[1.0, 1, 0], [0, 0, 0], [0, 0, 1]])))


@pytest.mark.parametrize(
    ("codes", "taken"),
    [((1, 1), "sform"), ((2, 1), "sform"), ((0, 1), "sform"), ((0, 2), "sform"), ((1, 2), "qform"), ((1, 0), "qform")],
)
def test_of_two_nifti_forms_that_disagree_one_is_taken_whole(
    tmp_path: Path, codes: tuple[int, int], taken: str
) -> None:
    write_volume(tmp_path / "v.nii", volume())
    turned = Rotation.from_rotvec([0, 0, 0.2]).as_matrix() * (0.7, 0.8, 2.5)
    places = {"qform": (-1.0, -2.0, 3.0), "sform": (4.0, -5.0, 6.0)}  # RAS
    rows = np.column_stack([np.diag([-1, -1, 1]) @ turned, places["sform"]])
    nifti_header(
        tmp_path / "v.nii",
        codes=(252, "2h", codes),
        offset=(268, "3f", places["qform"]),
        rows=(280, "12f", tuple(rows.ravel())),
    )
    grid = read_volume(tmp_path / "v.nii").grid
    x, y, z = places[taken]
    np.testing.assert_allclose(grid.origin, (-x, -y, z), atol=1e-5)
    expected = turned if taken == "sform" else np.diag([0.7, 0.8, 2.5])
    np.testing.assert_allclose(grid.affine[:3, :3], expected, atol=1e-6)


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2), (2, 4), (3, 3)])
def test_a_sheared_sform_is_refused_where_it_counts_and_does_not_matter_beside_a_qform_that_does(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    write_volume(tmp_path / "v.nii", volume())
    rows = (-0.7, 0.12, 0.0, 110.0, 0.0, -0.8, 0.0, -225.0, 0.0, 0.0, 2.5, -143.0)
    nifti_header(tmp_path / "v.nii", codes=(252, "2h", codes), rows=(280, "12f", rows))
    if codes[1] == 1:
        with pytest.raises(VolumeError, match="sheared"):
            read_volume(tmp_path / "v.nii")
    else:
        assert read_volume(tmp_path / "v.nii").grid.matches(volume().grid, 1e-4)


@pytest.mark.parametrize("permissive", [None, "YES"])
@pytest.mark.parametrize("shear", [0.0, 1e-4, 5e-4, 1e-3])
@pytest.mark.parametrize("sform_code", [1, 2, 3, 4])
@pytest.mark.parametrize("qform_code", [1, 2])
def test_of_an_sform_a_little_sheared_and_a_qform_the_one_of_itk_is_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shear: float,
    sform_code: int,
    qform_code: int,
    permissive: str | None,
) -> None:
    path = tmp_path / "v.nii"
    write_volume(path, Volume(np.zeros((4, 5, 6), np.int16), Grid.from_parts((4, 5, 6))))
    rows = (-1.0, shear, 0.0, 1.0, 0.0, -1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 3.0)
    codes = (qform_code, sform_code)
    nifti_header(path, codes=(252, "2h", codes), offset=(268, "3f", (10.0, 20.0, 30.0)), rows=(280, "12f", rows))
    monkeypatch.delenv("ITK_NIFTI_SFORM_PERMISSIVE", raising=False)
    expected = sitk.ReadImage(str(path)).GetOrigin()
    if permissive is not None:
        monkeypatch.setenv("ITK_NIFTI_SFORM_PERMISSIVE", permissive)
    for grid in (read_volume(path).grid, read_grid(path)):
        np.testing.assert_allclose(grid.origin, expected, atol=1e-5)


def test_threads_leave_the_settings_of_itk_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ITK_NIFTI_SFORM_PERMISSIVE"
    monkeypatch.delenv(name, raising=False)
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    inside, leave = threading.Event(), threading.Event()

    def permissive() -> None:
        with quiet_itk(permissive=True):
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=permissive)
    with quiet_itk(), quiet_itk():
        other.start()
        assert not inside.wait(0.2)
        assert os.environ[name] == "NO"
    assert inside.wait(10)
    assert os.environ[name] == "YES"
    leave.set()
    other.join()
    assert name not in os.environ
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown


def test_a_nifti_header_with_two_spacings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="contradicts"):
        read_volume(with_sform(tmp_path / "v.nii", np.diag([1.0, 2.0, 1.0])))


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (2, 2), (4, 4), (1, 4)])
def test_forms_that_point_the_same_way_must_have_one_spacing(tmp_path: Path, codes: tuple[int, int]) -> None:
    write_volume(tmp_path / "v.nii", volume(direction=np.eye(3)))
    content = (tmp_path / "v.nii").read_bytes()
    rows = np.array(struct.unpack_from("<12f", content, 280)).reshape(3, 4)
    rows[:, :3] *= 2
    nifti_header(tmp_path / "v.nii", codes=(252, "2h", codes), sform=(280, "12f", tuple(rows.ravel())))
    with pytest.raises(VolumeError, match="contradicts"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("form", ["sform", "qform", "both"])
@pytest.mark.parametrize("axes", [np.eye(3), np.eye(3)[:, [1, 2, 0]], OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_a_flat_nifti_keeps_its_place_in_the_room(
    tmp_path: Path, axes: NDArray[np.float64], form: str, suffix: str
) -> None:
    grid = Grid.from_parts((1, 5, 6), (0.8, 1.2, 3.0), (10.0, -20.0, -900.0), axes)
    voxels = np.arange(30, dtype=np.int16).reshape(1, 1, 5, 6)
    write_volume(tmp_path / "v.nii", Volume(voxels, grid))
    codes = {"sform": (0, 1), "qform": (1, 0), "both": (1, 1)}[form]
    nifti_header(tmp_path / "v.nii", dim=(40, "h", (2,)), codes=(252, "2h", codes))
    path = tmp_path / f"flat{suffix}"
    content = (tmp_path / "v.nii").read_bytes()
    path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, voxels)
    assert read.grid.matches(grid, 1e-3)
    assert read_grid(path).matches(grid, 1e-3)


@pytest.mark.parametrize(
    ("matrix", "fault"),
    [("1 0 0 0.2 1 0 0 0 1", "sheared"), ("1 0 0 1 0 0 0 0 1", "singular"), ("1 0 0 0 1 0 0 0 0", "singular")],
)
def test_a_metaimage_direction_that_is_no_rotation_is_refused(tmp_path: Path, matrix: str, fault: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), str(tmp_path / "v.mha"))
    content = (tmp_path / "v.mha").read_bytes()
    (tmp_path / "v.mha").write_bytes(content.replace(b"1 0 0 0 1 0 0 0 1", matrix.encode()))
    with pytest.raises(VolumeError, match=fault):
        read_volume(tmp_path / "v.mha")


@pytest.mark.parametrize("offset", [0.0, 348.0, 351.0, -352.0, float("nan")])
@pytest.mark.parametrize("read", [read_volume, read_grid])
def test_nifti_voxels_within_the_header_are_refused(
    tmp_path: Path, read: Callable[[Path], object], offset: float
) -> None:
    write_volume(tmp_path / "v.nii", volume())
    nifti_header(tmp_path / "v.nii", vox_offset=(108, "f", (offset,)))
    with pytest.raises(VolumeError, match="expected vox_offset 352 or more"):
        read(tmp_path / "v.nii")


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii", volume())
    nifti_header(tmp_path / "v.nii", dim=(42, "h", (0,)))
    with pytest.raises(VolumeError, match="empty"):
        read_volume(tmp_path / "v.nii")


@pytest.mark.parametrize(("length", "thickness"), [(1, 0.0), (0, 3.0), (0, 0.0)])
def test_a_flat_nifti_is_placed_whatever_stands_in_its_header_of_the_third_axis(
    tmp_path: Path, length: int, thickness: float
) -> None:
    grid = Grid.from_parts((1, 5, 6), (0.8, 1.2, 3.0), (10.0, -20.0, -900.0), OBLIQUE)
    voxels = np.arange(30, dtype=np.int16).reshape(1, 1, 5, 6)
    write_volume(tmp_path / "v.nii", Volume(voxels, grid))
    third = {"length": (46, "h", (length,)), "thickness": (88, "f", (thickness,))}
    nifti_header(tmp_path / "v.nii", dim=(40, "h", (2,)), codes=(252, "2h", (0, 1)), **third)
    read = read_volume(tmp_path / "v.nii")
    np.testing.assert_array_equal(read.array, voxels)
    assert read.grid.matches(grid, 1e-3)
    np.testing.assert_allclose(read.grid.spacing, (0.8, 1.2, 3.0), atol=1e-5)


@pytest.mark.parametrize("axes", [2, 3])
def test_a_nifti_of_the_other_byte_order_is_the_same(tmp_path: Path, axes: int) -> None:
    shape = (1, 5, 6) if axes == 2 else (4, 5, 6)
    grid = Grid.from_parts(shape, (0.7, 0.8, 2.5), (-11.0, 22.5, -1433.25), OBLIQUE)
    original = Volume(np.random.default_rng(0).integers(-9, 9, shape).astype(np.int16), grid)
    write_volume(tmp_path / "v.nii", original)
    nifti_header(tmp_path / "v.nii", dim=(40, "h", (axes,)))
    content = (tmp_path / "v.nii").read_bytes()
    # The fields of the header in their order, texts and single bytes apart (nifti1.h).
    form = "i10s18sihcb8h3f4h8f3fhcb4f2i80s24s2h18f16s4s4s"
    header = struct.pack(">" + form, *struct.unpack_from("<" + form, content))
    voxels = np.frombuffer(content[352:], "<i2").astype(">i2").tobytes()
    (tmp_path / "v.nii").write_bytes(header + content[len(header) : 352] + voxels)
    read = read_volume(tmp_path / "v.nii")
    np.testing.assert_array_equal(read.array, original.array)
    assert read.grid.matches(grid, 1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_labels_in_any_type_become_integers(tmp_path: Path, dtype: str) -> None:
    array = np.array([0, 1, 2, 100]).reshape(1, 2, 2).astype(dtype)
    write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((1, 2, 2))))
    labels = read_labels(tmp_path / "v.nii").array
    assert labels.dtype.kind in "iu"
    assert labels.ravel().tolist() == [0, 1, 2, 100]


@pytest.mark.parametrize("values", [[-7, 0, 300, 70_000], [0, 1, 2, 2**15], [-40_000, 0, 1, 2]])
def test_negative_and_large_labels_survive_a_float_file(tmp_path: Path, values: list[int]) -> None:
    array = np.array(values, dtype=np.float32).reshape(1, 2, 2)
    write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((1, 2, 2))))
    assert read_labels(tmp_path / "v.nii").array.ravel().tolist() == values


@pytest.mark.parametrize("value", [0.5, 1.01, -0.1])
def test_labels_that_are_not_whole_are_refused_with_their_place(tmp_path: Path, value: float) -> None:
    array = np.zeros((2, 3, 4), np.float32)
    array[1, 2, 3] = value
    write_volume(tmp_path / "v.nii", Volume(array, Grid.from_parts((2, 3, 4))))
    with pytest.raises(VolumeError, match=r"whole numbers.*\(1, 2, 3\)"):
        read_labels(tmp_path / "v.nii")


@pytest.mark.parametrize(("kind", "value"), [("u4", 2**31), ("i8", 2**33 + 4), ("f8", 2.0**40), ("f4", -(2.0**32))])
def test_labels_that_predictions_could_not_hold_are_refused_as_too_large(
    tmp_path: Path, kind: str, value: float
) -> None:
    array = np.zeros((2, 3, 4), kind)
    array[1, 2, 3] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.nrrd"))
    with pytest.raises(VolumeError, match="label values up to 2147483647"):
        read_labels(tmp_path / "v.nrrd")


def test_the_largest_label_comes_back_as_it_was_written(tmp_path: Path) -> None:
    array = np.array([0, 2**31 - 1], np.int64).reshape(1, 1, 2)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "v.nrrd"))
    labels = read_labels(tmp_path / "v.nrrd")
    write_labels(tmp_path / "w.nii.gz", labels)
    assert read_labels(tmp_path / "w.nii.gz").array.ravel().tolist() == [0, 2**31 - 1]


def test_labels_in_several_layers_are_refused_as_such(tmp_path: Path) -> None:
    layers = sitk.GetImageFromArray(np.zeros((2, 3, 4, 2), np.uint8), isVector=True)
    sitk.WriteImage(layers, str(tmp_path / "v.seg.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.uint8), isVector=False), str(tmp_path / "v.nii"))
    for name in ("v.seg.nrrd", "v.nii"):
        with pytest.raises(VolumeError, match=r"found 2 layers.*export one label map"):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("value", [1e300, -1e31])
def test_voxels_too_large_to_compute_with_are_refused(tmp_path: Path, suffix: str, value: float) -> None:
    array = np.zeros((3, 3, 3))
    array[1, 2, 0] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"v{suffix}"))
    with pytest.raises(VolumeError, match=r"too large.*expected magnitudes up to 1e"):
        read_volume(tmp_path / f"v{suffix}")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.nii", volume())
    before = (tmp_path / "v.nii").read_bytes()
    with pytest.raises(VolumeError):
        write_volume(tmp_path / "v.nii", Volume(np.zeros((4, 5, 6), complex), volume().grid))
    assert (tmp_path / "v.nii").read_bytes() == before
