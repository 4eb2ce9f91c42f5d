"""Loss and class balance, against hand-made numbers, torch and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from atlasnet.training.loss import UNCOUNTED, median_frequency_weights, segmentation_loss


def test_median_frequency_balancing_of_a_worked_example() -> None:
    # Class 0: 90 of 100 + 50 of 100; class 1: 50 of the second slice's 100; class 2: 10 of the first's 100.
    counts = np.array([[90, 0, 10], [50, 50, 0]])
    frequency = np.array([140 / 200, 50 / 100, 10 / 100])
    np.testing.assert_allclose(median_frequency_weights(counts), 0.5 / frequency, rtol=1e-6)


def test_a_class_that_never_occurs_has_no_weight() -> None:
    assert median_frequency_weights(np.array([[30, 0, 10]])).tolist() == pytest.approx([0.5 / 0.75, 0, 0.5 / 0.25])


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 7, generator=generator)
    target = torch.randint(-1, 4, (3, 6, 7), generator=generator)
    return logits, target


def test_cross_entropy_equals_that_of_torch_with_ignored_voxels(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    weights = torch.tensor([0.2, 1.0, 3.0, 0.5])
    expected = F.cross_entropy(logits, target, weights, ignore_index=UNCOUNTED)
    torch.testing.assert_close(segmentation_loss(logits, target, weights, dice=False), expected)


def test_the_dice_term_equals_that_of_monai(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    target = target.clamp_min(0)
    added = segmentation_loss(logits, target, None, dice=True) - segmentation_loss(logits, target, None, dice=False)
    loss = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    torch.testing.assert_close(added, loss(logits, target[:, None]))


@pytest.mark.parametrize("dice", [False, True])
def test_voxels_that_do_not_count_get_no_gradient(case: tuple[torch.Tensor, torch.Tensor], dice: bool) -> None:
    logits, target = case
    logits.requires_grad_()
    segmentation_loss(logits, target, None, dice=dice).backward()
    assert logits.grad is not None
    gradient = logits.grad.abs().sum(1)
    assert (gradient[target == UNCOUNTED] == 0).all()
    assert (gradient[target != UNCOUNTED] > 0).all()


@pytest.mark.parametrize("dice", [False, True])
def test_nothing_counted_gives_a_finite_loss(dice: bool) -> None:
    loss = segmentation_loss(torch.randn(1, 2, 4, 4), torch.full((1, 4, 4), UNCOUNTED), None, dice=dice)
    assert torch.isfinite(loss)
