"""Lattices, the pyramid, and free-form steps against SciPy and analytic values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import interpolate, ndimage

from atlasnet.cohort import Normalisation, Plan
from atlasnet.cohort.plan import CT_MI_RANGE
from atlasnet.registration import MRFSettings, lattice
from atlasnet.registration.free_form import LARGEST_STEP, compose, resize, step_field
from atlasnet.registration.intensity import CT_CLAMP, choose_windows
from atlasnet.registration.lattice import Lattice
from atlasnet.registration.pyramid import LevelSettings, build_levels, finest_spacing, registration_grid
from atlasnet.registration.settings import DISCRETE_LEVELS
from atlasnet.training.pairs import planned_operator
from atlasnet.transform import corner_jacobians
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import along_axes


def linear_image(points):
    """3 z - 2 y + x / 2 at the points of a lattice."""
    z, y, x = np.meshgrid(*(points.positions(axis) for axis in range(3)), indexing="ij")
    return torch.tensor(3 * z - 2 * y + x / 2, dtype=torch.float32)


@pytest.mark.parametrize(
    "target", [((9, 13, 8), (1.0, 1.0, 1.5)), ((4, 5, 3), (2.0, 2.0, 4.0)), ((17, 25, 23), (0.5,) * 3)]
)
def test_interpolation_keeps_linear_images_away_from_the_edge(target):
    source = Lattice((9, 13, 12), (1.0, 1.0, 1.0))
    other = Lattice(*target)
    found = along_axes(lattice.interpolation(source, other), linear_image(source))
    inner = tuple(slice(n // 4 + 1, n - n // 4 - 1) for n in other.shape)
    np.testing.assert_allclose(found[inner], linear_image(other)[inner], atol=1e-4)


def test_interpolation_to_the_same_lattice_changes_nothing():
    source = Lattice((5, 4, 6), (2.0, 1.0, 1.0))
    values = torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(along_axes(lattice.interpolation(source, source), values), values)


def test_interpolation_to_a_coarse_lattice_does_not_alias():
    fine, coarse = Lattice((1, 1, 64), (1.0,) * 3), Lattice((1, 1, 16), (1.0, 1.0, 4.0))
    stripes = torch.tensor([0.0, 1.0]).repeat(32)[None, None]
    found = along_axes(lattice.interpolation(fine, coarse), stripes)
    np.testing.assert_allclose(found[0, 0, 1:-1], 0.5, atol=1e-6)


def test_spline_is_scipys_cubic_b_spline():
    control, image = Lattice((1, 1, 9), (1.0, 1.0, 3.0)), Lattice((1, 1, 20), (1.0,) * 3)
    coefficients = np.random.default_rng(0).normal(size=9)
    knots = (np.arange(-2 - 2, 9 + 2 + 2) - 4) * 3.0
    padded = np.concatenate([[coefficients[0]] * 2, coefficients, [coefficients[-1]] * 2])
    expected = interpolate.BSpline(knots - 0.0, padded, 3)(image.positions(2))
    found = along_axes(lattice.spline(control, image), torch.tensor(coefficients, dtype=torch.float32)[None, None])
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 12, 14), (1, 9, 7), (3, 40, 40)])
def test_supports_are_means_that_see_every_voxel(shape):
    (level,) = build_levels(Grid.from_parts(shape, (1.0, 1.0, 2.0)), (LevelSettings(1, 1, 3),))
    for matrix in lattice.support(level.image, level.control):
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        assert (matrix.sum(0) > 0).all()


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_a_step_within_the_bound_does_not_fold_whatever_its_signs(size):
    control, image = Lattice((6, 6, 6), (4.0,) * 3), Lattice((21, 21, 21), (1.0,) * 3)
    signs = torch.randint(0, 2, (3, 6, 6, 6), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    field = step_field(size * LARGEST_STEP * 4 * signs, control, image)
    assert float(corner_jacobians(field, Grid.from_parts((21, 21, 21))).min()) > 0


def test_a_long_step_is_composed_of_short_ones_where_the_spline_itself_would_fold():
    control, image = Lattice((12, 12, 12), (4.0,) * 3), Lattice((45, 45, 45), (1.0,) * 3)
    noise = np.random.default_rng(2).normal(size=(3, 12, 12, 12))
    smooth = ndimage.gaussian_filter(noise, (0, 1.2, 1.2, 1.2))
    coefficients = torch.tensor(smooth * 14 / np.abs(smooth).max(), dtype=torch.float32)
    grid = Grid.from_parts((45, 45, 45))
    plain = along_axes(lattice.spline(control, image), coefficients)
    assert float(corner_jacobians(plain, grid).min()) < 0
    assert float(corner_jacobians(step_field(coefficients, control, image), grid).min()) > 0


def test_a_step_is_short_only_where_it_is_along_every_axis():
    control, image = Lattice((5, 9, 17), (8.0, 4.0, 2.0)), Lattice((33, 33, 33), (1.0,) * 3)
    x = torch.arange(17) % 2 * 2.0 - 1
    coefficients = torch.stack([1.8 * x.expand(5, 9, 17), *torch.zeros(2, 5, 9, 17)])
    grid = Grid.from_parts((33, 33, 33))
    plain = along_axes(lattice.spline(control, image), coefficients)
    assert float(corner_jacobians(plain, grid).min()) < 0
    assert float(corner_jacobians(step_field(coefficients, control, image), grid).min()) > 0


def test_a_short_step_is_the_spline_itself():
    control, image = Lattice((5, 5, 5), (4.0,) * 3), Lattice((17, 17, 17), (1.0,) * 3)
    coefficients = torch.rand(3, 5, 5, 5, generator=torch.Generator().manual_seed(1))
    expected = along_axes(lattice.spline(control, image), coefficients)
    assert torch.equal(step_field(coefficients, control, image), expected)


def test_a_long_uniform_step_moves_as_far_as_asked():
    control, image = Lattice((5, 5, 5), (4.0,) * 3), Lattice((17, 17, 17), (1.0,) * 3)
    step = torch.tensor([5.0, -3.0, 2.0])[:, None, None, None].expand(3, 5, 5, 5)
    np.testing.assert_allclose(step_field(step, control, image), step[..., :1, :1, :1].expand(3, 17, 17, 17), atol=1e-4)


def test_composition_reads_the_second_field_where_the_first_leads():
    first = torch.zeros(3, 8, 8, 8)
    first[0] = 2.0
    x = torch.arange(8.0).expand(8, 8, 8)
    then = torch.stack([0.1 * x, torch.zeros_like(x), torch.zeros_like(x)])
    found = compose(first, then)
    np.testing.assert_allclose(found[0, :, :, :6], 2 + 0.1 * (x[:, :, :6] + 2), atol=1e-5)


def test_resizing_a_displacement_keeps_its_millimetres():
    coarse, fine = Lattice((5, 5, 5), (3.0, 2.0, 4.0)), Lattice((15, 10, 20), (1.0,) * 3)
    steps = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 5, 5, 5)
    found = resize(steps, coarse, fine)
    np.testing.assert_allclose(found[:, 0, 0, 0], [4.0, 4.0, 9.0], atol=1e-5)


def test_registration_grid_keeps_to_its_budget_and_is_never_finer_than_the_target():
    grid = Grid.from_parts((130, 512, 512), (0.98, 0.98, 3.0))
    found = registration_grid(grid, None, 1_000_000)
    assert 0.8e6 < found.voxels <= 1_000_000
    assert found.spacing.max() < 1.05 * found.spacing.min()
    assert np.allclose(registration_grid(grid, 2.0, 1).spacing, (2.0, 2.0, 3.0))
    assert np.allclose(registration_grid(grid, 0.1, 1).spacing, grid.spacing)
    small = Grid.from_parts((35, 50, 35))
    assert registration_grid(small, None, 1_000_000).shape == small.shape


@pytest.mark.parametrize(
    ("shape", "spacing", "levels"),
    [
        ((130, 256, 256), (1.95, 1.95, 3.0), 5),
        ((35, 50, 35), (1.0, 1.0, 1.0), 5),
        ((12, 256, 256), (1.0, 1.0, 8.0), 5),
        ((1, 64, 64), (1.0, 1.0, 1.0), 5),
        ((6, 6, 6), (1.0, 1.0, 1.0), 1),
        ((1, 1, 1), (1.0, 1.0, 1.0), 1),
    ],
)
def test_levels_fit_the_image(shape, spacing, levels):
    found = build_levels(Grid.from_parts(shape, spacing), DISCRETE_LEVELS)
    assert len(found) == levels
    for level in found:
        assert all(level.grid.spacing >= np.array(spacing) - 1e-9)
        for axis in range(3):
            reach = level.control.positions(axis)[-1]
            assert reach >= level.image.positions(axis)[-1] - 1e-6
            assert (level.labels.radii[axis] == 0) == (level.image.shape[axis] == 1)
    assert found[-1].grid.shape == shape or max(spacing) > min(spacing)


def test_a_stack_of_few_slices_keeps_six_of_them_and_a_single_one_has_no_say_in_the_spacing():
    coarse, fine = build_levels(
        Grid.from_parts((12, 256, 256), (1, 1, 3)), (LevelSettings(12, 1, 3), LevelSettings(1, 1, 3))
    )
    np.testing.assert_allclose(coarse.grid.spacing, (12, 12, 6), rtol=0.02)
    assert (coarse.grid.shape[0], fine.grid.shape) == (6, (12, 256, 256))
    plane = Grid.from_parts((1, 64, 64), (2.0, 2.0, 0.5))
    assert finest_spacing(plane) == 2
    assert build_levels(plane, (LevelSettings(2, 1, 3), LevelSettings(1, 1, 3)))[0].grid.shape == (1, 32, 32)


def test_ct_is_read_in_hounsfield_units_and_mr_between_its_own_percentiles():
    generator = np.random.default_rng(0)
    ct = Volume(generator.uniform(-1024, 1500, (8, 8, 8)), Grid.from_parts((8, 8, 8)))
    mr = Volume(generator.uniform(0, 300, (40, 40, 40)), Grid.from_parts((40, 40, 40)))
    for window in choose_windows(ct, ct, None, None)[0]:
        assert (window.clamp, window.bins) == (CT_CLAMP, CT_MI_RANGE)
    bright = mr.replace(mr.array * 5 + 100)
    ours, theirs = choose_windows(mr, bright, None, None)
    assert ours[0].clamp == pytest.approx((1.5, 298.5), abs=1)
    assert theirs[0].clamp == pytest.approx((107.5, 1592.5), abs=5)
    values = torch.tensor([-1e4, 150.0, 1e4])
    assert ours[0].normalise(values).tolist() == pytest.approx([0, 0.5, 1], abs=0.01)
    assert math.isclose(choose_windows(mr, mr, ((0.0, 10.0),), None)[0][0].clamp[1], 10)
    # One alone in Hounsfield units says nothing of the other, and a range that is given holds for both.
    mixed = [window for (window,) in choose_windows(ct, mr, None, None)]
    assert mixed[0].clamp == pytest.approx((-1011, 1487), abs=30)
    assert mixed[1].clamp == ours[0].clamp
    for (window,) in choose_windows(mr, bright, None, ((20.0, 90.0),)):
        assert window.clamp == window.bins == (20, 90)


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_one_voxel_that_outshines_all_does_not_decide_the_range_in_any_unit(unit):
    values = np.random.default_rng(0).uniform(0, 3000, (1, 30, 30, 30)) * unit
    values[0, 0, 0, 0] = 1e6 * unit
    (window,), _ = choose_windows(*[Volume(values, Grid.from_parts((30, 30, 30)))] * 2, None, None)
    assert window.clamp == pytest.approx((15 * unit, 2985 * unit), abs=5 * unit)


@pytest.mark.parametrize("background", [0.0, 100.0])
def test_a_structure_of_fewer_voxels_than_percentiles_see_is_read_between_all_intensities(background):
    values = np.full((1, 30, 30, 30), background)
    values[0, 12:16, 12:16, 12:16] = background + np.linspace(1, 700, 64).reshape(4, 4, 4)
    (window,), _ = choose_windows(*[Volume(values, Grid.from_parts((30, 30, 30)))] * 2, None, None)
    assert window.clamp == (background, background + 700)


def test_each_channel_has_its_own_range_for_mutual_information():
    generator = np.random.default_rng(0)
    ct, pet = generator.uniform(-1024, 1500, (8, 8, 8)), generator.uniform(0, 20, (8, 8, 8))
    both = Volume(np.stack([ct, pet]), Grid.from_parts((8, 8, 8)))
    plan = Plan(
        spacing=(1.0, 1.0, 1.0),
        slice_axis="z",
        normalisation=(Normalisation("CT", "window", (-1000, 400), 0.0, 1.0), Normalisation("PET", "percentiles")),
        mi_range=((-200.0, 300.0), None),
        registration_spacing=(1.0, 1.0, 1.0),
    )
    settings = planned_operator("mrf", {}, plan).settings()
    of_ct, of_pet = choose_windows(both, both, None, MRFSettings(**json.loads(json.dumps(settings))).mi_range)[0]
    assert (of_ct.clamp, of_ct.bins) == (CT_CLAMP, (-200.0, 300.0))
    assert of_pet.clamp == of_pet.bins == pytest.approx((0, 20), abs=0.3)
