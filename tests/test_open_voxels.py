"""Asking about background first gives what asking about every class of every voxel gives, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from atlasnet.prediction.answers import Answer, MappedAnswer
from atlasnet.prediction.decision import Decision
from atlasnet.prediction.fusion import Agreement, FusedSlab, fuse_models, fuse_slab, own_choice
from atlasnet.prediction.open_voxels import FEWEST_CLASSES, OpenVoxels, may_leave_out
from atlasnet.prediction.staple import Patterns
from atlasnet.training.fusion_weights import FusionWeights
from atlasnet.transform import DisplacementMap, Transform, repair
from atlasnet.volume import Grid
from atlasnet.volume.sampling import slabs

CPU = torch.device("cpu")
CLASSES = 12
ATLAS = Grid.from_parts((20, 24, 26), (2.0, 1.5, 1.2), origin=(5.0, -10.0, 100.0))
# It reaches beyond the atlas on one side, and less far on the other.
SCAN = Grid.from_parts((18, 34, 40), (1.8, 1.3, 1.1), origin=(-2.0, -14.0, 104.0))
PLACES = [((0, 0, 0), ATLAS.shape), ((2, 5, 12), (11, 13, 12)), ((0, 5, 6), (9, 13, 12))]


def opinion(seed: int, place: tuple[tuple[int, int, int], tuple[int, int, int]], *, fit: bool = False) -> Answer:
    """Background, with a ball about which an atlas is more or less sure, read through a smooth map."""
    start, shape = place
    random = np.random.default_rng(seed)
    axes = [
        np.arange(first, first + n) / whole - 0.5 for first, n, whole in zip(start, shape, ATLAS.shape, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    logits = random.normal(scale=1.5, size=(CLASSES, *shape))
    logits[0] += 12 * np.tanh(8 * (np.sqrt(x**2 + y**2 + z**2) - 0.35))
    around = ((np.arctan2(y, x) / np.pi + 1) / 2 * (CLASSES - 1)).astype(int).clip(0, CLASSES - 2) + 1
    np.put_along_axis(logits, around[None], 4.0, axis=0)
    said = torch.from_numpy(logits).softmax(0)
    inner = tuple(slice(int(a > 0), n - int(a + n < m)) for a, n, m in zip(start, shape, ATLAS.shape, strict=True))
    beyond = torch.ones(shape, dtype=torch.bool)
    beyond[inner] = False
    said[:, beyond] = 0
    said[0, beyond] = 1
    field = np.stack([gaussian_filter(random.standard_normal(SCAN.shape), 5, mode="nearest") for _ in range(3)])
    moved = torch.from_numpy((3 * field / np.abs(field).max()).astype(np.float32))
    to_atlas = Transform.from_displacement(DisplacementMap(repair(moved, SCAN)[0], SCAN))
    correlation = torch.from_numpy(random.uniform(-1, 1, shape)).half() if fit else None
    return Answer(said.half(), ATLAS, to_atlas, 0.3 + 0.1 * seed, correlation, start=start)


def assert_the_same(
    atlases: Sequence[MappedAnswer], models: Sequence[Sequence[int]], method: str, least: float = 0.05
) -> None:
    decision, names = Decision.of(CLASSES), {str(label): (label,) for label in range(1, CLASSES)}
    performance = None
    if method == "staple":
        whole, parts = Patterns(len(atlases)), Patterns(len(atlases))
        for z0, z1 in slabs(SCAN.shape, 4000):
            whole.add([own_choice(*atlas.slab(z0, z1)[:2], decision) for atlas in atlases])
            for choices in OpenVoxels(atlases, z0, z1, 100).choices(decision):
                parts.add(choices)
        performance = whole.performance(CLASSES)
        assert np.array_equal(performance.confusion, parts.performance(CLASSES).confusion)
        assert np.array_equal(performance.prior, parts.performance(CLASSES).prior)
    agreements = [Agreement(len(atlases), names) for _ in range(2)]
    structures = unseen = 0
    for z0, z1 in slabs(SCAN.shape, 4000):
        said = [fuse_slab((atlases[i].slab(z0, z1) for i in own), method, performance) for own in models]
        expected = fuse_models(said, decision)
        found = OpenVoxels(atlases, z0, z1, 100).fused(models, method, performance, decision)
        assert torch.equal(found.labels, expected.labels)
        assert found.labels.dtype == expected.labels.dtype
        assert torch.equal(found.share, expected.share)
        assert torch.equal(found.reached, expected.reached)
        assert torch.equal(found.probabilities[0], expected.probabilities[0])
        assert all(torch.equal(a, b) for a, b in zip(found.choices, expected.choices, strict=True))
        asked = ~found.entropy.isnan()
        assert torch.equal(found.entropy[asked], expected.entropy[asked])
        structures += int((expected.labels > 0).sum())
        unseen += int((~asked).sum())
        for agreement, fused in zip(agreements, (expected, found), strict=True):
            agreement.add(fused)
    assert agreements[0].summary() == agreements[1].summary()
    assert structures > least * SCAN.voxels
    assert unseen > 0.3 * SCAN.voxels


@pytest.mark.parametrize("method", ["mean", "vote", "weighted", "staple"])
def test_every_fusion_of_atlases_that_reach_different_parts(method: str) -> None:
    atlases = [MappedAnswer(opinion(seed, place), SCAN, device=CPU) for seed, place in enumerate(PLACES)]
    assert_the_same(atlases, [[0, 1, 2]], method, least=0.02)


def test_weights_of_the_local_fit() -> None:
    weights = FusionWeights(fit=0.5, quality=1.0)
    assert may_leave_out(Decision.of(CLASSES), weights)
    answers = [opinion(seed, PLACES[seed % 2], fit=True) for seed in range(3)]
    assert_the_same([MappedAnswer(a, SCAN, weights=weights, device=CPU) for a in answers], [[0, 1, 2]], "local", 0.02)
    _, _, weight = MappedAnswer(answers[1], SCAN, weights=FusionWeights(quality=1.0), device=CPU).slab(0, 1)
    torch.testing.assert_close(weight, torch.full((1, *SCAN.shape[1:]), np.exp(answers[1].quality)))


def test_several_models() -> None:
    atlases = [MappedAnswer(opinion(seed, PLACES[seed % 3]), SCAN, device=CPU) for seed in range(4)]
    assert_the_same(atlases, [[0, 2], [1, 3]], "mean", 0.02)


@pytest.mark.parametrize("face", range(6))
def test_beyond_its_part_an_opinion_is_what_the_faces_say(face: int) -> None:
    answer = opinion(2, PLACES[1])
    for probabilities in answer.probabilities[:2]:
        probabilities.select(face // 2, -(face % 2))[1:-1, 1:-1] = 0.5  # at no other face
    assert_read_like_scipy(answer)


def test_beyond_its_part_the_local_fit_is_that_at_the_faces() -> None:
    assert_read_like_scipy(opinion(2, PLACES[1], fit=True))


def assert_read_like_scipy(answer: Answer) -> None:
    said, _, correlation = MappedAnswer(answer, SCAN, device=CPU).read(0, SCAN.shape[0])
    index = answer.to_atlas.index_slab(ATLAS, SCAN, 0, SCAN.shape[0], device=CPU).numpy()
    place = np.moveaxis(index[..., ::-1] - answer.start, -1, 0)
    wanted = [*zip(answer.probabilities, said, strict=True)]
    if answer.correlation is not None:
        wanted.append((answer.correlation, correlation))
    for channel, found in wanted:
        expected = map_coordinates(channel.float().numpy(), place, order=1, mode="nearest")
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_an_organ_mask() -> None:
    mask = np.zeros(SCAN.shape, dtype=bool)
    mask[3:15, 8:30, 9:33] = True
    answers = [opinion(seed, PLACES[seed]) for seed in range(2)]
    atlases = [MappedAnswer(answer, SCAN, device=CPU, mask=mask) for answer in answers]
    assert_the_same(atlases, [[0, 1]], "mean", 0.01)
    within = torch.from_numpy(mask[12:17])
    for answer, atlas in zip(answers, atlases, strict=True):
        said, everywhere = (read.read(12, 17)[0] for read in (atlas, MappedAnswer(answer, SCAN, device=CPU)))
        assert torch.equal(said[:, within], everywhere[:, within])
        assert (said[0, ~within] == 1).all()
        assert not said[1:, ~within].any()


def test_atlases_that_are_asked_about_few_voxels_are_not_asked_about_others(monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, asked = MappedAnswer(opinion(1, PLACES[0]), SCAN, device=CPU), []

    def at(self: MappedAnswer, reading: Any, voxels: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        asked.append(len(voxels))
        return original(self, reading, voxels)

    original = MappedAnswer.at
    monkeypatch.setattr(MappedAnswer, "at", at)
    fused: FusedSlab = OpenVoxels([atlas], 0, SCAN.shape[0], 500).fused([[0]], "mean", None, Decision.of(CLASSES))
    background = atlas.read(0, SCAN.shape[0])[0][0]
    covered = atlas.reading(0, SCAN.shape[0]).covered
    assert sum(asked) == int((covered & (background <= 0.51)).sum()) < 0.5 * SCAN.voxels
    assert max(asked) <= 500
    assert len(fused.probabilities) == 1


def test_what_is_rounded_by_where_it_lies_is_asked_about_everywhere() -> None:
    assert may_leave_out(Decision.of(FEWEST_CLASSES), None)
    assert not may_leave_out(Decision.of(FEWEST_CLASSES - 1), None)
    assert not may_leave_out(Decision.of(CLASSES, [(1, 2)]), None)
    assert not may_leave_out(Decision.of(CLASSES), FusionWeights(fit=1.0, certainty=0.5))
