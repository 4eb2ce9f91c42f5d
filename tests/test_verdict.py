"""The verdict on a scan before the networks run: what is measured, where the limits lie, and what a refusal does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import dicoms
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Normalisation, Plan
from atlasnet.errors import ModelError, UnusualInputError
from atlasnet.estimator import AtlasNet
from atlasnet.execution import Execution, write_json
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.prediction.verdict import Verdict, _verdict
from atlasnet.registration import Registration, mirror_correlations
from atlasnet.training.evidence import (
    POINTS,
    SHARES,
    best_atlas,
    covered,
    covered_share,
    measure_intensities,
    region_points,
)
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.region import Region
from atlasnet.training.store import IGNORED, MappedCase
from atlasnet.training.transformer import MappedCohort
from atlasnet.training.typical import FALSE_ALARMS, KINDS, Kind, Typical, relative_qualities
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, write_volume
from synthetic import LABELS, subject

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4)
OPTIONS = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="affine")
LOW = Kind("low", high=False, logarithmic=False, precision=1e-6, harmless=np.inf)


def lopsided(seed: int) -> tuple[Volume, Volume]:
    """A subject with something bright on one side, in front and below, as a body has a heart."""
    image, labels = subject(seed)
    z, y, x = np.nonzero(labels.array[0])
    middle = np.array([z.mean(), y.mean(), x.mean()])
    index = np.stack(np.meshgrid(*[np.arange(n) for n in image.grid.shape], indexing="ij"), -1)
    offset = (index - middle - (-2, -5, 5)) * image.grid.spacing[::-1]
    inside = np.linalg.norm(offset, axis=-1) < 8
    return image.replace(image.array + np.float32(400) * inside[None]), labels


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("cohort")
    for seed in range(6):
        image, labels = lopsided(seed)
        write_volume(folder / "imagesTr" / f"s{seed}_0000.nii.gz", image)
        write_volume(folder / "labelsTr" / f"s{seed}.nii.gz", labels)
    described = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 6, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", described)
    return Cohort.read(folder)


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS, execution=ONE)


@pytest.fixture(scope="module")
def predictor(model: Model) -> Predictor:
    return Predictor(model, execution=ONE)


def inverted(image: Volume) -> Volume:
    return image.replace(image.array.max() - image.array)


def test_a_new_number_like_the_others_is_beyond_the_bound_as_often_as_was_said() -> None:
    random, trials = np.random.default_rng(0), 20_000
    numbers = random.normal(3, 2, (trials, 7))
    bounds = np.array([LOW.usual(row[:6])[1] for row in numbers])  # type: ignore[index]
    beyond = int((numbers[:, 6] < bounds).sum())
    share = FALSE_ALARMS / len(KINDS)
    assert stats.binom.ppf(0.001, trials, share) <= beyond <= stats.binom.ppf(0.999, trials, share)


def test_the_score_is_nought_in_the_middle_and_one_at_the_bound() -> None:
    for kind in KINDS:
        usual = kind.usual([0.30, 0.34, 0.42, 0.37])
        assert usual is not None
        assert kind.score(usual[0], usual) == pytest.approx(0)
        assert kind.score(usual[1], usual) == pytest.approx(1)
        assert kind.score(usual[1] + (0.1 if kind.high else -0.1), usual) > 1


def test_numbers_that_do_no_harm_are_never_unusual() -> None:
    orientation = next(kind for kind in KINDS if kind.name == "orientation")
    usual = orientation.usual([0.5, 0.51, 0.5, 0.49])
    assert usual is not None
    assert usual[1] == 0.0


def test_two_subjects_say_nothing() -> None:
    assert LOW.usual([1.0, 2.0]) is None


def test_a_training_subject_is_compared_with_the_others_as_a_new_scan_is_with_all() -> None:
    found = {"s": {"a": 0.9, "b": 0.8}, "t": {"a": 0.7, "b": 0.9}, "u": {"a": 0.5}, "v": {"c": 0.1}}
    means = [{"a": 0.6, "b": 0.9}, {"a": 0.7, "b": 0.8}, {"a": 0.8}]
    expected = {
        name: Typical(np.zeros((1, len(SHARES))), {}, others, {}).relative_quality(found[name])
        for name, others in zip("stu", means, strict=True)
    }
    # The last one shares no atlas with another.
    assert relative_qualities(found) == pytest.approx(expected)


def test_mirroring_the_scan_mirrors_what_it_is_compared_by() -> None:
    source, target = lopsided(0)[0], lopsided(1)[0]
    flipped = source.replace(np.ascontiguousarray(source.array[:, :, :, ::-1]))
    found = mirror_correlations(source, target, execution=ONE)
    assert set(found) == {"", "x", "y", "z", "xy", "xz", "yz", "xyz"}
    assert max(found, key=lambda axes: found[axes]) == ""
    # The header's claim, one of the starts, is another one for the mirrored array; what is found is not.
    other = mirror_correlations(flipped, target, execution=ONE)
    assert other["x"] == pytest.approx(found[""], abs=0.02)
    assert max(other, key=lambda axes: other[axes]) == "x"


def test_intensities_are_those_of_the_prepared_scan() -> None:
    plan = Plan(
        spacing=(2.0, 2.0, 3.0),
        slice_axis="z",
        normalisation=(Normalisation("MR", "percentiles"),),
        mi_range=(None,),
        registration_spacing=(2.0, 2.0, 3.0),
    )
    grid = Grid.from_parts((8, 20, 20), (1.0, 2.0, 3.0))
    random = np.random.default_rng(0)
    prepared = Volume(random.normal(size=(1, 8, 20, 20)).astype(np.float32), grid)
    found = measure_intensities(prepared, plan)
    every_second = prepared.array[0, :, :, ::2]
    assert found.quantiles[0] == pytest.approx(np.quantile(every_second, SHARES), abs=1e-6)
    # Second differences of white noise of unit variance have variance 6, and a normal variable the mean size 0.798 sd.
    assert found.roughness == pytest.approx(np.sqrt(6 * 2 / np.pi), rel=0.05)
    assert found.distance(found.quantiles) == 0
    darker = measure_intensities(prepared.replace(prepared.array - 1), plan)
    assert found.distance(darker.quantiles) == pytest.approx(1, abs=1e-5)
    # Networks' voxels that are finer than those of the registration are made for a small part of a scan.
    assert measure_intensities(prepared, replace(plan, spacing=(1.0, 2.0, 3.0))).to_json() == found.to_json()
    # Slices that differ from each other, as thick ones do, are no noise, and of two channels the worse one counts.
    slices = np.broadcast_to(random.normal(size=(8, 1, 1)), (1, 8, 20, 20)).astype(np.float32)
    assert measure_intensities(prepared.replace(slices), plan).roughness == 0
    both = measure_intensities(prepared.replace(np.concatenate([prepared.array, slices])), plan)
    assert both.distance(both.quantiles - [[0.1], [0.4]]) == pytest.approx(0.4)


def test_a_registration_that_failed_shows_nothing_of_its_atlas() -> None:
    scan, grid = Grid.from_parts((4, 4, 4), (1.0, 1.0, 1.0)), Grid.from_parts((4, 4, 8), (1.0, 1.0, 1.0))
    half = {name: grid.to_world(np.stack([np.arange(8), *[np.ones(8)] * 2], -1)) for name in ("a", "b")}
    there = Registration(Transform.identity(), {"quality": 0.4})
    for name in ("c", "d"):  # of which no region is known
        half[name] = np.empty((0, 3))
    assert covered(half, {"a": there, "c": there}, scan) == 0.5
    assert covered(half, {"a": there, "b": None, "d": None}, scan) == 0.25
    assert covered(half, {"c": there, "d": None}, scan) is None
    worse = replace(there, record={"quality": 0.3})
    assert best_atlas({"b": None, "c": worse, "a": there, "d": worse}) == "a"
    assert best_atlas({"b": None}) is None


def test_points_stand_for_the_labelled_region() -> None:
    grid = Grid.from_parts((10, 12, 14), (2.0, 3.0, 4.0), origin=(5.0, -7.0, 9.0))
    labels = np.full((12, 10, 14), IGNORED, dtype=np.uint8)  # slices along y
    labels[2:8, 1:6, 3:9] = 0
    labels[3:7, 2:5, 4:8] = 1
    case = MappedCase("a", np.zeros((1, 12, 10, 14), np.float32), labels)
    points = region_points(MappedCohort("key", (case,), {}), grid, "y")
    region = Region((1, 2, 1), (12, 10, 13))
    part = MappedCase("a", region.crop(case.image), region.crop(case.labels))
    cut = MappedCohort("key", (part,), {}, region)
    assert np.array_equal(region_points(cut, grid, "y"), points)
    assert points.shape == (POINTS, 3)
    index = grid.to_index(points)
    assert (np.rint(index) >= (4, 3, 2)).all()
    assert (np.rint(index) <= (7, 6, 4)).all()
    assert len(np.unique(points, axis=0)) > 30
    # The field of view ends behind the sixth column of voxels, between those of the region.
    scan = Grid.from_parts((10, 12, 6), (2.0, 3.0, 4.0), origin=(5.0, -7.0, 9.0))
    assert covered_share(points, Transform.identity(), scan) == np.mean(index[:, 0] < 5.5)


def test_the_training_subjects_are_kept_with_the_model(model: Model, cohort: Cohort) -> None:
    assert model.typical is not None
    assert {name: len(values) for name, values in model.typical.values.items()} == {kind.name: 6 for kind in KINDS}
    atlases = {atlas.name for atlas in model.atlases}
    assert set(model.typical.points) == set(model.typical.quality) == atlases
    text = json.dumps(model.typical.to_json())
    assert not [subject.name for subject in cohort if subject.name not in atlases and f'"{subject.name}"' in text]
    again = Typical.from_json(json.loads(text), 1)
    assert again.to_json() == model.typical.to_json()
    assert again.usual == model.typical.usual


def test_a_scan_like_the_training_subjects_is_usual(predictor: Predictor) -> None:
    verdict = predictor.verdict(lopsided(51)[0])
    assert (verdict.result, verdict.reasons) == ("usual", ())
    assert set(verdict.evidence) == {kind.name for kind in KINDS}
    assert verdict.score is not None
    assert verdict.score < 1


@pytest.mark.parametrize("change", ["mirrored", "another modality", "noise", "half of it"])
def test_a_scan_that_is_broken_is_unusual_for_the_right_reason(predictor: Predictor, change: str) -> None:
    image = lopsided(51)[0]
    if change == "mirrored":
        broken, kind, word = image.replace(image.array[..., ::-1].copy()), "orientation", "mirrored"
    elif change == "another modality":
        broken, kind, word = inverted(image), "intensities", "another unit, modality"
    elif change == "noise":
        noise = np.random.default_rng(0).normal(0, 300, image.array.shape)
        broken, kind, word = image.replace((image.array + noise).astype(np.float32)), "noise", "noise?"
    else:
        grid = Grid((*image.grid.shape[:2], 14), image.grid.affine)
        broken, kind, word = Volume(image.array[..., :14].copy(), grid), "field_of_view", "cropped?"
    verdict = predictor.verdict(broken)
    assert verdict.result == "unusual"
    found = verdict.evidence[kind]
    assert found["score"] is not None
    assert found["score"] > 1
    assert any(word in reason for reason in verdict.reasons)
    if change == "mirrored":
        # But for the ball the phantom is nearly the same along every axis.
        assert verdict.mirrored


@pytest.mark.parametrize(
    ("kind", "value", "limit", "words"),
    [
        ("intensities", 0.1234, 0.1219, "are 0.123 standard deviations"),
        ("intensities", 0.1234, 0.1219, "up to 0.122 ("),
        ("noise", 0.5, 0.25, "differ by 0.50 standard deviations, usual are up to 0.25 ("),
        ("orientation", -0.02004, 0.02, "higher by 0.02004, usual are up to 0.02000 ("),
        ("registration", -0.0312, -0.0308, "lower by 0.0312 than the training subjects', usual are up to 0.0308 ("),
        ("field_of_view", 0.978, 0.9796, "shows 97.8% of the region that has labels, usual are 98.0% or more ("),
        ("field_of_view", 0.4, 0.9796, "shows 40% of the region that has labels, usual are 98% or more ("),
    ],
)
def test_a_number_beyond_its_limit_reads_as_another_one(kind: str, value: float, limit: float, words: str) -> None:
    evidence = {kind: {"value": value, "limit": limit, "score": 1.01}}
    (reason,) = _verdict(evidence, "x").reasons
    assert words in reason


def test_the_user_is_warned_and_the_record_says_why(predictor: Predictor) -> None:
    image = lopsided(51)[0]
    usual = predictor.predict(image).record
    assert usual["verdict"]["result"] == "usual"
    assert not [text for text in usual["warnings"] if "not like" in text]
    unusual = predictor.predict(inverted(image), PredictOptions(minimum_quality=0.0)).record
    assert unusual["verdict"]["result"] == "unusual"
    assert unusual["verdict"]["false_alarms"] == FALSE_ALARMS
    assert unusual["verdict"]["reasons"][0] in unusual["warnings"][0]
    with pytest.raises(UnusualInputError, match="not like the training subjects"):
        predictor.predict(inverted(image), PredictOptions(strict=True))


def test_strict_refuses_writes_nothing_and_goes_on(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "in" / "anna.nii.gz", inverted(lopsided(51)[0]))
    write_volume(tmp_path / "in" / "bert.nii.gz", lopsided(51)[0])
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "in"), "-m", str(model.folder), "-o", str(out), "--threads", "1"]
    assert main([*words, "--strict", "--json"]) == 3
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert (set(result["written"]), set(result["failed"]), set(result["refused"])) == ({"bert"}, set(), {"anna"})
    assert "error: anna: the scan is not like the training subjects" in said.err
    assert sorted(path.name for path in out.iterdir()) == ["bert.json", "bert.nii.gz", "labels.ctbl", "labels.label"]
    assert json.loads((out / "bert.json").read_text(encoding="utf-8"))["verdict"]["result"] == "usual"
    # A case that failed is worse than one that was refused.
    (tmp_path / "in" / "carl.nii.gz").write_bytes(b"not an image")
    assert main([*words, "--strict", "--quiet"]) == 1


def test_a_scan_of_another_modality_than_the_channels_is_unusual(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = lopsided(51)[0]
    voxels, grid = np.rint(image.array[0]).astype(np.int16), image.grid
    for name, modality in (("mr", "MR"), ("pet", "PT"), ("made", "OT")):
        made = dicoms.slices(voxels, spacing=grid.spacing.tolist(), origin=grid.origin.tolist(), Modality=modality)
        dicoms.save(tmp_path / "in" / name, made)
    write_volume(tmp_path / "in" / "nifti.nii.gz", image)
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "in"), "-m", str(model.folder), "-o", str(out), "--threads", "1"]
    assert main(words) == 0
    told = "states the modality PT, and the channel is MR"
    assert "pet: the scan is not like the training subjects: its DICOM header " + told in capsys.readouterr().err
    verdicts = {path.stem: json.loads(path.read_text(encoding="utf-8"))["verdict"] for path in out.glob("*.json")}
    assert {name: verdict["result"] for name, verdict in verdicts.items()} == {
        "mr": "usual",
        "pet": "unusual",
        "made": "usual",
        "nifti": "usual",
    }
    assert verdicts["pet"]["reasons"] == ["its DICOM header " + told]
    assert main([*words, "--strict", "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert (set(result["kept"]), set(result["refused"])) == ({"mr", "made", "nifti"}, {"pet"})
    assert not (out / "pet.nii.gz").exists()
    with pytest.raises(UnusualInputError, match=told):
        AtlasNet.load(model.folder, execution=ONE).predict(tmp_path / "in" / "pet", strict=True)


def test_a_reason_from_elsewhere_makes_any_verdict_unusual() -> None:
    for result, own in (("usual", ()), ("unknown", ("too few subjects",)), ("unusual", ("noise",))):
        verdict = Verdict(result, own, {}).against(["of another kind"])
        assert verdict.result == "unusual"
        assert verdict.reasons == ("of another kind", *(own if result == "unusual" else ()))
    assert Verdict("usual", (), {}).against([]).result == "usual"


def test_what_was_made_of_an_unusual_scan_is_not_kept_by_a_strict_call(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "anna.nii.gz", inverted(lopsided(51)[0]))
    words = ["predict", str(tmp_path / "anna.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "seg.nii.gz")]
    code = main([*words, "--threads", "1", "--quiet"])
    if code == 0:
        assert main([*words, "--threads", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kept"]
    assert main([*words, "--threads", "1", "--strict", "--quiet"]) == 3
    assert not list(tmp_path.glob("seg*"))


def test_an_older_model_cannot_judge_and_says_so(model: Model, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns("work"))
    content = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    del content["typical"], content["dice_estimate"]
    del content["digest"]
    write_json(copy / "model.json", content | {"format": 1})
    older = Model.load(copy)
    assert older.checksums == model.checksums
    verdict = Predictor(older, execution=ONE).verdict(lopsided(51)[0])
    assert (verdict.result, verdict.score) == ("unknown", None)
    assert "an earlier version trained it" in verdict.reasons[0]
    write_volume(tmp_path / "a.nii.gz", lopsided(51)[0])
    words = ["predict", str(tmp_path / "a.nii.gz"), "-m", str(copy), "-o", str(tmp_path / "o.nii.gz"), "--strict"]
    assert main([*words, "--quiet"]) == 2


@pytest.mark.parametrize("part", ["quantiles", "points", "values"])
def test_a_damaged_record_of_the_training_subjects_is_refused(model: Model, tmp_path: Path, part: str) -> None:
    content = json.loads((model.folder / "model.json").read_text(encoding="utf-8"))
    content["typical"][part] = "nothing"
    del content["digest"]
    write_json(tmp_path / "model.json", content)
    with pytest.raises(ModelError, match="not complete"):
        Model.load(tmp_path)
