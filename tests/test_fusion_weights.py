"""Weights that are learnt from unseen subjects: the formula, the learning, and the way from folds to a fusion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from scipy.special import softmax
from scipy.stats import entropy

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Execution, Stages
from atlasnet.prediction import Ensemble, PredictOptions, Predictor, provenance
from atlasnet.prediction.answers import Answer, Answers, MappedAnswer
from atlasnet.prediction.fusion import fuse_slab
from atlasnet.prediction.fusion_samples import MOST, SURE, fusion_samples
from atlasnet.study import StudyOptions
from atlasnet.training.fit import fit
from atlasnet.training.fusion_weights import FEWEST, LARGEST, FusionSamples, FusionWeights, _loss, learn_weights
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, canonical, read_labels, write_volume
from synthetic import LABELS, dice, subject, write_cohort

ONE = Execution(threads=1)
pytestmark = pytest.mark.usefixtures("brief")
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
QUICK = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="centre")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(FEWEST)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Without learnt weights."""
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", QUICK, execution=ONE)


def drawn(seed: int, *, by: int = 0, right: float = 0.6, atlases: int = 3, voxels: int = 400) -> FusionSamples:
    """What atlases say; one with a positive feature ``by`` gives the truth more, by a share of ``right``."""
    random = np.random.default_rng(seed)
    features = random.uniform(-1, 1, (3, atlases, voxels))
    chance = random.uniform(0.05, 0.95, (atlases, voxels))
    truth = (right * (features[by] > 0) + (1 - right) * chance).clip(0.02, 0.98)
    reached = np.ones(truth.shape, dtype=np.bool_)
    return FusionSamples(truth.astype(np.float32), features.astype(np.float32), reached)


def test_a_weight_is_what_its_formula_says() -> None:
    generator = torch.Generator().manual_seed(0)
    said = torch.softmax(3 * torch.randn(4, 2, 3, 5, generator=generator), 0)
    said[:, 0, 0, 0] = torch.tensor([1.0, 0, 0, 0])
    correlation = 2 * torch.rand(2, 3, 5, generator=generator) - 1
    correlation[1, 1, 1] = 1
    found = FusionWeights(0.7, 1.5, 3.0).of(said, correlation, 0.6)
    for voxel in np.ndindex(2, 3, 5):
        distance = max(1 - float(correlation[voxel]), 0.01)
        certainty = max(1 - entropy(said[:, *voxel].numpy()) / np.log(4), 1e-3)
        assert float(found[voxel]) == pytest.approx(distance**-0.7 * certainty**1.5 * np.exp(3 * 0.6), rel=1e-4)
    np.testing.assert_allclose(FusionWeights().of(said, correlation, 0.6), 1.0)


def test_samples_and_weights_hold_the_same_features() -> None:
    generator = torch.Generator().manual_seed(1)
    said = torch.softmax(torch.randn(3, 4, 20, generator=generator), 1)
    correlation = 2 * torch.rand(3, 20, generator=generator) - 1
    everywhere = torch.ones(20, dtype=torch.bool)
    samples = FusionSamples.of(
        [(p, r, everywhere, q) for p, r, q in zip(said, correlation, (0.2, 0.5, 0.9), strict=True)],
        torch.zeros(20, dtype=torch.int64),
    )
    weights = FusionWeights(0.7, 1.5, 3.0)
    given = [weights.of(p, r, q) for p, r, q in zip(said, correlation, (0.2, 0.5, 0.9), strict=True)]
    shares = torch.stack(given) / torch.stack(given).sum(0)
    learnt = softmax(np.tensordot([0.7, 1.5, 3.0], samples.features, 1), axis=0)
    np.testing.assert_allclose(learnt, shares, rtol=1e-4)


@pytest.mark.parametrize("correlation", [-1.0, 1.0])
def test_the_largest_exponents_give_weights_that_can_be_used(correlation: float) -> None:
    largest = FusionWeights(LARGEST, LARGEST, LARGEST)
    here = torch.ones(1, 1, 1, dtype=torch.bool)
    said = []
    for p in (0.5, 0.9):
        probabilities = torch.tensor([1 - p, p]).reshape(2, 1, 1, 1)
        said.append((probabilities, here, largest.of(probabilities, torch.full((1, 1, 1), correlation), 1.0)))
    assert all(0 < float(weight) < np.inf for _, _, weight in said)
    assert fuse_slab(said, "learnt").labels.item() == 1


def test_the_gradient_is_that_of_the_loss() -> None:
    subjects = [drawn(seed, atlases=2 + seed) for seed in range(3)]
    subjects[1].reached[0, ::2] = False
    subjects[2].truth[:, ::3] *= 1e-5  # no weights make probable what no atlas held to be possible
    for exponents in ([0.0, 0.0, 0.0], [0.8, 0.3, 2.0]):
        error = check_grad(
            lambda x: _loss(x, subjects)[0], lambda x: _loss(x, subjects)[1], np.array(exponents), epsilon=1e-5
        )
        assert error < 1e-4


@pytest.mark.parametrize("by", [0, 1, 2])
def test_what_tells_who_is_right_is_learnt_and_the_rest_is_not(by: int) -> None:
    found = learn_weights([drawn(seed, by=by, right=0.8) for seed in range(6)])
    assert found is not None
    exponents = list(found.to_json().values())
    assert exponents[by] > 0.5
    assert max(e for i, e in enumerate(exponents) if i != by) < 0.1 * exponents[by]


def test_from_chance_equal_weights_are_learnt() -> None:
    found = learn_weights([drawn(seed, right=0.0) for seed in range(6)])
    assert found is not None
    assert max(found.to_json().values()) < 0.1


def test_an_atlas_that_does_not_reach_has_no_say() -> None:
    two = [drawn(seed, atlases=2) for seed in range(FEWEST)]
    three = []
    for samples in two:
        other = drawn(99, atlases=1)
        reached = np.concatenate([samples.reached, np.zeros_like(other.reached)])
        arrays = (
            np.concatenate([one, another], axis=-2)
            for one, another in ((samples.truth, other.truth), (samples.features, other.features))
        )
        three.append(FusionSamples(*arrays, reached))
    assert learn_weights(three) == learn_weights(two)


def test_subjects_count_alike_with_few_voxels_and_with_many() -> None:
    few, many = drawn(1, right=0.5, voxels=50), drawn(2, right=0.1, voxels=5000)
    loss = [_loss(np.ones(3), [samples])[0] for samples in (few, many)]
    assert _loss(np.ones(3), [few, many])[0] == pytest.approx(np.mean(loss))


@pytest.mark.parametrize(
    "subjects",
    [
        [drawn(seed) for seed in range(FEWEST - 1)],
        [*(drawn(seed) for seed in range(FEWEST - 1)), drawn(9, voxels=0)],
    ],
    ids=["few subjects", "one without voxels"],
)
def test_from_too_little_nothing_is_learnt(subjects: list[FusionSamples]) -> None:
    assert learn_weights(subjects) is None


def test_weights_are_read_back_as_they_were_written() -> None:
    weights = FusionWeights(0.25, 1.5, 0.125)
    assert FusionWeights.from_json(json.loads(json.dumps(weights.to_json()))) == weights


@pytest.mark.parametrize("value", [-0.1, 1e9, float("nan")])
def test_impossible_weights_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"finite|certainty from 0 to 10"):
        FusionWeights.from_json({"fit": 0.1, "certainty": value, "quality": 0.0})


@pytest.mark.parametrize("masked", [False, True])
def test_samples_are_what_the_atlases_say_of_the_truth(
    model: Model, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    image, reference = subject(100)
    values = reference.array.copy()
    values[0, :3] = 9  # no class: does not count
    reference = Volume(values, reference.grid)
    organ = np.ones(values.shape, dtype=np.uint8)
    organ[..., :15] = not masked
    mask = Volume(organ, reference.grid)
    predictor = Predictor(model, execution=ONE)
    answers = predictor.ask(image, fit=True, mask=mask if masked else None)
    found = predictor.fusion_samples(answers, reference)
    truth, inside = (canonical(volume)[0].array[0] for volume in (reference, mask))
    given = [answer for answer, _ in answers.atlases if answer is not None]
    atlases = [
        MappedAnswer(answer, answers.source, device=torch.device("cpu"), weights=FusionWeights(fit=1.0))
        for answer in given
    ]
    said, reached, weight = zip(*(atlas.slab(0, len(truth)) for atlas in atlases), strict=True)
    expected = []
    core = model.values.index(LABELS["core"])
    for voxel in zip(*np.nonzero((truth != 9) & (inside != 0)), strict=True):
        label = model.values.index(truth[voxel])
        if (label or any(p[0][voxel] < SURE for p in said)) and all(r[voxel] for r in reached):
            given_truth = [float(p[label][voxel]) for p in said]
            may_be = [one + float(p[core][voxel]) * (label == 0) for one, p in zip(given_truth, said, strict=True)]
            expected.append([given_truth, [float(w[voxel]) for w in weight], may_be])
    values_there = np.transpose(expected, (1, 2, 0))
    np.testing.assert_allclose(found.truth, values_there[0], atol=1e-6)
    np.testing.assert_allclose(np.exp(found.features[0]), values_there[1], rtol=1e-4)
    np.testing.assert_allclose(found.features[2], np.broadcast_to(np.c_[[a.quality for a in given]], found.truth.shape))
    # Where nobody annotated the core, the background may be one.
    partly = predictor.fusion_samples(answers, reference, ((LABELS["core"], 0),))
    np.testing.assert_allclose(partly.truth, values_there[2], atol=1e-6)
    monkeypatch.setattr("atlasnet.prediction.predictor.SLAB_VOXELS", 1)
    np.testing.assert_allclose(predictor.fusion_samples(answers, reference).truth, found.truth, atol=1e-5)


def test_samples_are_drawn_where_two_atlases_reach_and_may_differ_however_the_scan_lies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random, values, label = np.random.default_rng(0), (0, 2, 4), {0: 0, 2: 1, 4: 2}
    image = Grid.from_parts((4, 6, 7), direction=np.diag([-1.0, 1, -1]))
    source, orientation = canonical(image)
    truth = random.choice([0, 0, 0, 0, 2, 4, 9], source.shape).astype(np.uint8)  # 9 is no class
    atlases = []
    for reach in (4, 4, 2):  # slices; the third atlas reaches half of the scan
        said = np.where(
            random.random((reach, 6, 7, 1)) < 0.7, (0.99, 0.005, 0.005), random.dirichlet(np.ones(3), (reach, 6, 7))
        )
        said = torch.from_numpy(np.moveaxis(said, -1, 0)).half()
        fit = torch.zeros(said.shape[1:]).half()
        atlases.append(Answer(said, Grid((reach, 6, 7), source.affine), Transform.identity(), 0.1 * reach, fit))
    answers = Answers(image, source, orientation, (*((a, {}) for a in atlases), (None, {})), Stages())
    reference = Volume(orientation.restore(truth[None]), image)
    paused: list[None] = []

    def drawn_with(seed: int) -> FusionSamples:
        return fusion_samples(
            *(answers, reference, values),
            seed=seed,
            device=torch.device("cpu"),
            slab_voxels=30,
            pause=lambda: paused.append(None),
        )

    voxels = []
    for z, y, x in np.ndindex(truth.shape):
        unsure = any(float(a.probabilities[0, z, y, x]) < SURE for a in atlases if z < len(a.correlation))
        if truth[z, y, x] in label and (truth[z, y, x] or unsure):
            voxels.append((z, y, x))
    found = drawn_with(0)
    assert len(paused) == 4
    assert found.voxels == len(voxels) < truth.size
    for number, (z, y, x) in enumerate(voxels):
        here = [a for a in atlases if z < len(a.correlation)]
        assert found.reached[:, number].tolist() == [True, True, len(here) == 3]
        said = [float(a.probabilities[label[truth[z, y, x]], z, y, x]) for a in here]
        assert found.truth[: len(here), number] == pytest.approx(said, abs=1e-3)
    np.testing.assert_allclose(found.features[2], np.broadcast_to([[0.4], [0.4], [0.2]], found.truth.shape), rtol=1e-6)
    monkeypatch.setattr("atlasnet.prediction.fusion_samples.MOST", 20)
    parts = [drawn_with(seed).truth for seed in (0, 0, 1)]
    assert [part.shape[1] for part in parts] == [20] * 3
    assert np.array_equal(parts[0], parts[1])
    assert not np.array_equal(parts[0], parts[2])
    assert not any(np.array_equal(part, found.truth[:, :20]) for part in parts)
    assert all((column == found.truth.T).all(1).any() for part in parts for column in part.T)


def test_of_a_large_scan_voxels_are_drawn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    image, reference = subject(100)
    predictor = Predictor(model, execution=ONE)
    answers = predictor.ask(image, fit=True)
    every = predictor.fusion_samples(answers, reference)
    assert every.voxels < MOST
    monkeypatch.setattr("atlasnet.prediction.fusion_samples.MOST", 200)
    few = predictor.fusion_samples(answers, reference)
    assert few.voxels == 200
    assert few.truth.mean() == pytest.approx(every.truth.mean(), abs=0.1)
    monkeypatch.setattr("atlasnet.prediction.predictor.SLAB_VOXELS", 1)
    np.testing.assert_allclose(predictor.fusion_samples(answers, reference).truth, few.truth, atol=1e-5)


def test_one_atlas_alone_gives_no_samples(model: Model) -> None:
    image, reference = subject(100)
    predictor = Predictor(model, execution=ONE)
    assert predictor.fusion_samples(predictor.ask(image, fit=True).first(1), reference).voxels == 0


def test_samples_need_the_fit_and_a_single_model(model: Model) -> None:
    image, reference = subject(100)
    predictor = Predictor(model, execution=ONE)
    answers = predictor.ask(image)
    with pytest.raises(InputError, match="fit=True"):
        predictor.fusion_samples(answers, reference)
    other = replace(model, checksums=dict.fromkeys(model.checksums, "0" * 64))
    with pytest.raises(InputError, match="2 models"):
        Predictor(Ensemble((model, other), ("a", "b")), execution=ONE).fusion_samples(answers, reference)


def test_a_fusion_by_equal_weights_is_the_mean(model: Model) -> None:
    predictor = Predictor(replace(model, fusion_weights=FusionWeights()), execution=ONE)
    answers = predictor.ask(subject(101)[0], fit=True)
    learnt, mean = (predictor.fuse(answers, PredictOptions(fusion=f)).labels for f in ("learnt", "mean"))
    np.testing.assert_array_equal(learnt.array, mean.array)


def test_an_atlas_that_counts_more_decides() -> None:
    one, other = torch.tensor([0.9, 0.1]).reshape(2, 1, 1, 1), torch.tensor([0.3, 0.7]).reshape(2, 1, 1, 1)
    here, close = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1)
    sure = FusionWeights(certainty=4.0)
    assert fuse_slab([(p, here, sure.of(p, close, 0.5)) for p in (one, other)], "learnt").labels.item() == 0
    fits = [(p, here, FusionWeights(fit=3.0).of(p, close + r, 0.5)) for p, r in ((one, 0), (other, 0.9))]
    assert fuse_slab(fits, "learnt").labels.item() == 1


def test_what_is_learnt_decides_whether_a_prediction_is_the_same_for_this_fusion_alone(
    model: Model, cohort: Cohort
) -> None:
    models = [replace(model, fusion_weights=weights) for weights in (None, FusionWeights(1.0), FusionWeights(2.0))]
    for fusion, distinct in (("mean", 1), ("learnt", 3)):
        options = PredictOptions(fusion=fusion)
        assert len({provenance(cohort["s0"], m, options, ONE)["request"] for m in models}) == distinct


def test_a_model_that_was_cross_validated_fuses_by_what_it_has_learnt(
    cohort: Cohort, tmp_path: Path, capsys: Capture
) -> None:
    image, reference = subject(103)
    write_volume(tmp_path / "scan.nii.gz", image)
    data = write_cohort(tmp_path / "data", range(FEWEST))
    train = ["train", str(data), "-o", str(tmp_path / "m"), "--atlases", "2", "--registration", "centre"]
    train += ["--width", "0.25", "--epochs", "20", "--threads", "1", "--folds", "2"]
    assert main(train) == 0
    assert "weights learnt for predict --fusion learnt: fit " in capsys.readouterr().out
    kept = Model.load(tmp_path / "m").fusion_weights
    assert kept is not None
    folder = tmp_path / "m" / "cross_validation"
    samples = folder / "fusion_samples"
    assert {path.name for path in samples.iterdir()} == {f"s{seed}.safetensors" for seed in range(FEWEST)}
    predict = ["predict", str(tmp_path / "scan.nii.gz"), "-m", str(tmp_path / "m"), "--quiet", "--fusion", "learnt"]
    assert main([*predict, "-o", str(tmp_path / "seg.nii.gz")]) == 0
    assert dice(read_labels(tmp_path / "seg.nii.gz").array > 0, reference.array > 0) > 0.5
    assert json.loads((tmp_path / "seg.json").read_text())["fusion"] == "learnt"
    # What is damaged is made again, to the same end.
    before = {path.name: path.read_bytes() for path in samples.iterdir()}
    (samples / "s1.safetensors").write_bytes(before["s1.safetensors"][:-9] + bytes(9))
    (samples / "s2.safetensors").write_bytes(b"")
    assert main([*train, "--quiet"]) == 0
    assert {path.name: path.read_bytes() for path in samples.iterdir()} == before
    assert Model.load(tmp_path / "m").fusion_weights == kept


def test_a_reference_that_was_corrected_is_learnt_from(tmp_path: Path) -> None:
    data = write_cohort(tmp_path / "data", range(2))
    words = ["train", str(data), "-o", str(tmp_path / "m"), "--atlases", "1", "--registration", "centre", "--quiet"]
    words += ["--width", "0.25", "--epochs", "2", "--threads", "1", "--folds", "2"]
    assert main(words) == 0
    record = tmp_path / "m" / "cross_validation" / "predictions" / "s1.json"
    before = json.loads(record.read_text())["provenance"]
    reference = read_labels(data / "labelsTr" / "s1.nii.gz")
    reference.array[0, 5] = 0
    write_volume(data / "labelsTr" / "s1.nii.gz", reference)
    # Those that were trained on s1 are asked for anew, the fold's that has not seen it stays.
    for model in (tmp_path / "m").glob("**/model.json"):
        if "s1" in json.loads(model.read_text())["provenance"]["data"]:
            model.unlink()
    assert main(words) == 0
    after = json.loads(record.read_text())["provenance"]
    assert after["model"] == before["model"]
    assert after["reference_sha256"] != before["reference_sha256"]


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
