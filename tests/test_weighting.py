"""Weights that are learnt from unseen subjects: the formula, the learning, and the way from folds to a fusion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.stats import entropy

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Execution
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.prediction.answers import MappedAnswer
from atlasnet.prediction.fusion import fuse_slab
from atlasnet.prediction.votes import MOST, SURE
from atlasnet.study import StudyOptions
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.weighting import FEWEST, FusionWeights, Votes, _loss, learn_weights
from atlasnet.volume import Volume, canonical, read_labels, write_volume
from synthetic import dice, subject, write_cohort

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0)
QUICK = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="affine")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(FEWEST)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Without learnt weights."""
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", QUICK, execution=ONE)


def drawn(seed: int, *, right: float, voxels: int = 400) -> Votes:
    """Votes of three atlases; where the fit of one is better, it gave the truth more by a share of ``right``."""
    random = np.random.default_rng(seed)
    correlation = random.uniform(-0.5, 0.99, (3, voxels))
    chance = random.uniform(0.05, 0.95, (3, voxels))
    said = right * (correlation > 0.7) + (1 - right) * chance
    seen = [-np.log(1 - correlation), np.log(random.uniform(0.1, 1, (3, voxels))), np.full((3, voxels), 0.4)]
    return Votes(np.stack([said.clip(0.02, 0.98), *seen]).astype(np.float32))


def test_a_weight_is_what_its_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    said = torch.softmax(3 * torch.randn(4, 2, 3, 5, generator=generator), 0)
    said[:, 0, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    correlation = 2 * torch.rand(2, 3, 5, generator=generator) - 1
    correlation[1, 1, 1] = 1
    found = FusionWeights(0.7, 1.5, 3.0).of(said, correlation, 0.6)
    for voxel in np.ndindex(2, 3, 5):
        d = max(1 - float(correlation[voxel]), 0.01)
        c = max(1 - entropy(said[:, *voxel].numpy()) / np.log(4), 1e-3)
        assert float(found[voxel]) == pytest.approx(d**-0.7 * c**1.5 * np.exp(3 * 0.6), rel=1e-4)
    np.testing.assert_allclose(FusionWeights().of(said, correlation, 0.6), 1.0)


def test_the_gradient_is_that_of_the_loss() -> None:
    subjects = [drawn(seed, right=0.6) for seed in range(3)]
    for exponents in ([0.0, 0.0, 0.0], [0.8, 0.3, 2.0]):
        error = check_grad(
            lambda x: _loss(x, subjects)[0], lambda x: _loss(x, subjects)[1], np.array(exponents), epsilon=1e-5
        )
        assert error < 1e-4


def test_what_tells_who_is_right_is_learnt_and_chance_is_not() -> None:
    found = learn_weights([drawn(seed, right=0.8) for seed in range(6)])
    assert found is not None
    assert found.fit > 0.5
    # The sureness of the networks and a quality that all share say nothing here.
    assert found.certainty < 0.1 * found.fit
    assert found.quality == 0
    by_chance = learn_weights([drawn(seed, right=0.0) for seed in range(6)])
    assert by_chance is not None
    assert by_chance.fit < 0.1


def test_learnt_weights_make_the_truth_more_probable_than_equal_ones() -> None:
    subjects = [drawn(seed, right=0.3) for seed in range(5)]
    found = learn_weights(subjects)
    assert found is not None
    assert _loss(np.array(list(found.to_json().values())), subjects)[0] < _loss(np.zeros(3), subjects)[0]


def test_a_subject_counts_as_much_with_few_voxels_as_with_many() -> None:
    few, many = drawn(1, right=0.5, voxels=50), drawn(2, right=0.1, voxels=5000)
    loss = [_loss(np.ones(3), [votes])[0] for votes in (few, many)]
    assert _loss(np.ones(3), [few, many])[0] == pytest.approx(np.mean(loss))


@pytest.mark.parametrize(
    "subjects",
    [
        [drawn(seed, right=0.5) for seed in range(FEWEST - 1)],
        [Votes(drawn(seed, right=0.5).array[:, :1]) for seed in range(FEWEST)],
        [Votes.none(3)] * FEWEST,
    ],
    ids=["few subjects", "one atlas", "no voxels"],
)
def test_from_too_little_nothing_is_learnt(subjects: list[Votes]) -> None:
    assert learn_weights(subjects) is None


def test_weights_are_read_back_as_they_were_written() -> None:
    weights = FusionWeights(0.25, 1.5, 0.125)
    assert FusionWeights.from_json(json.loads(json.dumps(weights.to_json()))) == weights


@pytest.mark.parametrize("value", [-0.1, 1e9, float("nan")])
def test_impossible_weights_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"finite|certainty from 0 to 20"):
        FusionWeights.from_json({"fit": 0.1, "certainty": value, "quality": 0.0})


def test_votes_are_what_the_atlases_say_of_the_truth(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, reference = subject(100)
    values = reference.array.copy()
    values[0, :3] = 9  # no class: does not count
    reference = Volume(values, reference.grid)
    predictor = Predictor(model, execution=ONE)
    answers = predictor.ask(image, fit=True)
    votes = predictor.votes(answers, reference)
    truth = canonical(reference)[0].array[0]
    atlases = [
        MappedAnswer(answer, answers.source, weights=None, device=torch.device("cpu"))
        for answer, _ in answers.atlases
        if answer is not None
    ]
    said, reached, quality = zip(*(atlas.slab(0, len(truth)) for atlas in atlases), strict=True)
    expected = []
    for voxel in zip(*np.nonzero(truth != 9), strict=True):
        there = [p[:, *voxel] for p in said]
        seen = truth[voxel] != 0 or any(p[0] < SURE for p in there)
        if seen and all(r[voxel] for r in reached):
            expected.append([float(p[model.values.index(truth[voxel])]) for p in there])
    np.testing.assert_allclose(votes.array[0], np.transpose(expected), atol=1e-6)
    np.testing.assert_allclose(votes.array[3], np.broadcast_to(np.c_[list(quality)], votes.array[3].shape), rtol=1e-6)
    monkeypatch.setattr("atlasnet.prediction.predictor.SLAB_VOXELS", 1)
    np.testing.assert_allclose(predictor.votes(answers, reference).array, votes.array, atol=1e-5)


def test_of_a_large_scan_voxels_are_drawn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, reference = subject(100)
    predictor = Predictor(model, execution=ONE)
    answers = predictor.ask(image, fit=True)
    every = predictor.votes(answers, reference)
    assert every.voxels < MOST
    monkeypatch.setattr("atlasnet.prediction.votes.MOST", 200)
    few = predictor.votes(answers, reference)
    assert few.voxels == 200
    assert few.array[0].mean() == pytest.approx(every.array[0].mean(), abs=0.1)
    monkeypatch.setattr("atlasnet.prediction.predictor.SLAB_VOXELS", 1)
    np.testing.assert_allclose(predictor.votes(answers, reference).array, few.array, atol=1e-5)


def test_votes_need_the_fit(model: Model) -> None:
    image, reference = subject(100)
    predictor = Predictor(model, execution=ONE)
    with pytest.raises(InputError, match="fit=True"):
        predictor.votes(predictor.ask(image), reference)


def test_a_fusion_by_equal_weights_is_the_mean(model: Model) -> None:
    predictor = Predictor(model, execution=ONE)
    predictor.ensemble.models[0].__dict__["fusion_weights"] = FusionWeights()
    try:
        answers = predictor.ask(subject(101)[0], fit=True)
        learnt, mean = (predictor.fuse(answers, PredictOptions(fusion=f)).labels for f in ("learnt", "mean"))
    finally:
        predictor.ensemble.models[0].__dict__["fusion_weights"] = None
    np.testing.assert_array_equal(learnt.array, mean.array)


def test_an_atlas_that_counts_more_decides() -> None:
    one, other = torch.tensor([0.9, 0.1]).reshape(2, 1, 1, 1), torch.tensor([0.3, 0.7]).reshape(2, 1, 1, 1)
    here = torch.ones(1, 1, 1, dtype=torch.bool)
    sure, close = FusionWeights(certainty=4.0), torch.zeros(1, 1, 1)
    said = [(p, here, sure.of(p, close, 0.5)) for p in (one, other)]
    assert fuse_slab(said, "learnt").labels.item() == 0
    fits = [(p, here, FusionWeights(fit=3.0).of(p, r * torch.ones(1, 1, 1), 0.5)) for p, r in ((one, 0), (other, 0.9))]
    assert fuse_slab(fits, "learnt").labels.item() == 1


def test_a_model_that_was_cross_validated_fuses_by_what_it_has_learnt(
    cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    image, reference = subject(103)
    write_volume(tmp_path / "scan.nii.gz", image)
    train = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--atlases", "2", "--registration", "centre"]
    train += ["--width", "0.25", "--epochs", "1", "--threads", "1", "--quiet", "--folds", "2"]
    assert main(train) == 0
    kept = Model.load(tmp_path / "m").fusion_weights
    assert kept is not None
    votes = tmp_path / "m" / "cross_validation" / "votes"
    assert {path.name for path in votes.iterdir()} == {f"s{seed}.npy" for seed in range(FEWEST)}
    predict = ["predict", str(tmp_path / "scan.nii.gz"), "-m", str(tmp_path / "m"), "--quiet", "--fusion", "learnt"]
    assert main([*predict, "-o", str(tmp_path / "seg.nii.gz")]) == 0
    assert dice(read_labels(tmp_path / "seg.nii.gz").array > 0, reference.array > 0) > 0.5
    assert json.loads((tmp_path / "seg.json").read_text())["fusion"] == "learnt"
    # What is cut off is named; what is gone is made again, to the same end.
    path = votes / "s1.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert main(train) == 2
    assert "votes/s1.npy" in capsys.readouterr().err
    path.unlink()
    assert main(train) == 0
    assert path.read_bytes() == whole
    assert Model.load(tmp_path / "m").fusion_weights == kept


def test_a_model_that_was_not_says_how_to_get_there(model: Model, tmp_path: Path, capsys: Capture) -> None:
    write_volume(tmp_path / "scan.nii.gz", subject(103)[0])
    words = ["predict", str(tmp_path / "scan.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "seg.nii.gz")]
    assert main([*words, "--fusion", "learnt"]) == 2
    assert "learnt no weights" in (said := capsys.readouterr().err)
    assert "--folds" in said
    assert not (tmp_path / "seg.nii.gz").exists()
    predictor = Predictor(model, execution=ONE)
    with pytest.raises(ModelError, match="learnt no weights"):
        predictor.predict(subject(103)[0], PredictOptions(fusion="learnt"))


def test_a_study_cannot_fuse_by_what_no_model_of_it_has_learnt() -> None:
    with pytest.raises(InputError, match="not cross-validated"):
        StudyOptions(fusion="learnt")
