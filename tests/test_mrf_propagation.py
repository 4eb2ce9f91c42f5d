"""Belief propagation against exact solvers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.propagation import Smoothness, labelling_energy, propagate, step_energy


def problem(lattice, radii, seed, weight=0.05, truncation=None):
    generator = np.random.default_rng(seed)
    space = LabelSpace(radii)
    unary = torch.tensor(generator.random((*space.shape, *lattice)), dtype=torch.float32)
    offsets = torch.tensor(generator.normal(0, 0.7, (3, *lattice)), dtype=torch.float32)
    weights = tuple(tuple(weight * f for f in generator.uniform(0.5, 2, 3)) for _ in range(3))
    return unary, Smoothness(offsets, weights, truncation), space


def explicit_pair_cost(smoothness, space, axis, p, q):
    """(labels of p, labels of q) written out without any separability."""
    z, y, x = space.shape
    labels = [
        np.array([i - space.radii[2], j - space.radii[1], k - space.radii[0]], dtype=float)
        for k in range(z)
        for j in range(y)
        for i in range(x)
    ]
    d = smoothness.offsets.numpy().astype(float)
    gap = d[(slice(None), *p)] - d[(slice(None), *q)]
    cost = np.array([[np.dot(smoothness.weights[axis], (a - b + gap) ** 2) for b in labels] for a in labels])
    return cost if smoothness.truncation is None else np.minimum(cost, smoothness.truncation)


def edges(lattice):
    for p in np.ndindex(*lattice):
        for axis in range(3):
            q = tuple(v + (axis == a) for a, v in enumerate(p))
            if q[axis] < lattice[axis]:
                yield axis, p, q


def explicit_energy(unary, smoothness, space, labels):
    flat = unary.reshape(len(space), *unary.shape[3:]).numpy().astype(float)
    total = sum(flat[(labels[p], *p)] for p in np.ndindex(*unary.shape[3:]))
    for axis, p, q in edges(unary.shape[3:]):
        total += explicit_pair_cost(smoothness, space, axis, p, q)[labels[p], labels[q]]
    return total


def viterbi(unary, smoothness, space, axis):
    """The exact minimum on a chain along ``axis``."""
    flat = unary.reshape(len(space), -1).numpy().astype(float)
    cost = flat[:, 0]
    for n in range(1, flat.shape[1]):
        p, q = [tuple(m if a == axis else 0 for a in range(3)) for m in (n - 1, n)]
        cost = (cost[:, None] + explicit_pair_cost(smoothness, space, axis, p, q)).min(0) + flat[:, n]
    return cost.min()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("truncation", [None, 0.1])
def test_undamped_propagation_is_exact_on_a_chain(axis, truncation):
    lattice = tuple(7 if a == axis else 1 for a in range(3))
    unary, smoothness, space = problem(lattice, (1, 1, 2), seed=axis, truncation=truncation)
    found = propagate(unary, smoothness, space, iterations=8, damping=0)
    assert found.energy * 7 == pytest.approx(viterbi(unary, smoothness, space, axis), abs=1e-4)


def test_beliefs_on_a_chain_are_the_exact_min_marginals_up_to_a_constant():
    unary, smoothness, space = problem((1, 1, 4), (0, 1, 1), seed=5)
    beliefs = propagate(unary, smoothness, space, iterations=6, damping=0).beliefs.reshape(9, 4)
    flat = unary.reshape(9, 4).numpy().astype(float)
    pair = [explicit_pair_cost(smoothness, space, 2, (0, 0, n), (0, 0, n + 1)) for n in range(3)]
    table = np.full((9, 9, 9, 9), 0.0)
    for labels in itertools.product(range(9), repeat=4):
        table[labels] = sum(flat[label, n] for n, label in enumerate(labels))
        table[labels] += sum(pair[n][labels[n], labels[n + 1]] for n in range(3))
    for n in range(4):
        exact = table.min(axis=tuple(a for a in range(4) if a != n))
        ours = beliefs[:, n].numpy()
        np.testing.assert_allclose(ours - ours.min(), exact - exact.min(), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_propagation_finds_the_minimum_of_a_small_loopy_graph(seed):
    unary, smoothness, space = problem((2, 1, 3), (0, 0, 1), seed)
    exact = min(
        explicit_energy(unary, smoothness, space, np.array(labels).reshape(2, 1, 3))
        for labels in itertools.product(range(3), repeat=6)
    )
    found = propagate(unary, smoothness, space, iterations=20, damping=0.5)
    assert found.energy * 6 == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("truncation", [None, 0.08])
def test_energy_is_that_of_the_definition(truncation):
    unary, smoothness, space = problem((2, 3, 2), (1, 0, 1), seed=3, truncation=truncation)
    labels = torch.tensor(np.random.default_rng(0).integers(0, len(space), (2, 3, 2)))
    expected = explicit_energy(unary, smoothness, space, labels.numpy())
    assert labelling_energy(unary, smoothness, space, labels) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("truncation", [None, 0.08])
def test_the_energy_of_a_step_takes_costs_between_the_labels_as_scipy_does_and_the_penalty_as_it_is(truncation):
    lattice, radii = (2, 3, 2), (1, 2, 1)
    unary, smoothness, space = problem(lattice, radii, seed=4, truncation=truncation)
    generator = np.random.default_rng(1)
    step = np.stack([generator.uniform(-r, r, lattice) for r in reversed(radii)]).astype(np.float32)
    expected = 0.0
    for p in np.ndindex(*lattice):
        costs = RegularGridInterpolator([np.arange(-r, r + 1) for r in radii], unary[(..., *p)].double().numpy())
        expected += float(costs(step[(slice(None), *p)][::-1])[0])
    moved = step + smoothness.offsets.numpy().astype(float)
    for axis, p, q in edges(lattice):
        cost = np.dot(smoothness.weights[axis], (moved[(slice(None), *p)] - moved[(slice(None), *q)]) ** 2)
        expected += cost if truncation is None else min(cost, truncation)
    assert float(step_energy(unary, smoothness, space, torch.from_numpy(step))) == pytest.approx(expected, rel=1e-5)


def test_the_energy_of_a_step_to_labels_is_that_of_the_labelling():
    unary, smoothness, space = problem((3, 2, 4), (1, 0, 2), seed=6)
    labels = torch.tensor(np.random.default_rng(2).integers(0, len(space), (3, 2, 4)))
    wanted = float(labelling_energy(unary, smoothness, space, labels))
    assert float(step_energy(unary, smoothness, space, space.displacements(labels))) == pytest.approx(wanted, rel=1e-6)


def test_energy_never_rises_however_few_the_iterations():
    for seed in range(10):
        unary, smoothness, space = problem((3, 4, 5), (1, 1, 1), seed, weight=0.5)
        found = propagate(unary, smoothness, space, iterations=1)
        assert found.energy <= found.energy_before


def test_what_is_added_to_all_costs_changes_nothing_however_many_the_iterations():
    unary, smoothness, space = problem((3, 4, 3), (1, 1, 1), seed=3)
    found, raised = (propagate(costs, smoothness, space, iterations=12) for costs in (unary, unary + 3))
    assert torch.equal(found.labels, raised.labels)
    least = [one.beliefs - one.beliefs.amin((0, 1, 2), keepdim=True) for one in (found, raised)]
    torch.testing.assert_close(*least, atol=1e-4, rtol=0)


@pytest.mark.parametrize("truncation", [None, 0.08])
def test_labels_taken_at_once_and_one_by_one_give_the_same_bytes(monkeypatch, truncation):
    unary, smoothness, space = problem((3, 4, 3), (2, 1, 3), seed=8, truncation=truncation)
    found = []
    for at_once in (0, 1 << 30):
        monkeypatch.setattr("atlasnet.registration.propagation.AT_ONCE", at_once)
        found.append(propagate(unary, smoothness, space, iterations=6))
    assert torch.equal(found[0].labels, found[1].labels)
    assert found[0].beliefs.numpy().tobytes() == found[1].beliefs.numpy().tobytes()


def test_a_strong_penalty_gives_everyone_the_displacement_that_evens_out_what_is_there():
    unary, _, space = problem((3, 3, 3), (1, 1, 1), seed=1)
    offsets = torch.zeros(3, 3, 3, 3)
    offsets[0, 1, 1, 1] = 1.0
    smoothness = Smoothness(offsets, ((50.0,) * 3,) * 3)
    chosen = space.displacements(propagate(unary, smoothness, space, iterations=10).labels)
    total = chosen + offsets
    assert float((total - total[:, :1, :1, :1]).abs().max()) == 0


def test_expectation_follows_the_minimum_of_a_parabola_between_the_labels():
    space = LabelSpace((2, 2, 2))
    true = torch.tensor([0.4, -0.3, 0.15])
    z, y, x = torch.meshgrid(*(space.positions(a) for a in range(3)), indexing="ij")
    costs = (x - true[0]) ** 2 + (y - true[1]) ** 2 + (z - true[2]) ** 2
    found = space.expectation(costs[..., None, None, None], temperature=0.5)
    assert found.flatten().tolist() == pytest.approx(true.tolist(), abs=0.03)


def test_windows_are_the_shifted_images():
    space = LabelSpace((1, 0, 2))
    padded = torch.arange(4 * 3 * 8, dtype=torch.float32).reshape(1, 4, 3, 8)
    windows = space.windows(padded)
    assert windows.shape == (3, 1, 5, 1, 2, 3, 4)
    for k, i in itertools.product(range(3), range(5)):
        assert torch.equal(windows[k, 0, i], padded[:, k : k + 2, :, i : i + 4])


def test_blocks_cover_every_label_once_within_the_budget():
    space = LabelSpace((2, 1, 3))
    for budget in (1, 10, 70, 400, 10_000):
        seen = np.zeros(space.shape, dtype=int)
        for block in space.blocks(10, budget):
            seen[block] += 1
            assert seen[block].size * 10 <= max(budget, 10)
        assert (seen == 1).all()
