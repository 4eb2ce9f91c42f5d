"""The parts of the affine pre-alignment: levels, the search, the penalty, a refinement."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import logm
from scipy.optimize import approx_fprime
from scipy.spatial.transform import Rotation

from atlasnet.registration.affine_pyramid import Level, coarser
from atlasnet.registration.affine_refine import Penalty, View, _look, refine
from atlasnet.registration.affine_search import search, turns
from scenes import SHEARED, affine, scene


def level(shape: Sequence[int], spacing: Sequence[float], matrix: np.ndarray | None = None, seeds: int = 1) -> Level:
    """The scene, carried by ``matrix``, on a lattice around the origin; a channel for each seed."""
    empty = Level(torch.zeros((1, *shape)), torch.ones(()).expand(1, *shape), tuple(spacing))
    back = np.linalg.inv(np.eye(4) if matrix is None else matrix)
    points = empty.points().numpy() @ back[:3, :3].T + back[:3, 3]
    values = np.stack([scene(points, seed).reshape(shape) for seed in range(seeds)])
    return Level(torch.from_numpy(values).float() / 100, empty.weight, empty.spacing)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_the_search_finds_where_an_image_was_cut_out_and_what_that_costs(turned: bool, dims: int) -> None:
    # All in the order (x, y[, z]): the target's voxel i is what the source has at turn @ i + first.
    random, spacing, around = np.random.default_rng(dims), 2.0, 12
    quarter = np.eye(dims)
    quarter[:2, :2] = [[0, -1], [1, 0]]
    turn, first = (quarter, np.array([9, 2, -1])[:dims]) if turned else (np.eye(dims), np.array([-3, 2, 1])[:dims])
    here, there = np.array([9, 11, 8])[:dims], np.array([10, 9, 12])[:dims]
    everything = random.standard_normal((2, *there + 2 * around))
    source = everything[:, *(slice(around, around + n) for n in there)]
    over = np.moveaxis(np.moveaxis(np.indices(here), 0, -1) @ turn.T.astype(int) + first, -1, 0)
    target = everything[:, *(over + around)]
    target[1] += random.standard_normal(here)
    counts_there, counts_here = np.ones(there), np.ones(here)
    counts_there[:, -1] = counts_here[:2] = 0

    within = np.all([(place >= 0) & (place < n) for place, n in zip(over, there, strict=True)], axis=0)
    within[within] = counts_there[tuple(over[:, within])] > 0
    within &= counts_here > 0
    seen_there = source[:, *over[:, within]]
    alike = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(target[:, within], seen_there, strict=True)])
    overlap = within.sum() / min(counts_here.sum(), counts_there.sum())

    def as_level(image: np.ndarray, weight: np.ndarray) -> Level:
        parts = (torch.from_numpy(values.transpose(0, *range(dims, 0, -1))).float() for values in (image, weight[None]))
        return Level(*parts, (spacing,) * dims)

    levels = as_level(target, counts_here), as_level(source, counts_there)
    best = search(*levels, [np.eye(dims), quarter], minimum_overlap=0.3, missing=0.6)[0]
    np.testing.assert_array_equal(best.rotation, turn)
    middles = turn @ (here - 1) / 2 - (there - 1) / 2
    np.testing.assert_allclose(best.translation, spacing * (first + middles), atol=1e-9)
    assert best.cost == pytest.approx(overlap * (1 - alike) + (1 - overlap) * 0.6, abs=5e-3)
    assert search(*levels, [turn], minimum_overlap=overlap + 0.01, missing=0.6)[0].cost > best.cost + 0.2


def test_the_search_takes_nothing_that_is_even_for_alike() -> None:
    # Both show the same only where they meet by half; everywhere else one of them is even but for rounding.
    random = np.random.default_rng(0)
    source = 1 + 1e-5 * random.standard_normal((20, 20, 20))
    target = 1 + 1e-5 * random.standard_normal((20, 20, 20))
    source[:, :, 14:] = random.standard_normal((20, 20, 6))
    target[:, :, 4:10] = source[:, :, 14:]
    levels = (Level(torch.from_numpy(v[None]).float(), torch.ones(1, 20, 20, 20), (1.0,) * 3) for v in (target, source))
    (best,) = search(*levels, [np.eye(3)], minimum_overlap=0.25, missing=0.6)
    np.testing.assert_allclose(best.translation, (10, 0, 0), atol=1e-9)


def test_turns_are_by_multiples_of_a_step_about_every_axis_the_identity_first() -> None:
    for dims, count in ((2, 2), (3, 1)):
        found = turns(dims, 20.0, count)
        np.testing.assert_array_equal(found[0], np.eye(dims))
        full = [np.pad(turn, (0, 3 - dims)) + np.diag([0, 0, 3 - dims]) for turn in found]
        vectors = Rotation.from_matrix(full).as_rotvec(degrees=True)
        axes = [(0,), (0,), range(-2, 3)] if dims == 2 else [range(-1, 2)] * 3
        assert {tuple(v) for v in np.rint(vectors / 20).tolist()} == set(itertools.product(*axes))
        np.testing.assert_allclose(vectors, 20 * np.rint(vectors / 20), atol=1e-9)


def test_voxels_of_a_coarser_level_are_means_of_what_lies_around_them() -> None:
    fine = level((18, 20, 22), (1.0, 1.5, 2.0))
    slope = torch.tensor([2.0, -1.0, 0.5])
    ramp = Level((fine.points() @ slope + 7).reshape(1, 18, 20, 22), fine.weight, fine.spacing)
    coarse = coarser(ramp, 4.0)
    assert coarse.image.shape == (1, 9, 8, 6)
    assert coarse.extent == pytest.approx(ramp.extent)
    assert torch.allclose(coarse.weight, torch.ones(()))
    inner = (slice(1, -1),) * 3
    wanted = (coarse.points() @ slope + 7).reshape(coarse.image.shape)
    assert torch.allclose(coarse.image[0][inner], wanted[0][inner], atol=0.2)
    for derivative, along in zip(ramp.gradient(), slope, strict=True):
        assert torch.allclose(derivative[inner], along, atol=1e-4)


def test_what_does_not_count_has_no_part_in_a_coarser_level() -> None:
    weight = torch.zeros((1, 16, 16, 16))
    weight[..., :9] = 1
    values = torch.where(weight > 0, 5.0, 1000.0)
    coarse = coarser(Level(values, weight, (1.0, 1.0, 1.0)), 3.0)
    assert torch.allclose(coarse.image[coarse.weight > 0], torch.tensor(5.0), atol=1e-4)


def test_the_field_of_view_ends_half_a_voxel_beyond_the_outermost_centres() -> None:
    view = level((4, 5, 6), (2.0, 1.0, 3.0))
    assert view.extent.tolist() == [12, 5, 12]
    edge = torch.from_numpy(view.extent / 2).float()
    assert view.inside(view.index(torch.stack([0.99 * edge, -0.99 * edge]))).all()
    for axis in range(3):
        for sign in (-1, 1):
            beyond = torch.zeros(1, 3)
            beyond[0, axis] = sign * (edge[axis] + 0.02)
            assert not view.inside(view.index(beyond)).any()


def test_the_penalty_is_the_logarithmic_strain_in_standard_deviations_and_its_derivative() -> None:
    penalty, linear = Penalty(scale=0.2, shear=0.1, weight=0.3), affine((10, 20, -15), (0, 0, 0), SHEARED)[:3, :3]

    def value(update: np.ndarray) -> float:
        moved = linear @ (np.eye(3) + update.reshape(3, 3))
        strain = np.real(logm(moved.T @ moved)) / 2
        size = np.trace(strain) / 3 * np.eye(3)
        return 0.3 * float((size[0, 0] / 0.2) ** 2 + (((strain - size) / 0.1) ** 2).sum())

    found, half_gradient, _ = penalty.normal(linear)
    assert found == pytest.approx(value(np.zeros(9)))
    assert 2 * half_gradient == pytest.approx(approx_fprime(np.zeros(9), value, 1e-6), abs=1e-4)


@pytest.mark.parametrize("mapped", [False, True], ids=["of the target's points", "of the source's points"])
def test_the_derivative_of_the_cost_is_that_of_its_differences(mapped: bool) -> None:
    radius, there = 30.0, affine((14, -20, 15), (1.0, -0.5, 0.8), SHEARED)
    small = View.of(level((16, 18, 20), (2.0, 1.8, 2.2), there, 2))
    large = View.of(level((28, 30, 32), (2.4, 2.4, 2.6), None, 2))

    def look(update: np.ndarray) -> Any:
        step = np.zeros((4, 4))
        step[:3] = update.reshape(3, 4) / ([radius] * 3 + [1])
        matrix = np.linalg.inv(there) @ (np.eye(4) + step)
        if mapped:  # the images exchanged: the points that the map takes are those of the other
            matrix = there @ (np.eye(4) + step)
            return _look(small, large, np.linalg.inv(matrix), np.eye(3), -1.0, radius)
        return _look(small, large, matrix, matrix[:3, :3], 1.0, radius)

    off = np.array([0.4, -0.3, 0.2, 0.5, 0.1, 0.3, -0.4, -0.6, 0.2, 0.3, -0.2, 0.4])
    assert look(off).overlap == pytest.approx(1)
    wanted = approx_fprime(off, lambda update: look(update).cost, 0.05)
    found = 2 * look(off).derivatives()[0]
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_refinement_takes_no_step_that_leads_uphill_and_goes_on_with_smaller_ones() -> None:
    target, source = level((14, 16, 18), (5.0,) * 3), level((16, 16, 18), (5.0,) * 3, affine((0, 0, 0), (14, -10, 8)))
    views, penalty = (View.of(target), View.of(source)), Penalty(0.15, 0.1, 0.002)
    settings: dict[str, Any] = {"missing": 0.6, "masked": False, "tolerance": 0.05, "checkpoint": lambda: None}
    fits = [refine(*views, np.eye(4), "rigid", penalty, iterations=n, **settings) for n in range(13)]
    costs = [fit.cost for fit in fits]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs[:8])) < 8  # a step was not taken
    assert fits[-1].iterations < 12
