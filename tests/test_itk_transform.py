"""Maps as ITK's transforms, in files that SimpleITK reads again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.spatial.transform import Rotation

from atlasnet.errors import TransformError
from atlasnet.transform import (
    AffineMap,
    BSplineMap,
    CompositeMap,
    DisplacementMap,
    Transform,
    compose,
    itk_transform,
    write_itk_transform,
)
from atlasnet.volume import Grid
from test_transform_itk import MATRIX, NOISE, OBLIQUE, ORIENTATIONS, centred_grid, itk_warp, random_field

GRID = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T)
# Coarser than the target, turned against it, and less wide: ours goes on beyond it.
COARSE = centred_grid((8, 9, 7), (3.0, 2.5, 2.0), OBLIQUE)


def written(path: Path, point_map: object, grid: Grid) -> sitk.Transform:
    write_itk_transform(path / "map.h5", point_map, grid)  # type: ignore[arg-type]  # of any kind
    return sitk.ReadTransform(str(path / "map.h5"))


def check_points(transform: sitk.Transform, point_map: object, grid: Grid) -> None:
    """Both take points within the grid, its corners too, to the same places."""
    index = np.random.default_rng(0).uniform(0, grid.size - 1, (400, 3))
    points = np.concatenate([grid.to_world(index), grid.corners()])
    expected = np.array([transform.TransformPoint(point.tolist()) for point in points])
    found = point_map(torch.from_numpy(points)).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_a_field_and_an_affine_map_are_the_same_to_simpleitk(orientation: np.ndarray, tmp_path: Path) -> None:
    grid = centred_grid((12, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T @ orientation)
    for parts in (
        (DisplacementMap(random_field(COARSE, 4.0), COARSE), AffineMap(MATRIX)),
        (AffineMap(MATRIX), DisplacementMap(random_field(COARSE, 4.0), COARSE)),
        (AffineMap(MATRIX),),
        (DisplacementMap(random_field(COARSE, 4.0), COARSE), DisplacementMap(random_field(GRID, 6.0, 1), GRID)),
    ):
        point_map = compose(*parts)
        check_points(written(tmp_path, point_map, grid), point_map, grid)


@pytest.mark.parametrize("rotation", [[0, 0, 0], [0, -0.615, 0.785]], ids=["straight", "x along (1, 1, 1)"])
def test_a_field_goes_on_where_another_takes_points_beyond_its_voxels(rotation: list[float]) -> None:
    direction = Rotation.from_euler("xyz", rotation).as_matrix()
    grid = Grid.from_parts((6, 7, 8), (2.0, 1.5, 3.0), (5.0, 6.0, 7.0), direction)
    far, near = (
        DisplacementMap(torch.tensor(step)[:, None, None, None].expand(3, *grid.shape), grid)
        for step in ([40.0, 40.0, 40.0], [1.0, 2.0, 3.0])
    )
    transform = itk_transform(compose(far, near), grid)
    for corner in grid.corners():
        np.testing.assert_allclose(transform.TransformPoint(corner.tolist()) - corner, (41, 42, 43), atol=1e-4)


def test_a_source_is_warped_as_we_warp_it(tmp_path: Path) -> None:
    from atlasnet.transform import Transform

    point_map = compose(DisplacementMap(random_field(COARSE, 4.0), COARSE), AffineMap(MATRIX))
    expected = itk_warp(NOISE, GRID, written(tmp_path, point_map, GRID))
    got = Transform(point_map, AffineMap(np.linalg.inv(MATRIX))).warp(NOISE, GRID, fill=-9.0).array[0]
    assert (expected != -9).mean() > 0.3
    assert (np.abs(got - expected) > 1e-3).sum() <= 1  # a voxel exactly at the border


def test_a_spline_is_sampled_and_the_identity_moves_nothing(tmp_path: Path) -> None:
    control = centred_grid((7, 8, 9), (8.0, 9.0, 9.0), OBLIQUE)
    spline = BSplineMap(random_field(control, 5.0), control)
    found = written(tmp_path, spline, GRID)
    for index in ((0, 0, 0), (5, 6, 7), (12, 13, 11)):
        point = GRID.to_world(np.array(index, dtype=np.float64))
        moved = spline(torch.from_numpy(point)).numpy()
        np.testing.assert_allclose(found.TransformPoint(point.tolist()), moved, atol=1e-4)
    identity = written(tmp_path, CompositeMap(()), GRID)
    assert identity.TransformPoint((1.0, 2.0, 3.0)) == (1.0, 2.0, 3.0)


def test_a_plane_and_a_wrong_suffix(tmp_path: Path) -> None:
    plane = centred_grid((1, 14, 13), (1.3, 2.2, 2.9), OBLIQUE.T)
    field = torch.zeros((3, *plane.shape))
    field[0], field[1] = 1.5, -0.5
    check_points(written(tmp_path, DisplacementMap(field, plane), plane), DisplacementMap(field, plane), plane)
    with pytest.raises(TransformError, match=r"expected \.h5"):
        write_itk_transform(tmp_path / "map.tfm", AffineMap(MATRIX), plane)


def test_a_map_of_both_directions_is_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match=r"found Transform; to mend it: give transform\.forward"):
        write_itk_transform(tmp_path / "t.h5", Transform.identity(), GRID)  # type: ignore[arg-type]  # what is tested
    assert not list(tmp_path.iterdir())
