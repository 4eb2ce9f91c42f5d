"""Arrays of other libraries, with the affine of NIfTI, as volumes; and what is no volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

import atlasnet
from atlasnet.errors import TransformError, VolumeError
from atlasnet.execution import Execution
from atlasnet.volume import Grid, Volume, read_labels, read_volume, write_volume
from synthetic import subject

ONE = Execution(threads=1)
SHAPE = (5, 6, 7)
TURN = Rotation.from_euler("xyz", [4, -3, 91], degrees=True).as_matrix()
AFFINE = np.block([[TURN * (0.9, 1.2, 2.5), np.array([[40.0], [-30.0], [12.0]])], [np.zeros(3), np.ones(1)]])


def sform(path: Path) -> np.ndarray:
    """The affine that nibabel and MONAI take of a NIfTI file: three rows of four floats at byte 280 of the header."""
    return np.vstack([np.frombuffer(path.read_bytes(), np.float32, 12, 280).reshape(3, 4), [0, 0, 0, 1]])


def test_the_affine_of_a_nifti_file_and_its_array_give_the_volume_that_was_written(tmp_path: Path) -> None:
    grid = Grid.from_parts(SHAPE, (0.9, 1.2, 2.5), (-40, 30, 12), [[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    written = Volume(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), grid)
    write_volume(tmp_path / "scan.nii", written)
    affine = sform(tmp_path / "scan.nii")
    array = written.array[0].T  # (x, y, z)
    volume = Volume(array.T, Grid.from_ras(array.T.shape, affine))
    read = read_volume(tmp_path / "scan.nii")
    assert volume.grid.matches(read.grid, 1e-3)
    np.testing.assert_array_equal(volume.array, read.array)
    np.testing.assert_allclose(read.grid.ras, affine, atol=1e-4)


def test_an_image_of_simpleitk_goes_in_and_out_by_its_parts() -> None:
    image = sitk.GetImageFromArray(np.zeros(SHAPE, np.int16))
    image.SetSpacing((0.9, 1.2, 2.5))
    image.SetOrigin((-40, 30, 12))
    image.SetDirection(TURN.ravel())
    grid = Grid.from_parts(SHAPE, image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    np.testing.assert_allclose(grid.to_world((2, 3, 4)), image.TransformIndexToPhysicalPoint((2, 3, 4)))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction.ravel())
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((2, 3, 4)), grid.to_world((2, 3, 4)))


def test_left_and_posterior_are_positive_once_they_are_turned_over() -> None:
    grid = Grid.from_ras(SHAPE, AFFINE)
    x, y, z, _ = AFFINE @ (2, 3, 4, 1)
    np.testing.assert_allclose(grid.to_world((2, 3, 4)), (-x, -y, z))
    np.testing.assert_array_equal(grid.ras, AFFINE)


@pytest.mark.parametrize(("shape", "affine"), [((2, 5, 6, 7), np.eye(4)), ((5, 6, 7), np.eye(3)), ((6, 7), np.eye(4))])
def test_a_grid_has_three_axes_and_no_channels(shape: tuple[int, int, int], affine: np.ndarray) -> None:
    with pytest.raises(VolumeError, match=r"expected (a shape \(z, y, x\) without channels|\(4, 4\), finite)"):
        Grid(shape, affine)


def test_what_has_not_three_axes_is_told_so() -> None:
    with pytest.raises(VolumeError, match=r"three axes; .*a 2-D image is one slice: shape \(1, y, x\)"):
        Grid.from_parts((6, 7), (0.5, 0.5))
    with pytest.raises(VolumeError, match=r"found an array of shape \(3, 6, 7\)"):
        Grid.from_ras(np.zeros((3, 6, 7)), AFFINE)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(VolumeError, match=r"expected \(4, 4\), finite"):
        Grid.from_ras(SHAPE, np.eye(3))
    with pytest.raises(VolumeError, match=r"no points; .*found shape \(2,\)"):
        Grid.from_parts(SHAPE).to_index((1, 2))


@pytest.mark.parametrize("kind", ["complex64", "U3", "object"])
def test_voxels_are_real_numbers(kind: str) -> None:
    with pytest.raises(VolumeError, match="no real numbers"):
        Volume(np.zeros(SHAPE).astype(kind), Grid.from_parts(SHAPE))


def test_an_affine_is_no_grid() -> None:
    with pytest.raises(VolumeError, match=r"found ndarray.*Grid\.from_ras"):
        Volume(np.zeros(SHAPE), np.eye(4))  # type: ignore[arg-type]  # what is tested


def test_files_are_registered_as_what_they_hold(tmp_path: Path) -> None:
    (first, labels), (second, _) = subject(1), subject(2)
    paths = [tmp_path / name for name in ("a.nii.gz", "b.nrrd", "mask.nii.gz")]
    for path, volume in zip(paths, (first, second, labels.replace((labels.array > 0).astype(np.uint8))), strict=True):
        write_volume(path, volume)
    wanted = atlasnet.register(
        *map(atlasnet.read_volume, paths[:2]), operator="affine", source_mask=read_labels(paths[2]), execution=ONE
    )
    found = atlasnet.register(str(paths[0]), paths[1], operator="affine", source_mask=paths[2], execution=ONE)
    np.testing.assert_array_equal(found.transform.displacement(second.grid), wanted.transform.displacement(second.grid))
    with pytest.raises(VolumeError, match=r"none\.nii\.gz"):
        atlasnet.register(tmp_path / "none.nii.gz", second)
    with pytest.raises(TransformError, match=r"found PosixPath.*read_transform|found WindowsPath.*read_transform"):
        atlasnet.register(first, second, initial=tmp_path / "a.tfm")  # type: ignore[arg-type]  # what is tested


def test_an_array_is_no_image() -> None:
    image = Volume(np.zeros(SHAPE, np.float32), Grid.from_parts(SHAPE))
    with pytest.raises(VolumeError, match="the target is not given as a Volume"):
        atlasnet.register(image, image.array)  # type: ignore[arg-type]  # what is tested


def test_an_array_cannot_be_written_without_its_geometry(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    for write in (atlasnet.write_volume, atlasnet.write_labels):
        with pytest.raises(VolumeError, match=r"not given as a Volume.*found ndarray.*Volume\(array, grid\)"):
            write(tmp_path / "scan.nii.gz", array)  # type: ignore[arg-type]  # what is tested
    assert not list(tmp_path.iterdir())
