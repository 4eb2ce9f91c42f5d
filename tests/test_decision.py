"""Which class probabilities of nested regions say, against rules written out for each voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from atlasnet.prediction.decision import Decision
from atlasnet.prediction.fusion import fuse_models, fuse_slab

TUMOUR = ((1, 2, 3), (2, 3), (3,))


def probabilities(seed: int, classes: int = 4, shape: tuple[int, ...] = (5, 6, 7)) -> Tensor:
    return torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed)).mul(1.5).softmax(0)


def outside_in(p: np.ndarray) -> int:
    """First whether a voxel is tumour, then whether it is core, then which part of it."""
    if p[0] >= p[1] + p[2] + p[3]:
        return 0
    if p[1] >= p[2] + p[3]:
        return 1
    return 2 if p[2] >= p[3] else 3


def test_nested_regions_are_chosen_from_the_outside_in() -> None:
    scores = probabilities(0)
    found = Decision.of(4, TUMOUR).of_highest(scores)
    expected = np.apply_along_axis(outside_in, 0, scores.numpy())
    np.testing.assert_array_equal(found.numpy(), expected)
    assert (found != scores.argmax(0)).sum() > 5  # where the tumour is likely, and none of its tissues likeliest


@pytest.mark.parametrize("regions", [(), ((1,), (2,), (3,)), ((1, 2), (2, 3))])
def test_without_an_outside_and_an_inside_the_likeliest_class_is_chosen(regions: tuple[tuple[int, ...], ...]) -> None:
    scores = probabilities(1)
    assert torch.equal(Decision.of(4, regions).of_highest(scores).long(), scores.argmax(0))


def test_regions_beside_each_other_and_single_labels_are_chosen_among_alike() -> None:
    decision = Decision.of(6, [(1, 4), (2, 3)])
    for seed in range(3):
        scores = probabilities(seed, 6)
        sums = np.stack([scores[0], scores[1] + scores[4], scores[2] + scores[3], scores[5]])
        first, second = np.where(scores[1] >= scores[4], 1, 4), np.where(scores[2] >= scores[3], 2, 3)
        expected = np.choose(sums.argmax(0), [0 * first, first, second, 0 * first + 5])
        np.testing.assert_array_equal(decision.of_highest(scores).numpy(), expected)


def test_of_a_region_and_a_label_that_are_as_likely_the_one_with_the_lowest_class_is_chosen() -> None:
    scores = torch.tensor([0.2, 0.25, 0.15, 0.4]).reshape(4, 1, 1, 1)
    assert Decision.of(4, [(1, 2)]).of_highest(scores).item() == 1
    assert Decision.of(4, [(2, 3)]).of_highest(scores[[0, 3, 1, 2]]).item() == 1


def test_votes_for_the_parts_of_a_region_are_votes_for_it() -> None:
    def sure_of(label: int) -> Tensor:
        return torch.full((4, 1, 1, 1), 0.1).index_fill_(0, torch.tensor(label), 0.7)

    here = torch.ones(1, 1, 1, dtype=torch.bool)
    said = [(sure_of(label), here, 1.0) for label in (0, 0, 1, 3)]
    assert fuse_slab(said, "vote").labels.item() == 0
    tumour = Decision.of(4, TUMOUR)
    # Two against two: the mean probability of the tumour, .55, decides; within it one each, and so does it again.
    assert fuse_slab(said, "vote", decision=tumour).labels.item() == 3
    slabs = [fuse_slab([one], "mean", decision=tumour) for one in said]
    assert fuse_models(slabs, tumour).labels.item() == fuse_slab(said, "mean", decision=tumour).labels.item()


def test_what_no_atlas_reaches_is_background() -> None:
    absent = torch.zeros(5, 6, 7, dtype=torch.bool)
    fused = fuse_slab([(probabilities(2), absent, 1.0)], "mean", decision=Decision.of(4, TUMOUR))
    assert not fused.labels.any()
