"""``--dry-run``: what would be done is what is done, and nothing is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Plan
from atlasnet.errors import InputError, ModelError, RegistrationError
from atlasnet.execution import Execution
from atlasnet.prediction import Ensemble, Prediction, Predictor, find_cases, predict_cases
from atlasnet.prediction.forecast import forecast_cases
from atlasnet.study import StudyOptions, forecast_study, run_study
from atlasnet.training.fit import fit
from atlasnet.training.forecast import forecast_fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import Keyed
from atlasnet.training.store import MappedCase
from atlasnet.training.transformer import Transformer
from atlasnet.transform import Transform
from atlasnet.volume import write_volume
from synthetic import subject, write_cohort

Capture = pytest.CaptureFixture[str]
RECIPE = replace(Recipe.preset("default"), epochs=3, iterations=2, passes=0.0, batch_slices=4, sharing="independent")
OPTIONS = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="affine")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(3)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Predictions are made with it; nothing is written into its folder."""
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS)


def content(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_what_is_measured_is_a_subject_that_has_something_to_segment(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "data", range(3))
    image, labels = subject(5, shape=(28, 56, 64))
    write_volume(folder / "imagesTr" / "s0_0000.nii.gz", image)
    write_volume(folder / "labelsTr" / "s0.nii.gz", labels.replace(np.zeros_like(labels.array)))
    alone, seen = Transformer.alone, []

    def noted(transformer: Transformer, source: Keyed, atlas: Keyed, transform: Transform) -> MappedCase:
        seen.append((source.name, atlas.name))
        return alone(transformer, source, atlas, transform)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "alone", noted)
        forecast_fit(Cohort.read(folder), tmp_path / "m", OPTIONS)
    assert seen == [("s1", "s0")]


def test_a_training_is_forecast_before_in_the_middle_and_after(cohort: Cohort, tmp_path: Path) -> None:
    before = forecast_fit(cohort, tmp_path / "m", OPTIONS)
    assert not (tmp_path / "m").exists()
    assert (before.pairs, before.epochs, before.chosen) == ((4, 0), (6, 0), None)
    assert before.cost is not None
    assert before.seconds["registration and mapping"] == pytest.approx(4 * before.cost.pair)
    assert before.seconds["networks"] == pytest.approx(6 * 2 * before.cost.step)

    # Other networks leave plan, atlases, registrations and mapped cases behind.
    other = replace(OPTIONS, preset=replace(RECIPE, epochs=1))
    model = fit(cohort, tmp_path / "m", other, work=tmp_path / "work")
    (tmp_path / "m" / "model.json").unlink()
    middle = content(tmp_path)
    found = forecast_fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "work")
    assert (found.pairs, found.epochs) == ((4, 4), (6, 0))
    assert found.chosen == tuple(atlas.name for atlas in model.atlases)
    assert found.plan == before.plan == Plan.read(tmp_path / "m" / "plan.json")
    assert content(tmp_path) == middle

    fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "work")
    after = forecast_fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "work")
    assert (after.finished, after.cost, after.seconds) == (True, None, {})
    with pytest.raises(ModelError, match="another folder"):
        forecast_fit(cohort, tmp_path / "m", replace(OPTIONS, atlases=1), work=tmp_path / "work")
    # A model elsewhere finds the same work done.
    elsewhere = forecast_fit(cohort, tmp_path / "other", OPTIONS, work=tmp_path / "work")
    assert (elsewhere.finished, elsewhere.pairs, elsewhere.epochs) == (False, (4, 4), (6, 6))
    assert elsewhere.seconds == {"registration and mapping": 0, "networks": 0}


@pytest.mark.parametrize(("sharing", "epochs"), [("first", 3 + 1), ("common", 3 + 1 + 1)])
def test_networks_that_share_are_counted_as_they_are_trained(
    cohort: Cohort, tmp_path: Path, sharing: str, epochs: int
) -> None:
    options = replace(OPTIONS, sharing=sharing, atlases=("s0", "s1"))
    fit(cohort, tmp_path / "m", options, work=tmp_path / "work")
    found = forecast_fit(cohort, tmp_path / "other", options, work=tmp_path / "work")
    assert found.epochs == (epochs, epochs)


def test_the_disk_that_a_training_is_said_to_take_is_what_it_takes(cohort: Cohort, tmp_path: Path) -> None:
    said = forecast_fit(cohort, tmp_path / "m", OPTIONS).disk_mib
    fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "work")
    for part, folder in (("work", tmp_path / "work"), ("model", tmp_path / "m")):
        taken = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        assert said[part] == pytest.approx(taken, rel=0.3)


def test_what_a_time_budget_decides_is_not_invented(cohort: Cohort, tmp_path: Path) -> None:
    found = forecast_fit(cohort, tmp_path / "m", replace(OPTIONS, time_budget=600.0))
    assert found.epochs is None
    assert list(found.seconds) == ["registration and mapping"]


def test_train_prints_the_plan_and_writes_nothing(cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    command = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--registration", "affine", "--width", "0.25"]
    assert main([*command, "--dry-run", "--folds", "3", "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["registrations"] == {"all": 6, "kept": 0}
    assert result["network"] == {"name": "unet", "width": 0.25, "options": {}}
    # Of each fold: two subjects onto each other, and the third onto both.
    assert result["folds"] == {"all": 3, "kept": 0, "registrations": 3 * (2 + 2)}
    assert result["peak_memory_mib"] > 0
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(
        word in said
        for word in ("networks work at", "time         about", "memory ", "disk ", "dry run: nothing was done")
    )
    assert not list(tmp_path.iterdir())


def test_predict_says_which_cases_are_missing(model: Model, tmp_path: Path, capsys: Capture) -> None:
    for number in range(3):
        write_volume(tmp_path / "in" / f"c{number}.nii.gz", subject(400 + number)[0])
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    cases = find_cases([tmp_path / "in"], 1)
    paths = {case.name: tmp_path / "out" / f"{case.name}.nii.gz" for case in cases}
    predict_cases(Predictor(model), cases[2:3], paths)
    before = content(tmp_path) | content(model.folder)
    command = ["predict", str(tmp_path / "in"), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*command, "--json", "--quiet"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["kept"], found["missing"], list(found["unreadable"])) == (["c1"], ["c0", "c2"], ["b"])
    assert found["seconds"] == pytest.approx(2 * sum(found["case_seconds"].values()), abs=0.1)
    assert main([*command, "--overwrite"]) == 1
    said = capsys.readouterr().out
    assert "to segment   c0, c1, c2" in said
    assert re.search(r"disk         about [1-9]\d* KiB of results", said)
    assert "would fail   b: " in said
    assert content(tmp_path) | content(model.folder) == before
    (tmp_path / "in" / "b.nii.gz").unlink()
    assert main([*command, "--quiet"]) == 0
    write_volume(tmp_path / "out" / "c0.nii.gz", subject(0)[1])  # a reference, say
    assert main(command) == 1
    assert "would fail   c0: " in capsys.readouterr().out


@pytest.mark.parametrize("maps", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_disk_that_predictions_are_said_to_take_is_what_they_take(
    model: Model, tmp_path: Path, capsys: Capture, maps: bool
) -> None:
    for number in range(2):
        write_volume(tmp_path / "in" / f"c{number}.nii.gz", subject(400 + number)[0])
    command = [
        "predict",
        str(tmp_path / "in"),
        "-m",
        str(model.folder),
        "-o",
        str(tmp_path / "out"),
        "--threads",
        "1",
    ]
    command += ["--probabilities", "--agreement", "--report"] if maps else []
    assert main([*command, "--dry-run", "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["disk_mib"]
    assert not (tmp_path / "out").exists()
    assert main([*command, "--quiet"]) == 0
    taken = sum(path.stat().st_size for path in (tmp_path / "out").glob("c*")) / 2**20
    assert said == pytest.approx(taken, rel=0.3)


def test_a_case_that_the_first_atlas_does_not_fit_is_measured_with_the_next(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(tmp_path / "c.nii.gz", subject(400)[0])
    cases = find_cases([tmp_path / "c.nii.gz"], 1)
    paths = {case.name: tmp_path / "out" / f"{case.name}.nii.gz" for case in cases}
    ask, first, unfit = Predictor.predict, model.atlases[0].name, [model.atlases[0].name]

    def picky(self: Predictor, *args: Any, **options: Any) -> Prediction:
        if self.ensemble.models[0].atlases[0].name in unfit:
            raise RegistrationError(f"could not be mapped onto {first}")
        return ask(self, *args, **options)

    monkeypatch.setattr(Predictor, "predict", picky)
    found = forecast_cases(Ensemble.of(model), cases, paths, execution=Execution(threads=1))
    assert (found.missing, found.unreadable) == (("c",), {})
    unfit.append(model.atlases[1].name)
    found = forecast_cases(Ensemble.of(model), cases, paths, execution=Execution(threads=1))
    assert (found.missing, [*found.unreadable]) == ((), ["c"])


def test_nothing_is_estimated_where_nothing_is_left(model: Model, tmp_path: Path) -> None:
    write_volume(tmp_path / "c.nii.gz", subject(400)[0])
    cases = find_cases([tmp_path / "c.nii.gz"], 1)
    paths = {"c": tmp_path / "out.nii.gz"}
    predict_cases(Predictor(model), cases, paths)
    found = forecast_cases(model, cases, paths)
    assert (found.missing, found.kept, found.seconds, found.peak_mib) == ((), ("c",), None, None)


def test_epochs_with_part_of_the_subjects_are_counted_with_their_steps(cohort: Cohort, tmp_path: Path) -> None:
    tests = Cohort.read(write_cohort(tmp_path / "tests", range(7, 8))).subjects
    options = StudyOptions(
        atlases=("s0",),
        methods=("augmented",),
        fractions=(0.5,),
        seeds=1,
        preset=replace(RECIPE, iterations=None, batch_slices=4),
        width=0.25,
    )
    found = forecast_study(cohort, tests, tmp_path / "study", options)
    (own,) = found.costs.values()
    assert own.steps > 2
    assert found.epochs == 3 + 3
    assert found.steps == {"own": 3 * own.steps + 3 * -(-own.steps // 2)}
    floor = replace(options, preset=RECIPE)  # this recipe has as many steps with fewer subjects
    assert forecast_study(cohort, tests, tmp_path / "study", floor).steps == {"own": (3 + 3) * 2}


def test_a_study_is_forecast_before_and_after(cohort: Cohort, tmp_path: Path, capsys: Capture) -> None:
    tests = Cohort.read(write_cohort(tmp_path / "tests", range(7, 9))).subjects
    options = StudyOptions(
        atlases=("s0", "s1"),
        methods=("plain", "ensemble", "propagation", "atlasnet"),
        seeds=1,
        preset=RECIPE,
        width=0.25,
        operator="affine",
    )
    before = forecast_study(cohort, tests, tmp_path / "study", options)
    assert not (tmp_path / "study").exists()
    assert [missing for _, missing in before.jobs] == [2, 2, 2, 2]
    assert set(before.costs) == set(before.steps) == {"atlases", "own"}
    of_networks = sum(before.steps[space] * before.costs[space].step for space in ("atlases", "own"))
    assert before.seconds["networks"] == pytest.approx(of_networks)
    # Networks of a scan, results of it and networks in these: 1, 1, 1; 2, 1, 2; with one and both atlases 2, 2, 3.
    own, atlases = before.scans["own"], before.scans["atlases"]
    of_scan = 3 * own.ask + 3 * own.fuse + 2 * own.score + 2 * atlases.ask + 3 * atlases.fuse + 2 * atlases.score
    of_scan += 2 * atlases.carry[False] + atlases.score
    assert before.seconds["segmenting and scoring"] == pytest.approx(2 * of_scan)
    # The plain network is the first of the ensemble's two; AtlasNet has a network for each atlas.
    assert (before.models, before.epochs) == ((3, 0), 3 + 3 + 2 * 3)
    assert before.pairs == (2 * 2 + 2 * 2, 0)
    run_study(cohort, tests, tmp_path / "study", options)
    kept = (tmp_path / "study" / name for name in ("models", "work"))
    taken = sum(path.stat().st_size for folder in kept for path in folder.rglob("*") if path.is_file()) / 2**20
    assert before.disk_mib == pytest.approx(taken, rel=0.3)
    held = content(tmp_path)
    after = forecast_study(cohort, tests, tmp_path / "study", options)
    assert after.finished
    assert (after.models, after.pairs, after.costs, after.disk_mib) == ((3, 3), (8, 8), {}, None)
    more = forecast_study(cohort, tests, tmp_path / "study", replace(options, seeds=2))
    assert {(job.method.name, job.seed): missing for job, missing in more.jobs if missing} == {
        ("plain", 1): 2,
        ("ensemble", 1): 2,
        ("atlasnet", 1): 2,
    }
    with pytest.raises(InputError, match="other settings"):
        forecast_study(cohort, tests, tmp_path / "study", replace(options, width=0.5))
    assert content(tmp_path) == held
    command = ["study", str(cohort.root), "--test", str(tmp_path / "tests"), "-o", str(tmp_path / "new"), "--dry-run"]
    command += ["--atlas", "s0", "--only", "plain", "--seeds", "2", "--epochs", "1"]
    assert main([*command, "--network", "segnet", "--width", "0.25"]) == 0
    said = capsys.readouterr().out
    assert "network                 segnet, width 0.25, batches" in said
    assert "plain, seed 1: 2 of 2 tests to segment" in said
    assert "segmenting and scoring" in said
    assert not (tmp_path / "new").exists()
