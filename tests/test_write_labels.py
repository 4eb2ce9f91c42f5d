"""Label maps on disk: NIfTI says in its header that they are some, and all else is as it would be of an image."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from atlasnet.errors import VolumeError
from atlasnet.volume import Grid, Volume, read_labels, write_labels, write_volume

NIFTI = (".nii", ".nii.gz")
OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()
SPACING, ORIGIN = (0.7, 0.8, 2.5), (-11.0, 22.5, -1433.25)


def labels(dtype: str = "uint8") -> Volume:
    array = np.random.default_rng(0).integers(0, 6, (4, 5, 6)).astype(dtype)
    return Volume(array, Grid.from_parts(array.shape, SPACING, ORIGIN, OBLIQUE))


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def intent(path: Path) -> int:
    """The field ``intent_code`` of NIfTI-1: a short at byte 68."""
    return int(struct.unpack_from("<h", unpacked(path), 68)[0])


@pytest.mark.parametrize("suffix", NIFTI)
def test_the_header_of_a_label_map_has_the_intent_of_one(tmp_path: Path, suffix: str) -> None:
    write_labels(tmp_path / f"v{suffix}", labels())
    assert intent(tmp_path / f"v{suffix}") == 1002


@pytest.mark.parametrize("suffix", NIFTI)
def test_an_image_has_no_intent_even_of_whole_numbers(tmp_path: Path, suffix: str) -> None:
    write_volume(tmp_path / f"v{suffix}", labels())
    assert intent(tmp_path / f"v{suffix}") == 0


@pytest.mark.parametrize("suffix", NIFTI)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32"])
def test_simpleitk_reads_the_labels_where_they_lie(tmp_path: Path, suffix: str, dtype: str) -> None:
    original = labels(dtype)
    write_labels(tmp_path / f"v{suffix}", original)
    image = sitk.ReadImage(str(tmp_path / f"v{suffix}"))
    assert image.GetMetaData("intent_code") == "1002"
    found = sitk.GetArrayFromImage(image)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, original.array[0])
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), ORIGIN, rtol=1e-6)
    np.testing.assert_allclose(np.reshape(image.GetDirection(), (3, 3)), OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("suffix", NIFTI)
def test_all_but_the_intent_is_what_simpleitk_writes_of_the_same_image(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(labels().array[0])
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(OBLIQUE.ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / "itk.nii"))
    expected = bytearray((tmp_path / "itk.nii").read_bytes())
    expected[68:70] = struct.pack("<h", 1002)
    write_labels(tmp_path / f"v{suffix}", labels())
    assert unpacked(tmp_path / f"v{suffix}") == expected


def test_compressed_bytes_depend_on_nothing_but_the_labels(tmp_path: Path) -> None:
    write_labels(tmp_path / "anna.nii.gz", labels())
    content = (tmp_path / "anna.nii.gz").read_bytes()
    # RFC 1952: four flags and more, among them that a name follows, and four bytes of the time.
    assert content[:8] == b"\x1f\x8b\x08" + bytes(5)
    write_labels(tmp_path / "b" / "bert.nii.gz", labels())
    assert (tmp_path / "b" / "bert.nii.gz").read_bytes() == content


def test_compressed_labels_are_as_small_as_simpleitk_makes_them(tmp_path: Path) -> None:
    z, y, x = np.indices((40, 60, 60))
    array = (np.hypot(y - 30, x - 30) + z / 3 < 25).astype(np.uint8)
    for write, name in ((write_labels, "labels.nii.gz"), (write_volume, "image.nii.gz")):
        write(tmp_path / name, Volume(array, Grid.from_parts(array.shape)))
    ours, itks = ((tmp_path / name).stat().st_size for name in ("labels.nii.gz", "image.nii.gz"))
    assert ours < 1.1 * itks < array.size / 20


def test_labels_leave_the_plain_file_of_their_name_alone(tmp_path: Path) -> None:
    (tmp_path / "v.nii").write_bytes(b"another's")
    write_labels(tmp_path / "v.nii.gz", labels())
    assert (tmp_path / "v.nii").read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.nii", "v.nii.gz"]


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_formats_without_an_intent_hold_labels_as_they_hold_images(tmp_path: Path, suffix: str) -> None:
    write_labels(tmp_path / "a" / f"v{suffix}", labels())
    write_volume(tmp_path / "b" / f"v{suffix}", labels())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_masks_and_long_integers_are_written_as_the_numbers_they_are(tmp_path: Path) -> None:
    for dtype in (np.bool_, np.int64):
        array = np.array([0, 1, 1, 0]).reshape(1, 2, 2).astype(dtype)
        write_labels(tmp_path / "v.nii.gz", Volume(array, Grid.from_parts((1, 2, 2))))
        assert read_labels(tmp_path / "v.nii.gz").array.dtype == np.uint8
        assert read_labels(tmp_path / "v.nii.gz").array.ravel().tolist() == [0, 1, 1, 0]


def test_what_is_not_of_whole_numbers_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_labels(tmp_path / "v.nii.gz", labels())
    before = (tmp_path / "v.nii.gz").read_bytes()
    with pytest.raises(VolumeError, match=r"v\.nii\.gz.*whole numbers.*float32.*write_volume"):
        write_labels(tmp_path / "v.nii.gz", labels("float32"))
    with pytest.raises(VolumeError, match="the format cannot be written"):
        write_labels(tmp_path / "v.png", labels())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("suffix", [".NII.GZ", ".NII", ".NRRD", ".MHA", ".MHD"])
def test_a_name_in_capitals_names_the_same_format(tmp_path: Path, suffix: str) -> None:
    original = labels()
    for write, name in ((write_volume, f"image{suffix}"), (write_labels, f"labels{suffix}")):
        write(tmp_path / name, original)
        np.testing.assert_array_equal(read_labels(tmp_path / name).array, original.array)
    assert {path.suffix.lower() for path in tmp_path.iterdir()} <= {".gz", ".nii", ".nrrd", ".mha", ".mhd", ".raw"}
