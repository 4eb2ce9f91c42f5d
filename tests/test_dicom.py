"""DICOM folders, written slice by slice with SimpleITK: geometry, and stacks that are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

import dicoms
from atlasnet.errors import VolumeError
from atlasnet.volume import read_grid, read_volume

SPACING = (0.75, 0.5, 2.5)  # x, y, z
ORIGIN = np.array([-20.0, 30.0, -400.0])
VOXELS = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


def write_series(
    folder: Path,
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    *,
    direction: NDArray[np.float64] | None = None,
    places: NDArray[np.float64] | None = None,
    prefix: str = "IM",
    step: NDArray[np.float64] | None = None,
    aside: Mapping[int, NDArray[np.float64]] | None = None,
) -> None:
    """One file per slice at ``places`` (mm along the normal), in an order unlike that of the places, some ``aside``."""
    axes = np.eye(3) if direction is None else direction
    places = np.arange(len(VOXELS)) * SPACING[2] if places is None else places
    step = axes[:, 2] if step is None else step
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, place in enumerate(places):
        image = sitk.GetImageFromArray(VOXELS[number][None])
        image.SetSpacing(SPACING)
        position = ORIGIN + place * step + (aside or {}).get(number, 0.0)
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{number + 1}",
            "0008|103e": f"series {prefix}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in position),
            "0020|0037": "\\".join(f"{v:.8f}" for v in [*axes[:, 0], *axes[:, 1]]),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{prefix}{(number * 5) % 11:03d}.dcm"))
        writer.Execute(image)


def test_a_series_is_read_with_its_geometry_and_hounsfield_units(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    volume = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(volume.array[0], VOXELS)
    np.testing.assert_allclose(volume.grid.spacing, SPACING, atol=1e-6)
    np.testing.assert_allclose(volume.grid.origin, ORIGIN, atol=1e-5)
    np.testing.assert_array_equal(read_grid(tmp_path / "ct").affine, volume.grid.affine)


def test_an_oblique_series_agrees_with_simpleitk(tmp_path: Path) -> None:
    direction = Rotation.from_rotvec([0.2, -0.3, 0.1]).as_matrix()
    write_series(tmp_path / "ct", direction=direction)
    volume = read_volume(tmp_path / "ct")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct"))
    image = sitk.ReadImage(names)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.grid.direction.ravel(), image.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(volume.grid.origin, image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.grid.spacing, image.GetSpacing(), atol=1e-4)


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places=np.array([0, 1, 2, 4, 5, 6]) * 2.5)
    with pytest.raises(VolumeError, match=r"slices are missing \(1\).*expected 2.5 mm.*found 5 mm"):
        read_volume(tmp_path / "ct")


def test_unevenly_spaced_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places=np.array([0, 2.5, 5.0, 7.9, 10.0, 12.5]))
    with pytest.raises(VolumeError, match="unevenly spaced"):
        read_volume(tmp_path / "ct")


def test_two_slices_at_one_place_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", places=np.array([0, 2.5, 2.5, 5.0, 7.5, 10.0]))
    with pytest.raises(VolumeError, match="same place"):
        read_volume(tmp_path / "ct")


@pytest.mark.parametrize("degrees", [1.5, 11.5, -20.0])
def test_a_tilted_gantry_is_refused(tmp_path: Path, degrees: float) -> None:
    write_series(tmp_path / "ct", step=np.array([0.0, np.tan(np.radians(degrees)), 1.0]))
    with pytest.raises(VolumeError, match=rf"tilted gantry.*a tilt of {abs(degrees)} degrees"):
        read_volume(tmp_path / "ct")


def test_a_slice_that_is_shifted_in_its_plane_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", aside={3: np.array([15.0, 0.0, 0.0])})
    with pytest.raises(VolumeError, match=r"shifted against each other.*15\.0 mm aside"):
        read_volume(tmp_path / "ct")
    write_series(tmp_path / "near", aside={3: np.array([0.1, 0.0, 0.0])})
    read_volume(tmp_path / "near")


def test_gaps_that_add_up_are_refused(tmp_path: Path) -> None:
    """Each gap is within a twentieth of the others, and the middle of the stack more than half a slice away."""
    gaps = np.repeat([1.0, 1.045], 50)
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    made = dicoms.slices(np.zeros((len(heights), 4, 5), np.int16))
    for dataset, height in zip(made, heights, strict=True):
        dataset.ImagePositionPatient = ["0", "0", f"{height:.6f}"]
    dicoms.save(tmp_path / "ct", made)
    with pytest.raises(VolumeError, match=r"unevenly spaced.*all along"):
        read_volume(tmp_path / "ct")


@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_how_values_are_shown_does_not_change_them(tmp_path: Path, kind: str) -> None:
    pixels = np.arange(24, dtype=kind).reshape(2, 3, 4) + np.array(600, kind)
    made = dicoms.slices(np.zeros((2, 3, 4), np.int16))
    for dataset, plane in zip(made, pixels, strict=True):
        dicoms.add_pixels(dataset, plane)
        dataset.PhotometricInterpretation = "MONOCHROME1"
    dicoms.save(tmp_path / "ct", made)
    np.testing.assert_array_equal(read_volume(tmp_path / "ct").array[0], pixels.astype(np.int32) - 1024)


def test_values_behind_a_table_are_refused(tmp_path: Path) -> None:
    made = dicoms.slices(np.zeros((2, 3, 4), np.int16))
    for dataset in made:
        dataset.ModalityLUTSequence = [dicoms.item(LUTDescriptor=[2, 0, 16], LUTData=b"\0\0\0\0")]
    dicoms.save(tmp_path / "ct", made)
    with pytest.raises(VolumeError, match="Modality LUT"):
        read_volume(tmp_path / "ct")


@pytest.mark.parametrize("which", [0, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_truncated_slice_is_refused_also_at_the_ends(
    tmp_path: Path, which: int, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "ct")
    file = tmp_path / "ct" / f"IM{(which * 5) % 11:03d}.dcm"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    capfd.readouterr()
    with pytest.raises(VolumeError):
        read_volume(tmp_path / "ct")
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(VolumeError, match="no DICOM"):
        read_volume(tmp_path)
