"""The Gauss-Newton refinement: its linear system, its accuracy between voxels, and what must not move it."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from atlasnet.errors import InputError
from atlasnet.execution import Execution
from atlasnet.registration import LevelSettings, lattice, make_operator, register_images
from atlasnet.registration import refinement as room
from atlasnet.registration.propagation import Smoothness
from atlasnet.registration.pyramid import build_levels
from atlasnet.registration.settings import (
    DEFAULT_LEVELS,
    DEFAULT_METRICS,
    DISCRETE_LEVELS,
    PLANE_LEVELS,
    PLANE_METRICS,
    SMALL_LEVELS,
    MRFSettings,
)
from atlasnet.registration.similarity.pair import Supports
from atlasnet.transform import DisplacementMap, Transform
from atlasnet.volume import Grid, Volume

ONE = Execution(threads=1)
WEIGHTS = ((0.3, 0.2, 0.1), (0.4, 0.5, 0.6), (0.7, 0.3, 0.2))


def texture(shape, seed=0, sigma=1.5):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return (smooth / smooth.std()).astype(np.float32)


def whole(shape):
    """One control point per voxel that sees only this voxel."""
    return Supports(tuple(torch.eye(n) for n in shape))


def test_the_linear_system_is_solved_as_numpy_solves_it():
    shape = (2, 3, 2)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn((4, 3, *shape), generator=generator, dtype=torch.float64)
    full = torch.einsum("nizyx,njzyx->ijzyx", factors, factors)
    curvature = torch.stack([full[i, j] for i, j in room.UPPER])
    slope = torch.randn((3, *shape), generator=generator, dtype=torch.float64)
    solution = room._solve(curvature, slope, slope.new_tensor(WEIGHTS))

    size = slope.numel()
    damping = room.DAMPING * float(curvature[:3].mean())
    matrix = np.eye(size) * damping
    number = np.arange(size).reshape(3, *shape)
    for i in range(3):
        for j in range(3):
            matrix[number[i].ravel(), number[j].ravel()] += full[i, j].numpy().ravel()
    for axis in range(3):
        for component in range(3):
            nodes = np.moveaxis(number[component], axis, 0)
            for p, q in zip(nodes[:-1].ravel(), nodes[1:].ravel(), strict=True):
                # the second derivative of w (d_p - d_q)^2
                weight = 2 * WEIGHTS[axis][component]
                matrix[[p, q], [p, q]] += weight
                matrix[[p, q], [q, p]] -= weight
    expected = np.linalg.solve(matrix, slope.numpy().ravel())
    assert np.abs(solution.numpy().ravel() - expected).max() < 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_a_step_does_not_depend_on_the_unit_of_what_weighs_images_and_penalty(unit):
    generator = torch.Generator().manual_seed(0)
    curvature = torch.rand((6, 3, 4, 5), generator=generator, dtype=torch.float64)
    curvature[3:] /= 10  # the three axes hardly depend on each other
    slope = torch.randn((3, 3, 4, 5), generator=generator, dtype=torch.float64)
    factors = slope.new_tensor(WEIGHTS)
    torch.testing.assert_close(
        room._solve(unit * curvature, unit * slope, unit * factors), room._solve(curvature, slope, factors)
    )


def test_the_gradient_of_the_penalty_is_the_slope_of_its_energy():
    torch.manual_seed(0)
    displacement = torch.randn((3, 3, 4, 2), dtype=torch.float64, requires_grad=True)
    factors = displacement.new_tensor(WEIGHTS)
    total = sum(
        (displacement.diff(dim=axis + 1).square() * factors[axis, :, None, None, None]).sum() for axis in range(3)
    )
    (expected,) = torch.autograd.grad(total, displacement)
    torch.testing.assert_close(room._penalty_gradient(displacement.detach(), factors), expected)


@pytest.mark.parametrize("shape", [(24, 26, 28), (1, 40, 44)])
def test_a_shift_of_less_than_a_voxel_is_found_in_one_step(shape):
    shift = np.array([0.3, -0.2, 0.4]) * (np.array(shape) > 1)  # z, y, x
    image = texture(shape)
    moved = ndimage.shift(image, shift, order=5, mode="nearest")
    (level,) = build_levels(Grid.from_parts(shape), (LevelSettings(1, 0, 4, refinements=1),))
    offsets = torch.zeros((3, *level.control.shape))
    step = room.refine(
        torch.from_numpy(image)[None],
        torch.from_numpy(moved)[None],
        torch.ones(shape, dtype=torch.bool),
        Supports(lattice.support(level.image, level.control)),
        Smoothness(offsets, ((0.01,) * 3,) * 3),
    )
    inner = step.coefficients[:, :, 2:-2, 2:-2].reshape(3, -1).mean(1).numpy()[::-1]
    np.testing.assert_allclose(inner, shift, atol=0.06)
    assert 0 < step.correlation < 1


def test_nothing_moves_without_contrast_or_where_nothing_counts():
    shape = (6, 6, 6)
    smoothness = Smoothness(torch.zeros((3, *shape)), WEIGHTS)
    flat, image = torch.zeros((1, *shape)), torch.from_numpy(texture(shape))[None]
    everywhere, nowhere = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for target, source, counted in ((flat, flat, everywhere), (flat, image, nowhere), (image, image, everywhere)):
        step = room.refine(target, source, counted, whole(shape), smoothness)
        assert float(step.coefficients.abs().max()) < 1e-6


def test_a_masked_half_does_not_pull():
    shape = (12, 12, 24)
    image = texture(shape)
    spoilt = image.copy()
    spoilt[..., 12:] = texture(shape, seed=1)[..., 12:]
    counted = torch.zeros(shape, dtype=torch.bool)
    counted[..., :12] = True
    smoothness = Smoothness(torch.zeros((3, *shape)), ((0.1,) * 3,) * 3)
    step = room.refine(torch.from_numpy(image)[None], torch.from_numpy(spoilt)[None], counted, whole(shape), smoothness)
    assert float(step.coefficients.abs().max()) < 0.1
    assert step.correlation == pytest.approx(1, abs=1e-4)


def test_the_edge_of_a_mask_is_no_edge_of_the_image():
    shape = (12, 14, 16)
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    ramp = torch.from_numpy(10 + 0.5 * x - 0.3 * y + 0.2 * z).float()[None]
    known = torch.zeros(shape, dtype=torch.bool)
    known[3:9, 4:6, 5:12] = True
    known[0, 0, 0] = True  # alone, it has no slope
    slopes = room._gradient(ramp * known, known)
    for slope, wanted in zip(slopes, (0.5, -0.3, 0.2), strict=True):
        np.testing.assert_allclose(slope[0, 3:9, 4:6, 5:12], wanted, atol=1e-5)
        assert not slope[0][~known].any()
        assert slope[0, 0, 0, 0] == 0


def test_refinement_finds_tenths_of_a_voxel_that_the_search_does_not():
    shape = (40, 44, 48)
    grid = Grid.from_parts(shape, (1.5, 1.5, 1.5))
    rng = np.random.default_rng(3)
    field = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), 8) for _ in range(3)])
    field = torch.from_numpy((field / np.abs(field).max() * 4).astype(np.float32))  # mm
    source = Volume(500 * texture(shape, sigma=2)[None], grid)
    truth = Transform.from_displacement(DisplacementMap(field, grid))
    target = truth.warp(source, grid)
    inner = (slice(None), *[slice(6, -6)] * 3)
    errors = {}
    for name, levels in (("default", DEFAULT_LEVELS), ("discrete", DISCRETE_LEVELS)):
        operator = make_operator("mrf", affine=False, levels=levels)
        found = register_images(source, target, operator=operator, execution=ONE).transform.displacement(grid)
        errors[name] = float((found - field)[inner].square().sum(0).sqrt().mean())
    assert errors["default"] < 0.15 * 1.5
    assert errors["default"] < 0.6 * errors["discrete"]


def test_the_correlation_rises_with_every_step():
    shape = (30, 32, 34)
    grid = Grid.from_parts(shape)
    image = texture(shape, sigma=2)
    source = Volume(500 * image[None], grid)
    target = Volume(500 * ndimage.shift(image, (0.6, -0.4, 0.5), order=3, mode="nearest")[None], grid)
    operator = make_operator("mrf", affine=False, levels=(LevelSettings(1, 0, 4, refinements=4),))
    (level,) = register_images(source, target, operator=operator, execution=ONE).record["levels"]
    correlations = level["correlation_before_refinements"]
    assert correlations == sorted(correlations)
    assert correlations[-1] > correlations[0]


def test_what_the_source_does_not_show_is_no_reason_to_move():
    shape = (20, 22, 32)
    grid = Grid.from_parts(shape)
    target = Volume(500 * texture(shape, sigma=2)[None], grid)
    source = Volume(target.array[..., :16], grid.cropped((slice(0, 20), slice(0, 22), slice(0, 16))))
    operator = make_operator("mrf", affine=False, levels=(LevelSettings(1, 0, 4, refinements=1),))
    found = register_images(source, target, operator=operator, execution=ONE)
    assert found.record["levels"][0]["correlation_before_refinements"][0] > 0.95


@pytest.mark.parametrize("masked", ["target", "source"])
def test_a_mask_of_either_image_has_no_edge_that_pulls(masked):
    shape, shift = (20, 22, 32), 0.4
    grid = Grid.from_parts(shape)
    image = 5 + texture(shape, sigma=2)
    moved = ndimage.shift(image, (0, 0, shift), order=5, mode="nearest")
    mask = np.zeros((1, *shape), np.uint8)
    mask[..., 8:24] = 1
    volumes = {"target": Volume(500 * image[None], grid), "source": Volume(500 * moved[None], grid)}
    operator = make_operator("mrf", affine=False, levels=(LevelSettings(1, 0, 4, refinements=1),))
    masks = {f"{masked}_mask": Volume(mask, grid)}
    found = register_images(**volumes, **masks, operator=operator, execution=ONE).transform.displacement(grid)
    within = found[:, 3:-3, 3:-3, 8:24].numpy()
    assert np.abs(within[0] - shift).mean() < 0.05


def test_refinements_without_the_metric_that_they_follow_are_refused():
    with pytest.raises(InputError, match="ncc"):
        MRFSettings(metrics={"mi": 1.0}, levels=DEFAULT_LEVELS)
    with pytest.raises(InputError, match="radius or refinements"):
        MRFSettings(levels=(LevelSettings(1, 0, 3),))


def test_what_none_stands_for_depends_on_the_grid():
    volume, small, plane = (Grid.from_parts(shape) for shape in ((50, 50, 50), (40, 50, 50), (1, 500, 500)))
    free = MRFSettings()
    assert [free.levels_on(grid) for grid in (volume, small, plane)] == [DEFAULT_LEVELS, SMALL_LEVELS, PLANE_LEVELS]
    assert [free.metrics_on(grid) for grid in (volume, small, plane)] == [
        DEFAULT_METRICS,
        DEFAULT_METRICS,
        PLANE_METRICS,
    ]
    for grid in (volume, small, plane):
        # Refinement follows a metric that has no weight here.
        assert MRFSettings(metrics={"mi": 1.0}).levels_on(grid) == DISCRETE_LEVELS
        given = MRFSettings(**json.loads(json.dumps(MRFSettings(levels=DEFAULT_LEVELS, metrics={"ncc": 1}).as_json())))
        assert (given.levels_on(grid), given.metrics_on(grid)) == (DEFAULT_LEVELS, {"ncc": 1.0})
        assert MRFSettings(**json.loads(json.dumps(free.as_json()))) == free
