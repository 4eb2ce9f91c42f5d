"""What an updated model knows of the subjects that its networks have learnt from, be they there still or not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlasnet.cohort import Cohort
from atlasnet.execution import Execution, SilentReporter, write_json
from atlasnet.prediction import Predictor
from atlasnet.registration import make_operator
from atlasnet.training.evidence import POINTS, SHARES, united_points
from atlasnet.training.fit import fit
from atlasnet.training.mapping import prepare
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.typical import KINDS, Typical
from atlasnet.volume import Volume, canonical, write_volume
from synthetic import subject, write_cohort

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4)
THEN = FitOptions(preset=RECIPE)
OLD, NEW = ["s0", "s1", "s2", "s3"], ["s4", "s5"]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(6)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> FitOptions:
    """Of a first training: an image from elsewhere is the atlas, so that every subject is registered onto it."""
    path = tmp_path_factory.mktemp("template") / "template.nii.gz"
    write_volume(path, subject(60)[0])
    return FitOptions(atlases=(str(path),), width=0.25, preset=RECIPE, operator="affine")


@pytest.fixture(scope="module")
def model(cohort: Cohort, first: FitOptions, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort.select(OLD), tmp_path_factory.mktemp("model") / "m", first, execution=ONE)


@pytest.fixture(scope="module")
def updated(cohort: Cohort, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """With new subjects alone."""
    return fit(cohort.select(NEW), tmp_path_factory.mktemp("updated") / "m", THEN, update=model, execution=ONE)


@pytest.fixture(scope="module")
def whole(cohort: Cohort, model: Model, first: FitOptions, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained on the old and the new subjects at once."""
    folder = tmp_path_factory.mktemp("whole") / "m"
    folder.mkdir()
    model.plan.write(folder / "plan.json")
    return fit(cohort, folder, first, execution=ONE)


def record(model: Model) -> Typical:
    assert model.typical is not None
    return model.typical


def counts(model: Model) -> set[int]:
    """How many numbers there are of each kind."""
    return {len(record(model).values[kind.name]) for kind in KINDS}


def quantiles(model: Model, image: Volume) -> NDArray[np.float64]:
    """Of a single channel, as thinned for the plan's spacing."""
    prepared = prepare(canonical(image)[0], model.plan)
    x, y, z = np.maximum(1, np.rint(np.asarray(model.plan.spacing) / prepared.grid.spacing)).astype(int).tolist()
    return np.quantile(prepared.array[0, ::z, ::y, ::x], SHARES)


def without(model: Model, folder: Path) -> Model:
    """The model as a version wrote it that kept no record."""
    shutil.copytree(model.folder, folder, ignore=shutil.ignore_patterns("work"))
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del content["typical"]
    del content["digest"]
    write_json(folder / "model.json", content | {"format": 1})
    return Model.load(folder)


def test_means_and_numbers_are_those_of_old_and_new_subjects_together(
    model: Model, updated: Model, whole: Model
) -> None:
    found, expected = record(updated), record(whole)
    assert counts(updated) == counts(whole) == {6}
    assert found.quantiles == pytest.approx(expected.quantiles, abs=2e-5)
    assert found.quality == pytest.approx(expected.quality)
    for kind in ("noise", "orientation"):  # what a subject has by itself
        assert found.values[kind] == expected.values[kind]
    for kind in ("intensities", "registration", "field_of_view"):  # what the old ones had among themselves stays
        assert set(record(model).values[kind]) <= set(found.values[kind])


def test_a_new_subject_is_compared_with_all_others_old_and_new(cohort: Cohort, model: Model, updated: Model) -> None:
    own = {name: quantiles(model, cohort[name].read_image()) for name in OLD + NEW}
    operator, atlas = make_operator("affine", **model.operator_settings), model.atlas_image(model.atlases[0])
    quality = {
        name: operator.register(canonical(cohort[name].read_image())[0], [atlas], execution=ONE)[0].record["quality"]
        for name in OLD + NEW
    }
    for name in NEW:
        others = [other for other in OLD + NEW if other != name]
        distance = np.abs(own[name] - np.mean([own[other] for other in others], axis=0)).mean()
        above = quality[name] - np.mean([quality[other] for other in others])
        assert np.isclose(record(updated).values["intensities"], distance, atol=2e-5).any()
        assert np.isclose(record(updated).values["registration"], above, atol=2e-5).any()


def test_one_new_subject_leaves_a_verdict_that_knows_the_old_ones(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    found = fit(cohort.select(["s4"]), tmp_path / "m", THEN, update=model, execution=ONE)
    assert counts(found) == {5}
    old, _ = subject(50)
    noisy = old.replace(old.array + np.random.default_rng(0).normal(0, 300, old.array.shape).astype(np.float32))
    predictor = Predictor(found, execution=ONE)
    assert predictor.verdict(old).result == "usual"
    assert predictor.verdict(noisy).result == "unusual"


def test_a_subject_that_is_there_still_is_counted_once(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    shutil.copytree(cohort.root, tmp_path / "data")
    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):  # whatever it is called now
        place = tmp_path / "data" / folder
        (place / f"s1{ending}.nii.gz").rename(place / f"renamed{ending}.nii.gz")
    some = Cohort.read(tmp_path / "data").select(["s0", "renamed", "s4"])
    found = fit(some, tmp_path / "m", THEN, update=model, execution=ONE)
    assert counts(found) == {5}


def test_with_all_old_subjects_there_the_record_is_that_of_a_training_on_all(
    cohort: Cohort, model: Model, whole: Model, tmp_path: Path
) -> None:
    found = fit(cohort, tmp_path / "m", THEN, update=model, execution=ONE)
    assert record(found).to_json() == record(whole).to_json()


def test_a_reference_that_was_mended_makes_no_other_scan_of_it(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    shutil.copytree(cohort.root, tmp_path / "data")
    write_volume(tmp_path / "data" / "labelsTr" / "s1.nii.gz", subject(1)[1].replace(0 * subject(1)[1].array))
    found = fit(Cohort.read(tmp_path / "data").select(OLD), tmp_path / "m", THEN, update=model, execution=ONE)
    assert found.provenance["update"]["changed"] == ["s1"]
    assert counts(found) == {4}


def test_networks_that_are_trained_anew_know_nobody_but_the_cohort(
    cohort: Cohort, model: Model, first: FitOptions, tmp_path: Path
) -> None:
    some = cohort.select(["s3", *NEW])
    found = fit(some, tmp_path / "m", replace(THEN, sharing="independent"), update=model, execution=ONE)
    (tmp_path / "new").mkdir()
    model.plan.write(tmp_path / "new" / "plan.json")
    new = fit(some, tmp_path / "new", first, execution=ONE)
    assert record(found).to_json() == record(new).to_json()


def test_updates_one_after_another_forget_nobody(cohort: Cohort, updated: Model, tmp_path: Path) -> None:
    write_cohort(tmp_path / "data", [7])
    again = fit(Cohort.read(tmp_path / "data"), tmp_path / "m", THEN, update=updated, execution=ONE)
    assert counts(again) == {7}
    # The new subjects of the first update are there still, those from before it are not.
    shutil.copytree(cohort.root, tmp_path / "data", dirs_exist_ok=True)
    more = Cohort.read(tmp_path / "data").select([*NEW, "s7"])
    found = fit(more, tmp_path / "n", THEN, update=updated, execution=ONE)
    assert record(found).values == record(again).values


def test_an_atlas_that_is_new_is_known_by_the_subjects_that_were_registered_onto_it(
    cohort: Cohort, model: Model, tmp_path: Path
) -> None:
    options = replace(THEN, atlases=("s4",))
    found = fit(cohort.select(["s0", *NEW]), tmp_path / "m", options, update=model, execution=ONE)
    assert set(record(found).points) == set(record(found).quality) == {"template", "s4"}
    assert counts(found) == {6}
    (reached,) = (atlas.quality for atlas in found.atlases if atlas.name == "s4")
    # Of two subjects, s0 and s5, the mean is the median.
    assert record(found).quality["s4"] == pytest.approx(reached["median"])


def test_of_a_model_without_a_record_the_cohort_is_all_that_is_known(
    cohort: Cohort, model: Model, tmp_path: Path
) -> None:
    older, reporter = without(model, tmp_path / "old"), SilentReporter()
    found = fit(cohort.select(NEW), tmp_path / "m", THEN, update=older, execution=replace(ONE, reporter=reporter))
    assert len(record(found).values["noise"]) == len(NEW)
    assert any("no record of what its training subjects are like" in text for text in reporter.warnings)
    silent = SilentReporter()
    fit(cohort, tmp_path / "n", THEN, update=older, execution=replace(ONE, reporter=silent))
    assert silent.warnings == []


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_as_many_points_of_the_region_are_old_as_subjects_are(share: float) -> None:
    old, new = np.zeros((POINTS, 3)), np.ones((POINTS, 3))
    united = united_points(old, new, share)
    assert united.shape == (POINTS, 3)
    assert (united == 0).all(1).mean() == pytest.approx(share)
    # Those of both are thinned alike when others come.
    again = united_points(united, np.full((POINTS, 3), 2.0), 0.5)
    assert (again == 0).all(1).sum() == pytest.approx(share * POINTS / 2, abs=1)
    assert np.array_equal(united_points(np.empty((0, 3)), new, share), new)
    assert np.array_equal(united_points(old, np.empty((0, 3)), share), old)
