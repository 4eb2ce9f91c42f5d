"""Loss and class balance, against hand-made numbers, torch and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from atlasnet.errors import InputError
from atlasnet.training.loss import EACH_CLASS, UNCOUNTED, Objective, median_frequency_weights, segmentation_loss

LABELS = {"background": 0, "oedema": 1, "necrosis": 2, "enhancing": 5}
VALUES = (0, 1, 2, 5)
REGIONS = {"whole": (1, 2, 5), "core": (2, 5), "enhancing": 5}


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


def dice_alone(logits: torch.Tensor, target: torch.Tensor, objective: Objective) -> torch.Tensor:
    both = segmentation_loss(logits, target, None, dice=True, objective=objective)
    return both - segmentation_loss(logits, target, None, dice=False)


def test_the_dice_of_regions_is_monais_of_their_summed_probabilities(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    target = target.clamp_min(0)
    members = [(1, 2, 3), (2, 3), (3,)]
    probability = torch.stack([logits.softmax(1)[:, list(classes)].sum(1) for classes in members], 1)
    truth = torch.stack([torch.isin(target, torch.tensor(classes)).float() for classes in members], 1)
    expected = DiceLoss(batch=True, smooth_nr=1e-5, smooth_dr=1e-5, reduction="none")(probability, truth).flatten()
    objective = Objective.of(LABELS, REGIONS, VALUES, {})
    torch.testing.assert_close(dice_alone(logits, target, objective), expected.mean())
    weighted = Objective.of(LABELS, REGIONS, VALUES, {"core": 3.0})
    shares = torch.tensor([0.2, 0.6, 0.2])
    torch.testing.assert_close(dice_alone(logits, target, weighted), (expected * shares).sum())


def test_the_weight_of_a_label_counts_in_the_cross_entropy_of_its_voxels(
    case: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, target = case
    objective = Objective.of(LABELS, REGIONS, VALUES, {"enhancing": 4.0, "background": 0.5, "whole": 2.0})
    assert objective.dice_weights == (2.0, 1.0, 4.0)
    weights = objective.weights(np.array([[90, 4, 3, 3]]), balancing=False)
    assert weights is not None
    assert weights.tolist() == [0.5, 1.0, 1.0, 4.0]
    expected = F.cross_entropy(logits, target, torch.from_numpy(weights), ignore_index=UNCOUNTED)
    found = segmentation_loss(logits, target, torch.from_numpy(weights), dice=False, objective=objective)
    torch.testing.assert_close(found, expected)
    balanced = objective.weights(np.array([[90, 4, 3, 3]]), balancing=True)
    np.testing.assert_allclose(balanced, weights * median_frequency_weights(np.array([[90, 4, 3, 3]])))


def test_labels_that_count_alike_are_what_is_learnt_by_default() -> None:
    structures = {"oedema": 1, "necrosis": 2, "enhancing": 5}
    assert Objective.of(LABELS, structures, VALUES, {}) == EACH_CLASS
    assert Objective.of(LABELS, structures, VALUES, {"oedema": 1.0}) == EACH_CLASS
    assert EACH_CLASS.identity() == {}


def test_every_class_as_a_structure_of_its_own_is_learnt_as_by_default(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    spelt = Objective(structures=((1,), (2,), (3,)))
    torch.testing.assert_close(dice_alone(*case, spelt), dice_alone(*case, EACH_CLASS))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lesion": 2.0}, "nothing of this name.*background, oedema, necrosis, enhancing, whole, core.*lesion"),
        ({"core": 0.0}, "must be a positive number.*0.0"),
        ({"core": float("nan")}, "positive"),
        ({"oedema": float("inf")}, "positive"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Objective.of(LABELS, REGIONS, VALUES, weights)


def marginal_loss(logits: np.ndarray, target: np.ndarray, shown: np.ndarray, structures: list[list[int]]) -> float:
    """Cross-entropy and Dice voxel by voxel, from their definitions."""
    odds = np.exp(logits.astype(np.float64))
    probability = odds / odds.sum(1, keepdims=True)
    entropy, common, size = [], np.zeros(len(structures)), np.zeros(len(structures))
    for b, *place in np.argwhere(target != UNCOUNTED):
        here, true = probability[(b, slice(None), *place)], target[(b, *place)]
        entropy.append(-np.log(here[shown[b] == true].sum()))
        for number, classes in enumerate(structures):
            if all((index in classes) == (stands in classes) for index, stands in enumerate(shown[b])):
                common[number] += here[classes].sum() * (true in classes)
                size[number] += here[classes].sum() + (true in classes)
    seen = size > 0
    return float(np.mean(entropy) + 1 - np.mean(2 * common[seen] / size[seen]))


@pytest.mark.parametrize("structures", [[[1], [2], [3]], [[1, 2, 3], [2, 3], [3]]])
def test_classes_that_nobody_annotated_count_with_what_stands_for_them(
    case: tuple[torch.Tensor, torch.Tensor], structures: list[list[int]]
) -> None:
    logits, target = case
    # In the background there may be 2; parts of 1 may be 2, and the background 3; all is annotated.
    shown = torch.tensor([[0, 1, 0, 3], [0, 1, 1, 0], [0, 1, 2, 3]])
    for sample, stands in enumerate(shown):
        counted = target[sample] != UNCOUNTED
        target[sample][counted] = stands[target[sample][counted]]
    objective = Objective(() if len(structures[0]) == 1 else tuple(map(tuple, structures)))
    found = segmentation_loss(logits, target, None, dice=True, objective=objective, shown=shown)
    assert float(found) == pytest.approx(marginal_loss(*(x.numpy() for x in (logits, target, shown)), structures))
    # Without the last sample no Dice is known of some structures, and they are in no mean.
    first = segmentation_loss(logits[:2], target[:2], None, dice=True, objective=objective, shown=shown[:2])
    assert float(first) == pytest.approx(marginal_loss(*(x[:2].numpy() for x in (logits, target, shown)), structures))


def test_what_the_network_takes_for_a_hidden_class_in_the_background_costs_nothing() -> None:
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    with torch.no_grad():
        logits[:, 2] = 20.0
    shown = torch.tensor([[0, 1, 0], [0, 1, 2]])
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    segmentation_loss(logits, target, None, dice=False, shown=shown).backward()
    assert logits.grad is not None
    assert float(logits.grad[0].abs().max()) < 1e-6
    assert float(logits.grad[1].abs().max()) > 1e-3


def test_a_class_that_stands_for_another_may_be_hidden_elsewhere() -> None:
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.stack([torch.ones(4, 4, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64)])
    shown = torch.tensor([[0, 1, 1], [0, 0, 2]])
    segmentation_loss(logits, target, None, dice=True, shown=shown).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_all_classes_annotated_in_all_samples_is_the_loss_without(case: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target = case
    themselves = torch.arange(4).repeat(3, 1)
    weighted = Objective(dice_weights=(1.0, 2.0, 0.5))
    for objective in (EACH_CLASS, weighted):
        expected = segmentation_loss(logits, target, None, dice=True, objective=objective)
        torch.testing.assert_close(
            segmentation_loss(logits, target, None, dice=True, objective=objective, shown=themselves), expected
        )


def test_a_class_of_many_that_is_hidden_is_kept_in_memory_alone() -> None:
    logits, target = torch.randn(2, 40, 16, 16, requires_grad=True), torch.zeros(2, 16, 16, dtype=torch.int64)
    shown = torch.arange(40).repeat(2, 1)
    shown[1, 7] = 0
    found = []
    for own in (None, shown):
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = segmentation_loss(logits, target, None, dice=True, shown=own)
        found.append(sum(kept.values()))
        del loss
    assert found[1] < 1.1 * found[0]
