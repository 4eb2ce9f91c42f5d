"""STAPLE against SimpleITK's filter, against raters of known error, and by what must not change it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from atlasnet.execution import Stages
from atlasnet.prediction.answers import Answer, Answers
from atlasnet.prediction.record import atlas_records
from atlasnet.prediction.staple import Patterns, Performance, estimate
from atlasnet.transform import Transform
from atlasnet.volume import Grid, canonical

SHAPE, CLASSES = (16, 24, 24), 3


def raters(seed: int, atlases: int = 5) -> tuple[list[NDArray[np.int16]], NDArray[np.float64]]:
    """Choices of atlases that err at random, and how: (atlases, chosen, true)."""
    random = np.random.default_rng(seed)
    truth = random.choice(CLASSES, p=(0.5, 0.3, 0.2), size=SHAPE)
    right = random.uniform(0.6, 0.9, (atlases, 1, CLASSES))
    errors = np.swapaxes(random.dirichlet(np.ones(CLASSES), (atlases, CLASSES)), 1, 2)
    confusion = right * np.eye(CLASSES) + (1 - right) * errors
    drawn = random.random((atlases, *SHAPE))
    choices = [(u > np.cumsum(c, 0)[:-1, truth]).sum(0).astype(np.int16) for u, c in zip(drawn, confusion, strict=True)]
    return choices, confusion


def columns(choices: list[NDArray[np.int16]]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """The patterns with their counts, counted by Python."""
    counted = Counter(zip(*[choice.ravel().tolist() for choice in choices], strict=True))
    return np.array(list(counted), dtype=np.int16).T, np.array(list(counted.values()))


def torch_slabs(choices: list[NDArray[np.int16]], thickness: int) -> Patterns:
    patterns = Patterns(len(choices))
    for z in range(0, SHAPE[0], thickness):
        patterns.add([torch.from_numpy(choice[z : z + thickness]) for choice in choices])
    return patterns


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_coverage_gives_what_simpleitk_gives(seed: int) -> None:
    choices, _ = raters(seed)
    staple = sitk.MultiLabelSTAPLEImageFilter()
    staple.SetTerminationUpdateThreshold(1e-7)
    staple.Execute([sitk.GetImageFromArray(choice.astype(np.uint8)) for choice in choices])
    found = estimate(*columns(choices), CLASSES)
    for atlas, confusion in enumerate(found.confusion):
        # the filter has another row, for voxels without a decision
        expected = np.reshape(staple.GetConfusionMatrix(atlas), (CLASSES + 1, CLASSES))[:CLASSES]
        np.testing.assert_allclose(confusion, expected, atol=1e-5)
        assert found.sensitivity(atlas, 2) == pytest.approx(expected[2, 2], abs=1e-5)


def test_known_errors_are_found_though_each_atlas_reaches_a_part_only() -> None:
    choices, confusion = raters(3, atlases=6)
    random = np.random.default_rng(4)
    for choice in choices:
        choice[random.random(SHAPE) < 0.4] = -1
    choices[0][: SHAPE[0] // 2] = -1
    patterns, counts = columns(choices)
    reached = (patterns >= 0).any(0)
    found = estimate(patterns[:, reached], counts[reached], CLASSES)
    # some thousand voxels of each class: standard errors below 0.02
    np.testing.assert_allclose(found.confusion, confusion, atol=0.06)
    np.testing.assert_allclose(found.prior, [0.5, 0.3, 0.2], atol=0.1)


def test_an_atlas_that_reaches_nothing_changes_nothing() -> None:
    choices, _ = raters(5, atlases=3)
    absent = np.full(SHAPE, -1, dtype=np.int16)
    found = estimate(*columns([choices[0], absent, *choices[1:]]), CLASSES)
    expected = estimate(*columns(choices), CLASSES)
    np.testing.assert_allclose(found.confusion[[0, 2, 3]], expected.confusion, atol=1e-9)
    assert found.sensitivity(1, 0) is None


@pytest.mark.parametrize("thickness", [1, 5, 16])
def test_slabs_count_what_the_volume_holds_where_an_atlas_sees_a_structure(thickness: int) -> None:
    choices, _ = raters(6)
    choices[1][:, :4] = -1
    patterns, counts = columns(choices)
    seen = (patterns > 0).any(0)
    found = torch_slabs(choices, thickness).performance(CLASSES)
    expected = estimate(patterns[:, seen], counts[seen], CLASSES)
    np.testing.assert_allclose(found.confusion, expected.confusion, atol=1e-9)
    np.testing.assert_allclose(found.prior, expected.prior, atol=1e-12)


def test_empty_space_around_the_structures_changes_nothing() -> None:
    choices, _ = raters(7)
    patterns = torch_slabs(choices, 4)
    before = patterns.performance(CLASSES)
    patterns.add([torch.zeros((50, 40, 30), dtype=torch.int16)] * len(choices))
    np.testing.assert_array_equal(patterns.performance(CLASSES).confusion, before.confusion)


def test_nothing_is_known_where_no_atlas_sees_a_structure() -> None:
    patterns = Patterns(2)
    patterns.add([torch.zeros(SHAPE, dtype=torch.int16), torch.full(SHAPE, -1, dtype=torch.int16)])
    found = patterns.performance(CLASSES)
    assert not found.confusion.any()
    assert not found.prior.any()


def test_an_atlas_that_was_not_asked_has_no_sensitivity_and_takes_none_from_others() -> None:
    grid = Grid.from_parts((2, 2, 2), (1.0, 1.0, 1.0))
    _, orientation = canonical(grid)
    said = [Answer(torch.zeros(2, 2, 2, 2), grid, Transform.identity(), 0.5) if asked else None for asked in (0, 1, 1)]
    atlases = tuple((answer, {"name": name}) for answer, name in zip(said, "abc", strict=True))
    found = Performance(np.array([[[0.9, 0.2], [0.1, 0.8]], [[0.7, 0.4], [0.3, 0.6]]]), np.array([0.5, 0.5]))
    answers = Answers(image=grid, source=grid, orientation=orientation, atlases=atlases, stages=Stages())
    assert atlas_records(answers, found, ["background", "lung"]) == [
        {"name": "a"},
        {"name": "b", "sensitivity": {"lung": 0.8}},
        {"name": "c", "sensitivity": {"lung": 0.6}},
    ]
