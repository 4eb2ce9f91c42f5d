"""An organ mask restricts training, predictions and scores; without one, a model that needs it says so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import atlasnet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, with_masks
from atlasnet.cohort.masks import check_masks
from atlasnet.cohort.phantom import write_phantom_cohort
from atlasnet.errors import CohortError, ModelError, VolumeError
from atlasnet.evaluation import PatchProtocol, evaluate_subject
from atlasnet.execution import Execution, read_json
from atlasnet.prediction import PredictOptions, Predictor
from atlasnet.prediction.record import organ_ml
from atlasnet.study import cross_validate
from atlasnet.training import recipe
from atlasnet.training.fit import fit
from atlasnet.training.mapping import map_labels
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import IGNORED, MappedCase
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, read_labels, read_volume, write_volume
from synthetic import subject

Capture = pytest.CaptureFixture[str]
ONE = Execution(threads=1)
SHAPE = (12, 24, 24)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=6, passes=0.0, batch_slices=4)
QUICK = FitOptions(atlases=("phantom_000",), width=0.25, preset=RECIPE, operator="centre")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort, and in ``masks`` everybody's lungs but for some slices, where disease is too."""
    folder = write_phantom_cohort(tmp_path_factory.mktemp("phantoms"), 3, shape=SHAPE, test_subjects=1)
    for path in sorted([*(folder / "labelsTr").iterdir(), *(folder / "labelsTs").iterdir()]):
        labels = read_labels(path)
        lungs = (labels.array > 0).astype(np.uint8)
        lungs[:, :4] = 0
        write_volume(folder / "masks" / path.name, labels.replace(lungs))
    return folder


@pytest.fixture(scope="module")
def cohort(data: Path) -> Cohort:
    return with_masks(Cohort.read(data), data / "masks")


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", QUICK, execution=ONE)


def scan(data: Path) -> tuple[Path, Volume, Volume]:
    """The test subject's file, image and mask."""
    path = data / "imagesTs" / "phantom_003_0000.nii.gz"
    return path, read_volume(path), read_labels(data / "masks" / "phantom_003.nii.gz")


def test_a_mask_is_mapped_as_labels_that_are_ignored_outside_it() -> None:
    _, labels = subject(3)
    random = np.random.default_rng(3)
    mask = labels.replace((random.random(labels.array.shape) < 0.7).astype(np.uint8))
    painted = labels.replace(np.where(mask.array == 0, 9, labels.array))
    forward = np.array([[0.98, 0.17, 0, 2], [-0.17, 0.98, 0, -1], [0, 0, 1, 1.5], [0, 0, 0, 1]])
    turned = Transform.affine(forward)
    grid = labels.grid.with_spacing((2.5, 2.5, 3.0))
    values, transform = (0, 2, 4), turned
    within = map_labels(labels, values, transform, grid, mask)
    assert np.array_equal(within.array, map_labels(painted, values, transform, grid).array)
    assert 0.1 < (within.array == IGNORED).mean() < 0.9


def test_what_lies_outside_the_masks_trains_nothing(model: Model, cohort: Cohort, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "data"
    shutil.copytree(data, other)
    random = np.random.default_rng(0)
    for one in cohort:
        labels, mask = one.read_labels(), one.read_mask()
        assert mask is not None
        noise = random.integers(0, 3, labels.array.shape).astype(labels.array.dtype)
        write_volume(
            other / "labelsTr" / f"{one.name}.nii.gz", labels.replace(np.where(mask.array, labels.array, noise))
        )
    same = fit(with_masks(Cohort.read(other), other / "masks"), tmp_path / "m", QUICK, execution=ONE)
    assert (same.plan, same.checksums) == (model.plan, model.checksums)
    assert same.atlases[0].region == model.atlases[0].region
    (case,) = (tmp_path / "m" / "work" / "mapped").glob("*/phantom_001.labels.npy")
    counted = np.asarray(MappedCase.open(case.parent, "phantom_001").labels) != IGNORED
    mask = cohort["phantom_001"].read_mask()
    assert mask is not None
    lungs = mask.array.sum() * np.prod(mask.grid.spacing)
    assert counted.sum() * np.prod(model.plan.spacing) == pytest.approx(lungs, rel=0.1)


def test_outside_the_mask_is_background_and_inside_nothing_changes(model: Model, data: Path) -> None:
    _, image, mask = scan(data)
    predictor, wanted = Predictor(model, execution=ONE), PredictOptions(probabilities=True, agreement=True)
    everywhere = predictor.predict(image, wanted, mask=mask.replace(np.ones_like(mask.array)))
    within = predictor.predict(image, wanted, mask=mask)
    inside = mask.array[0] != 0
    assert within.probabilities is not None
    assert everywhere.probabilities is not None
    assert np.array_equal(within.labels.array, np.where(mask.array, everywhere.labels.array, 0))
    assert np.array_equal(within.probabilities.array[:, inside], everywhere.probabilities.array[:, inside])
    assert np.array_equal(np.unique(within.probabilities.array[:, ~inside], axis=1), [[1], [0], [0]])
    assert everywhere.labels.array[0, ~inside].any()
    record, voxel_ml = within.record, float(np.prod(image.grid.spacing)) / 1000
    assert record["organ_mask_ml"] == pytest.approx(inside.sum() * voxel_ml, abs=1e-3)
    assert sum(record["volumes_ml"].values()) <= record["organ_mask_ml"]


def test_the_volume_of_a_vessel_in_micro_ct_is_not_none() -> None:
    mask, fine = np.ones((20, 20, 20), bool), Grid.from_parts((20, 20, 20), (0.01, 0.01, 0.01))
    assert organ_ml(mask, fine) == pytest.approx(8e-6)
    assert organ_ml(mask, Grid.from_parts((20, 20, 20), (7.7, 7.7, 7.7))) == pytest.approx(8 * 7.7**3, abs=1e-4)


def test_a_scan_in_another_orientation_takes_its_mask_along(model: Model, data: Path) -> None:
    _, image, mask = scan(data)
    turned = [Volume(np.ascontiguousarray(v.array[:, ::-1]), replace(v.grid, affine=flipped(v))) for v in (image, mask)]
    predictor = Predictor(model, execution=ONE)
    plain, other = predictor.predict(image, mask=mask), predictor.predict(turned[0], mask=turned[1])
    assert np.array_equal(other.labels.array[:, ::-1], plain.labels.array)


def flipped(volume: Volume) -> np.ndarray:
    """The affine of the volume with its slices in the other order."""
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, 2] * (volume.grid.shape[0] - 1)
    affine[:3, 2] *= -1
    return affine


def test_without_a_mask_the_model_says_what_mends_it(model: Model, data: Path, tmp_path: Path, capsys: Capture) -> None:
    path, image, mask = scan(data)
    assert model.organ_mask
    assert model.summary()["organ_mask"]
    with pytest.raises(ModelError, match="--organ-mask"):
        Predictor(model, execution=ONE).predict(image)
    out = tmp_path / "out"
    words = ["predict", str(path), "-m", str(model.folder), "-o", str(out), "--threads", "1", "--json"]
    assert main(words) == 2
    assert "--organ-mask" in capsys.readouterr().err
    assert main([*words, "--organ-mask", str(data / "labelsTr")]) == 2
    assert "none for phantom_003" in capsys.readouterr().err
    assert not out.exists()
    masks = tmp_path / "masks"
    write_volume(masks / "phantom_003.nii.gz", mask)
    assert main([*words, "--organ-mask", str(masks)]) == 0
    assert main([*words, "--organ-mask", str(masks / "phantom_003.nii.gz")]) == 0
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["kept"]) == ["phantom_003"]
    first = read_labels(out / "phantom_003.nii.gz").array
    smaller = mask.array.copy()
    smaller[:, :8] = 0
    write_volume(masks / "phantom_003.nii.gz", mask.replace(smaller))
    assert main([*words, "--organ-mask", str(masks)]) == 0
    assert list(json.loads(capsys.readouterr().out)["written"]) == ["phantom_003"]
    assert np.array_equal(read_labels(out / "phantom_003.nii.gz").array, np.where(smaller, first, 0))
    net = atlasnet.AtlasNet.load(model.folder, execution=ONE)
    assert np.array_equal(net.predict(path, mask=mask).labels.array, first)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("empty", "empty"), ("grid", "does not lie on the grid"), ("absent", "no organ mask for 1 of 3")],
)
def test_a_bad_mask_is_told_before_any_work(data: Path, tmp_path: Path, fault: str, said: str, capsys: Capture) -> None:
    masks = tmp_path / "masks"
    shutil.copytree(data / "masks", masks)
    path = masks / "phantom_002.nii.gz"
    mask = read_labels(path)
    if fault == "absent":
        path.unlink()
    else:
        write_volume(path, mask.replace(0 * mask.array) if fault == "empty" else Volume(mask.array, moved(mask)))
    words = ["train", str(data), "-o", str(tmp_path / "m"), "--organ-mask", str(masks), "--epochs", "1"]
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
    words = ["evaluate", str(data / "labelsTr"), str(data / "labelsTr"), "-o", str(tmp_path / "t.json")]
    assert main([*words, "--organ-mask", str(masks)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def moved(volume: Volume) -> object:
    """Its grid, a voxel further on."""
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, 0]
    return replace(volume.grid, affine=affine)


def test_a_mask_of_a_few_subjects_only_is_refused(cohort: Cohort) -> None:
    one, *others = cohort.subjects
    with pytest.raises(CohortError, match=f"none for {one.name}"):
        check_masks([replace(one, mask=None), *others])


def test_a_mask_in_memory_is_checked_too(model: Model, data: Path) -> None:
    _, image, mask = scan(data)
    predictor = Predictor(model, execution=ONE)
    for wrong in (mask.replace(0 * mask.array), Volume(mask.array, moved(mask))):
        with pytest.raises(VolumeError, match="organ mask"):
            predictor.predict(image, mask=wrong)


def test_scores_are_those_of_maps_that_are_background_outside() -> None:
    labels = {"shell": 2, "core": 4}
    (_, truth), random = subject(5), np.random.default_rng(5)
    found = truth.replace(np.roll(truth.array, (1, 1), (2, 3)))
    truth = truth.replace(np.where(random.random(truth.array.shape) < 0.02, 9, truth.array))
    mask = truth.replace(np.zeros_like(truth.array))
    mask.array[:, 2:9, 5:20, 3:25] = 1
    got = evaluate_subject(found, truth, labels, ignore_label=9, per_slice=True, mask=mask)
    cut = [v.replace(v.array * mask.array) for v in (found, truth)]
    assert got == evaluate_subject(*cut, labels, ignore_label=9, per_slice=True)
    assert got.rows[0].volume_ml < evaluate_subject(found, truth, labels, ignore_label=9).rows[0].volume_ml


def test_the_mask_is_the_region_of_the_patches_where_no_other_is_named(cohort: Cohort) -> None:
    one = cohort.subjects[0]
    truth, mask = one.read_labels(), one.read_mask()
    assert mask is not None
    counts = PatchProtocol("disease", size=3).count(truth, truth, cohort.labels, mask=mask)
    # Told as a region of labels: everything in the masks is lung or disease.
    cut = truth.replace(truth.array * mask.array)
    assert counts == PatchProtocol("disease", ("lung", "disease"), size=3).count(cut, cut, cohort.labels)
    assert counts.healthy > 0


def test_folds_keep_to_the_masks(cohort: Cohort, tmp_path: Path) -> None:
    template = tmp_path / "template.nii.gz"
    image = cohort.subjects[0].read_image()
    write_volume(template, image.replace(image.array + 1))  # a scan of a subject could not be left out
    options = replace(QUICK, atlases=(str(template),))
    found = cross_validate(cohort, tmp_path / "cv", options, folds=2, execution=ONE)
    for row in found.table.rows:
        one = cohort[row.case]
        mask, truth = one.read_mask(), one.read_labels()
        assert mask is not None
        labels = read_labels(tmp_path / "cv" / "predictions" / f"{one.name}.nii.gz")
        assert not labels.array[mask.array == 0].any()
        there = (truth.array == cohort.labels[row.label]) & (mask.array != 0)
        assert row.reference_volume_ml == pytest.approx(there.sum() * np.prod(truth.grid.spacing) / 1000)


def test_a_study_keeps_to_the_masks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_PRESETS", {"default": RECIPE})
    words = ["study", str(data), "-o", str(tmp_path / "s"), "--organ-mask", str(data / "masks"), "--threads", "1"]
    words += ["--atlas", "phantom_000", "--only", "plain", "propagation", "--seeds", "1", "--width", "0.25"]
    assert main([*words, "--registration", "centre", "--quiet"]) == 0
    _, _, mask = scan(data)
    maps = list((tmp_path / "s" / "runs").glob("*/100/seed0/phantom_003.nii.gz"))
    assert len(maps) == 2
    truth = read_labels(data / "labelsTs" / "phantom_003.nii.gz")
    for path in maps:
        found = read_labels(path)
        assert not found.array[mask.array == 0].any()
        cut = truth.replace(truth.array * mask.array)
        dice = {row.label: row.dice for row in evaluate_subject(found, cut, {"lung": 1, "disease": 2}).rows}
        scores = read_json(path.with_name("phantom_003.json"))["scores"]
        assert {row["label"]: row["dice"] for row in scores} == dice
    assert "within organ masks" in (tmp_path / "s" / "study.html").read_text(encoding="utf-8")
    assert read_json(tmp_path / "s" / "study.json")["organ_mask"]
    # Without them, it is another study.
    assert main([*words[:4], *words[6:], "--registration", "centre", "--quiet"]) == 2


def test_an_update_keeps_to_what_the_model_was_trained_within(model: Model, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="within organ masks and the cohort has none"):
        fit(Cohort.read(data), tmp_path / "n", QUICK, update=model, execution=ONE)
