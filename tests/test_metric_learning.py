"""Learning metric weights: labellings against brute force, weights against those that made the problems."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from atlasnet.cohort import Cohort
from atlasnet.errors import CohortError, InputError
from atlasnet.execution import Execution
from atlasnet.registration import MRFSettings, TissueClass
from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.learning import LearnSettings, SVMSettings, draw_pairs, label_classes, learn_metrics
from atlasnet.registration.learning.learn import _counts
from atlasnet.registration.learning.observe import observe
from atlasnet.registration.learning.problem import Found, Problem
from atlasnet.registration.learning.programme import Pool, Programme, regulariser
from atlasnet.registration.learning.svm import Iteration, improved, objective, started
from atlasnet.registration.propagation import Smoothness
from atlasnet.registration.pyramid import LevelSettings
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume
from synthetic import write_cohort

ONE = Execution(threads=1)


def chain(seed, *, points=3, metrics=2, constant=False):
    """A problem on a chain, where undamped belief propagation is exact; ``constant``: no label changes volumes."""
    random = np.random.default_rng(seed)
    space, lattice = LabelSpace((0, 1, 1)), (1, 1, points)

    def table(*lead):
        return torch.tensor(random.random((*lead, *space.shape, *lattice)), dtype=torch.float32)

    weights = tuple(tuple(random.uniform(0.5, 2, 3)) for _ in range(3))
    offsets = torch.tensor(random.normal(0, 0.5, (3, *lattice)), dtype=torch.float32)
    carried = torch.ones((2, *space.shape, *lattice)) if constant else 0.5 + table(2)
    return Problem(
        costs=table(metrics),
        classes=torch.tensor(random.integers(0, 2, lattice)),
        count=2,
        smoothness=Smoothness(offsets, weights),
        space=space,
        overlap=0.5 * table(2),
        carried=carried,
        wanted=torch.tensor([3.0, 4.0], dtype=torch.float64),
        iterations=8,
        damping=0.0,
    )


def everything(problem, wanted=None):
    """Features and losses of all labellings (n, points), or of those wanted, summed point by point."""
    points, metrics = problem.points, len(problem.costs)
    labels = np.array(wanted or list(itertools.product(range(len(problem.space)), repeat=points)))

    def chosen(tables):
        flat = tables.reshape(len(tables), -1, points).double().numpy()
        return np.stack([flat[:, labels[:, p], p] for p in range(points)])  # (points, tables, n)

    features = np.zeros((len(labels), problem.count * metrics + 1))
    for p, costs in enumerate(chosen(problem.costs)):
        first = int(problem.classes.reshape(-1)[p]) * metrics
        features[:, first : first + metrics] += costs.T
    steps = np.stack([labels % 3 - 1, labels // 3 - 1, 0 * labels])  # (x, y, z), n, points
    moved = steps + problem.smoothness.offsets[:, 0, 0].double().numpy()[:, None]
    penalty = np.square(np.diff(moved, axis=2)).sum(2)
    features[:, -1] = np.array(problem.smoothness.weights[2]) @ penalty
    both, carried = chosen(problem.overlap).sum(0), chosen(problem.carried).sum(0)
    dice = 2 * both / (carried + problem.wanted.numpy()[:, None])
    return features / points, 1 - dice.mean(0)


def test_features_and_loss_of_a_labelling_are_those_of_its_control_points():
    problem = chain(0)
    labels = (3, 8, 0)
    found = problem.found(torch.tensor(labels).reshape(1, 1, -1))
    (features,), (loss,) = everything(problem, [labels])
    assert found.features == pytest.approx(features, abs=1e-6)
    assert found.loss == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.0])
def test_loss_augmented_inference_finds_the_minimum_of_a_chain_where_the_loss_is_a_sum(factor):
    for seed in range(2):
        problem = chain(seed, constant=True)
        features, losses = everything(problem)
        for scale in (0.3, 3.0):
            weights = scale * np.array([0.7, 0.2, 0.1, 0.6, 0.1])
            _, found = problem.infer(weights, factor)
            value = weights @ found.features + factor * found.loss
            assert value == pytest.approx((features @ weights + factor * losses).min(), abs=1e-5)


def test_loss_augmented_inference_is_near_the_minimum_where_volumes_change_too():
    lost = []
    for seed in range(4):
        problem = chain(seed)
        features, losses = everything(problem)
        weights = np.array([0.7, 0.2, 0.1, 0.6, 0.1])
        for factor in (-1.0, 1.0):
            values = features @ weights + factor * losses
            _, found = problem.infer(weights, factor)
            lost.append((weights @ found.features + factor * found.loss - values.min()) / np.ptp(values))
    assert min(lost) > -1e-6
    assert max(lost) < 0.02


def test_a_problem_is_read_back_as_it_was_written(tmp_path):
    problem = chain(1)
    problem.save(tmp_path / "p.safetensors")
    again = Problem.load(tmp_path / "p.safetensors", count=2, iterations=8, damping=0.0)
    weights = np.array([0.7, 0.2, 0.1, 0.6, 0.1])
    labels, found = again.infer(weights, -1.0)
    before, known = problem.infer(weights, -1.0)
    assert torch.equal(labels, before)
    assert np.array_equal(found.features, known.features)
    assert found.loss == known.loss


class Listed:
    """An example with a few hundred labellings, all of which are looked at."""

    def __init__(self, seed, truth, *, noise=0.0, count=300):
        random = np.random.default_rng(seed)
        self.features = random.random((count, len(truth)))
        losses = self.features @ truth / truth.sum() + noise * random.normal(size=count)
        self.losses = np.clip(losses - losses.min(), 0, 1)

    def infer(self, weights, factor):
        best = int((self.features @ weights + factor * self.losses).argmin())
        return Found(self.features[best], float(self.losses[best]))


def learnt(examples, dimension, settings):
    states = [started(examples, dimension, settings)]
    for _ in range(settings.iterations):
        states.append(improved(states[-1], examples, settings))
        if states[-1].converged(settings):
            break
    return states


def exact(examples, weights, settings):
    """The objective over all labellings of `Listed` examples."""
    gaps = [
        (e.features @ weights + settings.eta * e.losses).min() - (e.features @ weights - e.losses).min()
        for e in examples
    ]
    return regulariser(weights) + settings.cost * float(np.mean(gaps))


TRUTH = np.array([1.0, 0.2, 0.0, 0.5, 0.0, 2.0])


@pytest.fixture(scope="module")
def listed():
    settings = SVMSettings(cost=1000.0, eta=1.0, iterations=12, rounds=20, tolerance=1e-4)
    examples = [Listed(seed, TRUTH) for seed in range(20)]
    return examples, settings, learnt(examples, len(TRUTH), settings)


def test_the_weights_that_made_the_losses_are_recovered(listed):
    _, _, states = listed
    found = states[-1].weights
    assert found @ TRUTH / np.linalg.norm(found) / np.linalg.norm(TRUTH) > 0.98
    assert states[-1].loss < 0.1 * states[0].loss


def test_the_objective_decreases_from_iteration_to_iteration(listed):
    examples, settings, states = listed
    values = [exact(examples, state.weights, settings) for state in states]
    assert len(values) > 3
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(values))
    assert values[-1] < 0.5 * values[0]
    assert all(state.objective <= state.before for state in states)


def test_weights_are_never_negative_and_smoothness_keeps_its_floor(listed):
    _, settings, states = listed
    assert all(state.weights.min() >= 0 and state.weights[-1] >= settings.floor for state in states)


def test_a_programme_ends_at_its_minimum(listed):
    _, settings, states = listed
    pools = states[2].pools
    programme = Programme([pool.least(states[1].weights, settings.eta)[1] for pool in pools], pools, settings)
    found, lower = programme.solve(states[1].weights)
    value = programme.value(found)
    assert lower <= value * (1 + 1e-9)
    random = np.random.default_rng(0)
    lowest = np.append(np.zeros(len(found) - 1), settings.floor)
    for size in 10.0 ** random.uniform(-5, 1, 500):
        other = np.maximum(found + size * random.normal(size=len(found)), lowest)
        assert programme.value(other) >= value * (1 - 1e-5)


def test_few_rounds_of_cutting_planes_come_near_the_minimum():
    # More weights than labellings are met in a round, as where there are several classes and metrics.
    truth = np.random.default_rng(1).uniform(0, 2, 13)
    examples = [Listed(seed, truth, noise=0.05, count=3000) for seed in range(20)]
    settings = SVMSettings(cost=1000.0, eta=1.0, rounds=5)
    first = started(examples, len(truth), settings)
    pools = first.pools
    programme = Programme([pool.least(first.weights, settings.eta)[1] for pool in pools], pools, settings)
    gap = programme.value(first.weights) - programme.solve(first.weights)[1]
    assert improved(first, examples, settings).gap < 0.1 * gap


def test_what_no_example_speaks_about_stays_at_the_mean_of_the_others():
    examples = [Listed(seed, TRUTH) for seed in range(8)]
    for example in examples:
        example.features[:, 1] = 0.0
    settings = SVMSettings(cost=1000.0, eta=1.0, iterations=6)
    weights = learnt(examples, len(TRUTH), settings)[-1].weights
    assert weights[1] == pytest.approx(np.delete(weights, 1).mean(), rel=0.02)


def test_an_iteration_is_read_back_as_it_was_written(listed):
    _, settings, states = listed
    again = Iteration.from_json(states[1].to_json())
    assert np.array_equal(again.weights, states[1].weights)
    assert objective(again.weights, again.pools, settings) == objective(again.weights, states[1].pools, settings)


def test_a_pool_keeps_a_labelling_once():
    pool = Pool()
    for _ in range(2):
        pool.add(Found(np.array([1.0, 2.0]), 0.5))
    assert pool.to_json() == [[1.0, 2.0, 0.5]]


def guided(seed):
    """Labels are told by the first metric in the first class and by the second in the second; the rest is noise."""
    random = np.random.default_rng(seed)
    space, lattice = LabelSpace((0, 1, 1)), (1, 3, 4)
    classes = torch.tensor(random.integers(0, 2, lattice))
    truth = torch.tensor(random.integers(0, len(space), lattice))
    right = torch.nn.functional.one_hot(truth, len(space)).permute(3, 0, 1, 2).reshape(*space.shape, *lattice).float()
    costs = torch.tensor(random.uniform(0, 1, (2, *space.shape, *lattice)), dtype=torch.float32)
    for metric in range(2):
        told = (0.3 * costs[metric] + 0.7) * (1 - right)
        costs[metric] = torch.where(classes == metric, told, costs[metric])
    still = Smoothness(torch.zeros((3, *lattice)), ((1e-3,) * 3,) * 3)
    wanted = torch.tensor([12.0], dtype=torch.float64)
    return Problem(costs, classes, 2, still, space, right[None], torch.ones_like(right)[None], wanted)


class InProcess:
    def __init__(self, problem):
        self.problem = problem

    def infer(self, weights, factor):
        return self.problem.infer(weights, factor)[1]


def test_each_class_learns_the_metric_that_tells_its_labels():
    settings = SVMSettings(cost=1000.0, eta=10.0, iterations=2)
    states = learnt([InProcess(guided(seed)) for seed in range(3)], 5, settings)
    (first, noise), (other, second) = states[-1].weights[:-1].reshape(2, 2)
    assert first > 2 * noise
    assert second > 2 * other
    assert states[-1].loss == 0 < states[0].loss


def test_the_loss_of_a_search_is_that_of_the_label_maps_that_it_lays_on_each_other():
    random = np.random.default_rng(3)
    shape = (10, 12, 14)
    grid = Grid.from_parts(shape)
    maps = [np.zeros(shape, np.uint8) for _ in range(2)]
    for array, shift in zip(maps, (0, 2), strict=True):
        array[3:7, 3 + shift : 8 + shift, 4:10] = 1
        array[3:7, 3 + shift : 6 + shift, 4:7] = 4
    source, target = (Volume(random.random((1, *shape)).astype(np.float32), grid) for _ in range(2))
    labels = [Volume(array[None], grid) for array in maps]
    classes = tuple(TissueClass(str(v), (v,), {"sad": 0.5, "mi": 0.5}) for v in (0, 1, 4))
    settings = MRFSettings(
        metrics={"sad": 0.5, "mi": 0.5}, classes=classes, levels=(LevelSettings(1, 2, 3),), affine=False
    )
    (problem,) = observe(source, labels[0], target, labels[1], Transform.identity(), ("sad", "mi"), settings, ONE)

    def dice(here, there):
        return [2 * np.sum((here == v) & (there == v)) / (np.sum(here == v) + np.sum(there == v)) for v in (1, 4)]

    # The source is read two voxels before: labels of y - 2 everywhere lay the maps on each other.
    for y, there in ((0, maps[0]), (-2, np.roll(maps[0], 2, axis=1)), (1, np.roll(maps[0], -1, axis=1))):
        everywhere = torch.full(problem.classes.shape, ((2 * 5) + y + 2) * 5 + 2)
        assert problem.loss(everywhere) == pytest.approx(1 - np.mean(dice(there, maps[1])), abs=1e-5)


def test_what_nobody_annotated_teaches_no_weight_anything():
    random = np.random.default_rng(3)
    shape = (10, 12, 14)
    grid = Grid.from_parts(shape)
    labels = np.zeros((1, *shape), np.uint8)
    labels[0, 3:7, 3:8, 4:10] = 1
    part = labels.copy()
    part[..., 7:] = 9
    source, target = (Volume(random.random((1, *shape)).astype(np.float32), grid) for _ in range(2))
    classes = tuple(TissueClass(str(v), (v,), {"sad": 0.5, "mi": 0.5}) for v in (0, 1))
    settings = MRFSettings(
        metrics={"sad": 0.5, "mi": 0.5}, classes=classes, levels=(LevelSettings(1, 2, 3),), affine=False
    )
    whole, half = (
        observe(
            source,
            Volume(array, grid),
            target,
            Volume(labels, grid),
            Transform.identity(),
            ("sad", "mi"),
            settings,
            ONE,
        )[0]
        for array in (labels, part)
    )
    assert half.costs.shape == whole.costs.shape
    beyond = half.costs[..., -2:]
    assert not beyond.any()
    assert whole.costs[..., -2:].any()
    near = half.costs[..., :2]
    assert torch.equal(near, whole.costs[..., :2])
    assert np.isclose(_counts(half).sum(), 1)
    assert _counts(half)[0] < _counts(whole)[0]


def test_work_is_kept_for_one_order_of_the_metrics(tmp_path):
    cohort = Cohort.read(write_cohort(tmp_path / "data", range(2)))
    settings = LearnSettings(
        metrics=("mi", "sad"),
        pairs=1,
        judging=0,
        registration={"affine": False, "levels": (LevelSettings(2, 1, 3),)},
        svm=SVMSettings(iterations=1),
    )
    found = [
        learn_metrics(cohort, tmp_path / work, replace(settings, metrics=metrics), execution=ONE)
        for work, metrics in (("a", ("mi", "sad")), ("a", ("sad", "mi")), ("b", ("sad", "mi")))
    ]
    # Of the first nothing is asked: another order of sums may end in another labelling, and so in other weights.
    _, second, fresh = ([dict(one.weights) for one in weights.classes] for weights in found)
    assert second == fresh


def test_pairs_to_judge_by_share_no_subject_with_those_to_learn_from():
    names = [f"s{number}" for number in range(12)]
    learning, judging = draw_pairs(names, 20, 8, np.random.default_rng(0))
    assert len(set(learning)) == 20
    assert len(set(judging)) == 6
    assert not {n for pair in learning for n in pair} & {n for pair in judging for n in pair}
    assert all(source != target for source, target in learning + judging)
    assert learning != draw_pairs(names, 20, 8, np.random.default_rng(1))[0]


def test_of_few_subjects_one_is_spared_whose_pairs_judge():
    for count in range(3, 8):
        learning, judging = draw_pairs([f"s{number}" for number in range(count)], 50, 50, np.random.default_rng(0))
        (spared,) = set.intersection(*(set(pair) for pair in judging))
        assert len(set(judging)) == 2 * (count - 1)
        assert len(set(learning)) == (count - 1) * (count - 2)
        assert not any(spared in pair for pair in learning)
    assert draw_pairs(["a", "b"], 20, 8, np.random.default_rng(0))[1] == []
    assert len(draw_pairs(["a", "b", "c", "d"], 20, 0, np.random.default_rng(0))[0]) == 12


def test_labels_that_no_class_names_are_one_class():
    labels = {"background": 0, "left": 1, "right": 2, "bone": 3}
    assert label_classes(labels) == {"background": [0], "left": [1], "right": [2], "bone": [3]}
    assert label_classes(labels, {"lungs": [1, 2]}) == {"other": [0, 3], "lungs": [1, 2]}


@pytest.mark.parametrize("groups", [{"a": [9]}, {"a": [1], "b": [1]}, {"other": [1]}])
def test_classes_that_cannot_be_told_apart_are_refused(groups):
    with pytest.raises(InputError, match="classes cannot be used"):
        label_classes({"background": 0, "one": 1}, groups)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ("mi",)},
        {"metrics": ("mi", "mi")},
        {"metrics": ("mi", "ssd")},
        {"pairs": 0},
        {"registration": {"metrics": {"mi": 1}}},
        {"registration": {"truncation": 1.0}},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError):
        LearnSettings(**wrong)


def test_too_few_pairs_are_told_by_the_option_that_mends_it():
    with pytest.raises(InputError, match=r"no pair to learn from; expected 1 pair or more; found 0; .*--pairs"):
        LearnSettings(pairs=0)
    with pytest.raises(InputError, match=r"judging pairs must not be negative; found -1; .*--judging-pairs"):
        LearnSettings(judging=-1)


def test_a_cost_beyond_what_the_solver_resolves_is_refused():
    with pytest.raises(InputError, match="100000"):
        replace(SVMSettings(), cost=1e7)


def test_one_subject_makes_no_pair():
    with pytest.raises(CohortError, match="two subjects"):
        draw_pairs(["a"], 20, 8, np.random.default_rng(0))
