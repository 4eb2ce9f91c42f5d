"""Fusion of atlases against loops over voxels written out in NumPy, SciPy and MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from atlasnet.cli.options import FUSIONS
from atlasnet.errors import InputError, ModelError
from atlasnet.prediction.decision import Decision
from atlasnet.prediction.fusion import (
    BY_VOXEL,
    METHODS,
    Agreement,
    FusedSlab,
    SlabFusion,
    fuse_models,
    fuse_slab,
    own_choice,
)
from atlasnet.prediction.staple import Patterns, Performance

Atlases = list[tuple[Tensor, Tensor, float | Tensor]]


def column(*probabilities: float) -> Tensor:
    """(classes, 1, 1, 1) probabilities of a single voxel."""
    return torch.tensor(probabilities, dtype=torch.float32).reshape(-1, 1, 1, 1)


HERE, ABSENT = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.bool)


def performance_of(atlases: Atlases) -> Performance:
    patterns = Patterns(len(atlases))
    patterns.add([own_choice(probabilities, covered) for probabilities, covered, _ in atlases])
    return patterns.performance(len(atlases[0][0]))


def fuse(atlases: Atlases, method: str) -> FusedSlab:
    return fuse_slab(iter(atlases), method, performance_of(atlases) if method == "staple" else None)


def fuse_voxel(method: str, *atlases: Tensor, weights: tuple[float, ...] | None = None) -> FusedSlab:
    return fuse(list(zip(atlases, [HERE] * len(atlases), weights or (1.0,) * len(atlases), strict=True)), method)


def random_atlases(seed: int, atlases: int = 4, classes: int = 3, shape: tuple[int, ...] = (5, 6, 7)) -> Atlases:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(classes, *shape, generator=generator).mul(2).softmax(0),
            torch.rand(shape, generator=generator) > 0.3,
            float(torch.rand(1, generator=generator)),
        )
        for _ in range(atlases)
    ]


def with_local_weights(atlases: Atlases, seed: int) -> Atlases:
    generator = torch.Generator().manual_seed(seed)
    return [(p, c, 10 ** torch.randn(c.shape, generator=generator)) for p, c, _ in atlases]


def chosen_by_loop(atlases: Atlases, method: str, performance: Performance, voxel: tuple[int, ...]) -> int:
    there = [(p[:, *voxel].double().numpy(), w) for p, covered, w in atlases if covered[voxel]]
    if not there:
        return 0
    mean = np.mean([p for p, _ in there], axis=0)
    if method == "mean":
        return int(mean.argmax())
    if method in BY_VOXEL:
        return int(sum(p * float(w[voxel]) for p, w in there).argmax())
    if method == "staple":
        if all(p.argmax() == 0 for p, _ in there):
            return 0
        likelihood = performance.prior.copy()
        for (p, covered, _), confusion in zip(atlases, performance.confusion, strict=True):
            if covered[voxel]:
                likelihood *= confusion[int(p[:, *voxel].argmax())]
        return int(likelihood.argmax())
    votes = np.zeros(len(mean))
    for p, weight in there:
        votes[p.argmax()] += weight if method == "weighted" else 1
    return int(max(range(len(mean)), key=lambda c: (votes[c], mean[c])))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_equals_a_loop_over_the_voxels(method: str) -> None:
    atlases = random_atlases(1)
    if method in BY_VOXEL:
        atlases = with_local_weights(atlases, 2)
    fused, performance = fuse(atlases, method), performance_of(atlases)
    for voxel in np.ndindex(5, 6, 7):
        assert int(fused.labels[voxel]) == chosen_by_loop(atlases, method, performance, voxel)


def test_a_vote_can_differ_from_the_mean() -> None:
    atlases = column(0.05, 0.95), column(0.55, 0.45), column(0.55, 0.45)
    assert fuse_voxel("mean", *atlases).labels.item() == 1
    assert fuse_voxel("vote", *atlases).labels.item() == 0


def test_a_tied_vote_goes_to_the_higher_mean_probability() -> None:
    atlases = column(0.1, 0.5, 0.4), column(0.1, 0.5, 0.4), column(0.1, 0.2, 0.7), column(0.1, 0.2, 0.7)
    assert fuse_voxel("vote", *atlases).labels.item() == 2


def test_the_higher_mean_of_a_class_without_votes_does_not_win_a_tie() -> None:
    atlases = column(0.5, 0.08, 0.42), column(0.08, 0.5, 0.42)
    assert fuse_voxel("vote", *atlases).labels.item() == 0


def test_a_vote_tied_in_the_mean_as_well_goes_to_the_lower_class() -> None:
    high, low = column(0.0, 0.4, 0.6), column(0.0, 0.6, 0.4)
    for order in ([high, low] * 3, [low, high] * 3, [high] * 3 + [low] * 3):
        assert fuse_voxel("vote", *order).labels.item() == 1


def test_a_weighted_vote_follows_the_better_registrations() -> None:
    atlases = column(0.4, 0.6), column(0.6, 0.4), column(0.6, 0.4)
    assert fuse_voxel("weighted", *atlases, weights=(0.9, 0.3, 0.3)).labels.item() == 1
    assert fuse_voxel("weighted", *atlases, weights=(0.5, 0.3, 0.3)).labels.item() == 0


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e5])
def test_weights_whose_sums_differ_by_rounding_tie_and_no_others(size: float) -> None:
    atlases = column(0.1, 0.9), column(0.6, 0.4), column(0.6, 0.4), column(0.6, 0.4)
    for last, label in ((0.1, 1), (0.1001, 0)):
        weights = 0.3 * size, 0.1 * size, 0.1 * size, last * size
        assert fuse_voxel("weighted", *atlases, weights=weights).labels.item() == label


@given(st.floats(0.01, 100))
@settings(max_examples=20, deadline=None)
def test_equal_weights_vote_like_no_weights(weight: float) -> None:
    atlases = [(p, c, weight) for p, c, _ in random_atlases(2)]
    assert torch.equal(fuse_slab(atlases, "weighted").labels, fuse_slab(atlases, "vote").labels)


def test_an_atlas_has_no_say_where_it_does_not_reach() -> None:
    fused = fuse_slab([(column(0.3, 0.7), HERE, 1.0), (column(1.0, 0.0), ABSENT, 1.0)], "mean")
    assert (fused.labels.item(), fused.reached.item(), fused.share.item()) == (1, 1, 1.0)
    assert fused.probabilities.flatten().tolist() == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("method", METHODS)
def test_a_voxel_that_no_atlas_reaches_is_background_and_marked(method: str) -> None:
    fused = fuse([(column(0.0, 1.0), ABSENT, 1.0)] * 2, method)
    assert fused.labels.item() == 0
    assert fused.probabilities.flatten().tolist() == [1.0, 0.0]
    assert (fused.share.item(), fused.entropy.item(), fused.reached.item()) == (0.0, 1.0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_are_the_mean_over_the_atlases_that_reach(method: str) -> None:
    atlases = random_atlases(3)
    fused = fuse(atlases, method)
    stacked = np.ma.stack(
        [np.ma.array(p.double().numpy(), mask=np.repeat(~c.numpy()[None], 3, 0)) for p, c, _ in atlases]
    )
    expected = stacked.mean(0)
    reached = fused.reached.numpy() > 0
    np.testing.assert_allclose(fused.probabilities.numpy()[:, reached], expected.data[:, reached], atol=1e-6)


def test_entropy_is_scipys_of_the_mean_over_its_maximum() -> None:
    fused = fuse_slab(random_atlases(4), "mean")
    reached = fused.reached.numpy() > 0
    expected = scipy.stats.entropy(fused.probabilities.double().numpy(), axis=0) / math.log(3)
    np.testing.assert_allclose(fused.entropy.numpy()[reached], expected[reached], atol=1e-5)


def test_share_is_the_fraction_of_reaching_atlases_that_chose_the_result() -> None:
    atlases = random_atlases(5)
    fused = fuse_slab(atlases, "mean")
    for voxel in np.ndindex(5, 6, 7):
        choices = [int(p[:, *voxel].argmax()) for p, c, _ in atlases if c[voxel]]
        expected = choices.count(int(fused.labels[voxel])) / len(choices) if choices else 0.0
        assert fused.share[voxel].item() == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_slabs_give_what_the_whole_volume_gives(method: str) -> None:
    atlases = random_atlases(6)
    performance = performance_of(atlases)
    whole = fuse_slab(atlases, method, performance)
    for start in range(5):
        slab = [(p[:, start : start + 1], c[start : start + 1], w) for p, c, w in atlases]
        part = fuse_slab(slab, method, performance)
        assert torch.equal(part.labels, whole.labels[start : start + 1])
        assert torch.equal(part.probabilities, whole.probabilities[:, start : start + 1])


def test_one_atlas_is_its_own_arg_max() -> None:
    probabilities, covered, weight = random_atlases(7)[0]
    for method in METHODS:
        fused = fuse([(probabilities, covered, weight)], method)
        assert torch.equal(fused.labels, torch.where(covered, probabilities.argmax(0), 0))


def test_one_atlas_is_its_own_choice_where_classes_form_regions_too() -> None:
    fused = fuse_slab([(column(0.4, 0.3, 0.3), HERE, 1.0)], decision=Decision.of(3, [(1, 2)]))
    assert (fused.labels.item(), fused.share.item()) == (1, 1.0)


def test_what_was_fused_stays_when_more_is_added() -> None:
    (one, here, _), (other, there, _) = random_atlases(17)[:2]
    fusion = SlabFusion(3, here.shape)
    fusion.add(one, here)
    first, labels, reached = fusion.result(), fuse_slab([(one, here, 1.0)]).labels, here.short()
    fusion.add(other, there)
    assert torch.equal(first.labels, labels)
    assert torch.equal(first.reached, reached)
    assert len(first.choices) == 1
    assert torch.equal(fusion.result().labels, fuse_slab([(one, here, 1.0), (other, there, 1.0)]).labels)


@pytest.mark.parametrize("method", ["mean", "vote", "weighted", "local", "learnt"])
def test_one_atlas_agrees_with_itself_where_its_classes_differ_by_rounding(method: str) -> None:
    fused = fuse_voxel(method, column(0.5, 0.5 + 3e-7))
    assert int(fused.labels) == 0
    assert float(fused.share) == 1


def test_probabilities_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        fuse_voxel("mean", column(float("nan"), 0.5))


def test_a_local_weight_moves_the_mean_where_it_lies() -> None:
    fits, doubts = column(0.4, 0.6), column(0.7, 0.3)
    both = torch.cat([fits, fits], 1), torch.cat([doubts, doubts], 1)
    reach = HERE.expand(2, 1, 1)
    weights = torch.tensor([4.0, 1.0]).reshape(2, 1, 1), torch.tensor([1.0, 1.0]).reshape(2, 1, 1)
    fused = fuse_slab([(p, reach, w) for p, w in zip(both, weights, strict=True)], "local")
    assert fused.labels.flatten().tolist() == [1, 0]


def test_staple_believes_the_atlas_that_others_confirm() -> None:
    # two good atlases and three that see a structure everywhere: a vote is lost to them
    truth = torch.arange(1000).reshape(10, 10, 10) % 4 == 0
    generator = torch.Generator().manual_seed(0)
    masks = [truth ^ (torch.rand(truth.shape, generator=generator) < 0.03) for _ in range(2)]
    masks += [torch.rand(truth.shape, generator=generator) < 0.9 for _ in range(3)]
    atlases = [(torch.stack([~m, m]).float(), torch.ones_like(m), 1.0) for m in masks]
    wrong = {method: int((fuse(atlases, method).labels.bool() != truth).sum()) for method in ("vote", "staple")}
    assert wrong["vote"] > 400
    assert wrong["staple"] < 60


def test_staple_chooses_among_single_classes_where_they_form_regions() -> None:
    regions, atlases = Decision.of(3, [(1, 2)]), random_atlases(15)
    patterns = Patterns(len(atlases))
    patterns.add([own_choice(p, covered, regions) for p, covered, _ in atlases])
    performance = patterns.performance(3)
    fused = fuse_slab(atlases, "staple", performance, regions)
    for voxel in np.ndindex(5, 6, 7):
        choices = [int(choice[voxel]) for choice in fused.choices]
        if max(choices) <= 0:
            assert fused.labels[voxel] == 0
            continue
        likelihood = performance.prior * np.prod(
            [confusion[c] for confusion, c in zip(performance.confusion, choices, strict=True) if c >= 0], axis=0
        )
        assert int(fused.labels[voxel]) == likelihood.argmax()


def test_a_model_has_no_say_where_none_of_its_atlases_reaches() -> None:
    here = fuse_slab([(column(0.3, 0.7), HERE, 1.0)])
    elsewhere = fuse_slab([(column(0.3, 0.7), ABSENT, 1.0)])
    fused = fuse_models([here, elsewhere])
    assert (fused.labels.item(), fused.reached.item(), fused.share.item()) == (1, 1, 1.0)
    assert fused.probabilities.flatten().tolist() == pytest.approx([0.3, 0.7])


def test_models_count_alike_and_the_share_is_that_of_all_their_atlases() -> None:
    one = fuse_slab([(column(0.1, 0.9), HERE, 1.0)])
    three = fuse_slab([(column(p, 1 - p), HERE, 1.0) for p in (0.6, 0.7, 0.8)])
    fused = fuse_models([one, three])
    assert fused.probabilities.flatten().tolist() == pytest.approx([0.4, 0.6])
    assert (fused.labels.item(), fused.reached.item(), fused.share.item()) == (1, 4, 0.25)


def test_a_single_model_says_what_its_fusion_chose() -> None:
    slab = fuse_voxel("vote", column(0.05, 0.95), column(0.55, 0.45), column(0.55, 0.45))
    assert fuse_models([slab]).labels.item() == slab.labels.item() == 0


def test_an_atlas_of_no_weight_has_no_vote() -> None:
    assert fuse_voxel("weighted", column(0.9, 0.1), column(0.4, 0.6), weights=(0.0, 0.1)).labels.item() == 1


def test_staple_without_a_performance_of_every_atlas_is_refused() -> None:
    atlases = random_atlases(12)
    with pytest.raises(InputError, match="needs the performance"):
        fuse_slab(atlases, "staple")
    with pytest.raises(InputError, match="has no performance"):
        fuse_slab(atlases, "staple", performance_of(atlases[:2]))


def test_the_command_line_names_every_method() -> None:
    assert FUSIONS == METHODS


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="weight"):
        fuse_voxel("weighted", column(0.5, 0.5), weights=(weight,))


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="mean, vote, weighted, local, learnt, staple"):
        SlabFusion(2, (1, 1, 1), "median")


def test_no_atlas_is_refused() -> None:
    with pytest.raises(InputError, match="no atlas"):
        fuse_slab([])


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        fuse_voxel("mean", column(0.5, 0.5), column(0.2, 0.3, 0.5))
    with pytest.raises(InputError, match="do not fit"):
        fuse_slab([(column(0.5, 0.5), HERE, torch.ones(2, 1, 1))], "local")


def agreement_of(atlases: Atlases, slab: int, classes: int = 3) -> Agreement:
    agreement = Agreement(len(atlases), dict(zip("ab", ((1,), (2,)), strict=True)) if classes == 3 else {"a": (1,)})
    for start in range(0, atlases[0][1].shape[0], slab):
        part = slice(start, start + slab)
        agreement.add(fuse_slab([(p[:, part], c[part], w) for p, c, w in atlases], "vote"))
    return agreement


def masked_dice(first: Tensor, second: Tensor, where: Tensor, label: int) -> float:
    a, b = (first == label)[where].numpy(), (second == label)[where].numpy()
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_agreement_is_the_mean_pairwise_dice_over_voxels_that_both_atlases_reach() -> None:
    atlases = random_atlases(8)
    summary = agreement_of(atlases, slab=2).summary()
    maps = [p.argmax(0) for p, _, _ in atlases]
    for label, name in ((1, "a"), (2, "b")):
        pairs = [
            masked_dice(maps[i], maps[j], atlases[i][1] & atlases[j][1], label) for i in range(4) for j in range(i)
        ]
        assert summary["pairwise_dice"][name] == pytest.approx(np.mean(pairs))


def test_agreement_about_a_region_is_that_of_all_its_labels_as_one() -> None:
    atlases = random_atlases(16, atlases=2, classes=5)
    agreement = Agreement(2, {"whole": (1, 3, 4)})
    agreement.add(fuse_slab(atlases))
    first, second = (torch.isin(p.argmax(0), torch.tensor([1, 3, 4])) for p, _, _ in atlases)
    expected = masked_dice(first, second, atlases[0][1] & atlases[1][1], 1)
    assert agreement.summary()["pairwise_dice"]["whole"] == pytest.approx(expected)


def test_agreement_compares_each_atlas_with_the_result() -> None:
    atlases = random_atlases(9)
    summary = agreement_of(atlases, slab=3).summary()
    labels = fuse_slab(atlases, "vote").labels
    for entry, (probabilities, covered, _) in zip(summary["dice_with_result"], atlases, strict=True):
        assert entry["b"] == pytest.approx(masked_dice(probabilities.argmax(0), labels, covered, 2))
    assert summary["covered"] == pytest.approx([c.float().mean().item() for _, c, _ in atlases])


def test_agreement_counts_voxels_that_no_atlas_reaches() -> None:
    atlases = random_atlases(10, atlases=2)
    agreement = agreement_of(atlases, slab=1)
    assert agreement.uncovered == int((~atlases[0][1] & ~atlases[1][1]).sum())


def test_agreement_in_the_foreground_is_the_mean_share_there() -> None:
    atlases = random_atlases(11)
    fused = fuse_slab(atlases, "vote")
    summary = agreement_of(atlases, slab=2).summary()
    assert summary["foreground"] == pytest.approx(fused.share[fused.labels > 0].mean().item())


def test_entropy_of_a_label_is_the_mean_over_its_voxels_in_the_result() -> None:
    atlases = random_atlases(12)
    fused = fuse_slab(atlases, "vote")
    summary = agreement_of(atlases, slab=2).summary()
    for label, name in ((1, "a"), (2, "b")):
        assert summary["entropy"][name] == pytest.approx(fused.entropy[fused.labels == label].mean().item())


def test_the_expected_dice_is_that_of_truths_drawn_from_the_probabilities() -> None:
    atlases = random_atlases(14)
    fused = fuse_slab(atlases, "vote")
    found, sure = fused.labels > 0, 1 - fused.probabilities[0]
    sure = torch.where(sure >= 0.01, sure, 0.0)
    drawn = torch.rand((20_000, *sure.shape), generator=torch.Generator().manual_seed(0)) < sure
    dice = 2 * (drawn & found).sum((1, 2, 3)) / (drawn.sum((1, 2, 3)) + found.sum())
    summary = agreement_of(atlases, slab=2).summary()
    # A mean of quotients is not quite the quotient of the means.
    assert summary["expected_dice"] == pytest.approx(dice.mean().item(), abs=0.01)


def test_what_is_hardly_ever_said_is_no_part_of_the_expected_dice_however_often() -> None:
    sure, empty = column(0.2, 0.8).expand(2, 4, 1, 1), column(0.991, 0.009).expand(2, 996, 1, 1)
    said = torch.cat([sure, empty], 1)
    summary = agreement_of([(said, torch.ones(1000, 1, 1, dtype=torch.bool), 1.0)], slab=500, classes=2).summary()
    assert summary["expected_dice"] == pytest.approx(2 * 3.2 / (3.2 + 4))


def test_every_atlas_has_a_volume_of_its_own() -> None:
    atlases = random_atlases(13)
    agreement = agreement_of(atlases, slab=2)
    assert agreement.voxels("b") == [int(((p.argmax(0) == 2) & covered).sum()) for p, covered, _ in atlases]


def test_agreement_about_nothing_is_none() -> None:
    agreement = agreement_of([(column(1.0, 0.0), HERE, 1.0)], slab=1, classes=2)
    summary = agreement.summary()
    assert (summary["foreground"], summary["pairwise_dice"]["a"], summary["dice_with_result"][0]["a"]) == (None,) * 3
    assert summary["entropy"]["a"] is None
    assert summary["expected_dice"] is None
