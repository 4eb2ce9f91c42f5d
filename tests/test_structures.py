"""Structures of several label values, from `dataset.json` to networks, records, tables and a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlasnet import AtlasNet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import CohortError, InputError, ModelError
from atlasnet.evaluation import evaluate_folder, evaluate_subject
from atlasnet.execution import Execution, read_json, write_json
from atlasnet.prediction.ensemble import Ensemble
from atlasnet.study import StudyOptions, read_test_subjects, run_study, summarise
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Grid, Volume, read_labels, write_labels
from pages import check
from synthetic import write_cohort, write_study_cohort

RECIPE = replace(Recipe.preset("default"), epochs=2, iterations=6, passes=0.0, batch_slices=8)
OPTIONS = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="centre", loss_weights={"core": 2.0})
ONE = Execution(threads=1)


def declare_regions(folder: Path, labels: dict[str, object] | None = None) -> Path:
    """The whole of shell (2) and core (4), and the core; the shell alone has no name."""
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"labels": labels or {"background": 0, "whole": [2, 4], "core": 4}})
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = write_study_cohort(tmp_path_factory.mktemp("cohort"), range(3), ("t0", "t1"))
    return Cohort.read(declare_regions(folder))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS, execution=ONE)


def test_a_region_has_the_scores_of_its_values_as_one_label() -> None:
    random = np.random.default_rng(0)
    grid = Grid.from_parts((5, 9, 8), (1.0, 0.7, 2.0))
    found, truth = (random.choice([0, 1, 2, 7], (5, 9, 8)).astype(np.uint8) for _ in range(2))
    merged = (Volume(np.isin(array, (2, 7)).astype(np.uint8), grid) for array in (found, truth))
    expected = evaluate_subject(*merged, {"both": 1}, per_slice=True)
    whole = evaluate_subject(Volume(found, grid), Volume(truth, grid), {"both": (2, 7)}, per_slice=True)
    assert whole.rows == expected.rows
    slices = {row.slice: row for row in expected.slices}
    assert [row for row in whole.slices if row.slice in slices] == list(slices.values())


def test_what_is_ignored_is_no_part_of_a_region() -> None:
    grid = Grid.from_parts((1, 1, 4), (1.0, 1.0, 1.0))
    found, truth = (Volume(np.array([[values]], dtype=np.uint8), grid) for values in ((1, 1, 0, 0), (1, 2, 3, 0)))
    (row,) = evaluate_subject(found, truth, {"all": (1, 2, 3)}, ignore_label=2).rows
    assert row.dice == pytest.approx(2 / 3)
    assert row.reference_volume_ml == pytest.approx(0.002)


def test_the_model_knows_its_structures_and_is_not_trained_again(cohort: Cohort, model: Model) -> None:
    assert model.structures == {"whole": (2, 4), "core": 4}
    assert "unet, labels whole, core, channels MR" in repr(model)
    assert dict(model.labels) == {"background": 0, "label 2": 2, "core": 4}
    assert model.provenance["loss_weights"] == {"core": 2.0}
    before = (model.folder / "model.json").read_bytes()
    assert fit(cohort, model.folder, OPTIONS, execution=ONE).checksum == model.checksum
    assert (model.folder / "model.json").read_bytes() == before
    with pytest.raises(ModelError, match="finished model that was trained with other"):
        fit(cohort, model.folder, replace(OPTIONS, loss_weights={}), execution=ONE)
    with pytest.raises(InputError, match="nothing of this name"):
        fit(cohort, model.folder, replace(OPTIONS, loss_weights={"lesion": 2.0}), execution=ONE)


def test_regions_and_weights_change_what_is_learnt(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    weights = {path.name: path.read_bytes() for path in (model.folder / "networks").iterdir()}
    plain = replace(cohort, regions={})
    for other, options in ((cohort, replace(OPTIONS, loss_weights={})), (plain, OPTIONS)):
        folder = tmp_path / str(len(other.regions))
        fit(other, folder, options, work=model.folder / "work", execution=ONE)
        assert all((folder / "networks" / name).read_bytes() != content for name, content in weights.items())


def test_predictions_hold_values_and_records_regions(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    net = AtlasNet.load(model.folder, execution=ONE)
    prediction = net.predict(cohort.root / "imagesTs" / "t0_0000.nii.gz")
    found = prediction.labels.array
    assert set(np.unique(found)) <= {0, 2, 4}
    ml = np.prod(prediction.labels.grid.spacing) / 1000
    record = prediction.record
    volumes = {"whole": (found > 0).sum() * ml, "core": (found == 4).sum() * ml}
    assert record["volumes_ml"] == pytest.approx(volumes, rel=1e-4)
    assert [*record["agreement"]["pairwise_dice"]] == ["whole", "core"]
    assert "whole" in repr(prediction)
    net.predict_all(cohort.root / "imagesTs", tmp_path, report=True)
    page = check(tmp_path / "report.html")
    assert "whole, ml" in page.text
    assert "core, ml" in page.text
    assert "label 2" not in page.text


def test_a_cohort_with_other_regions_is_not_the_models(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    other = replace(cohort, regions={"all": (2, 4), "core": 4})
    with pytest.raises(CohortError, match="has not the labels of the model"):
        AtlasNet.load(model.folder, execution=ONE).evaluate(other, tmp_path)
    with pytest.raises(ModelError, match="the cohort's regions are not the model's"):
        fit(other, tmp_path / "m", FitOptions(preset=RECIPE), update=model, execution=ONE)
    plain = fit(replace(cohort, regions={}), tmp_path / "plain", replace(OPTIONS, loss_weights={}), execution=ONE)
    with pytest.raises(ModelError, match="models of different regions"):
        Ensemble((model, plain), ("a", "b"))


def test_an_update_weights_the_loss_as_its_model_did(model: Model, tmp_path: Path) -> None:
    more = Cohort.read(declare_regions(write_cohort(tmp_path / "more", range(4))))
    updated = fit(more, tmp_path / "m", FitOptions(preset=RECIPE), update=model, execution=ONE)
    assert updated.provenance["loss_weights"] == {"core": 2.0}
    assert updated.structures == model.structures


def test_a_model_whose_regions_have_no_label_is_not_read(model: Model, tmp_path: Path) -> None:
    content = read_json(model.folder / "model.json")
    del content["digest"]
    for regions, message in (({"whole": [2, 9]}, "a region has a value that no label has"), ([1], "not complete")):
        write_json(tmp_path / "model.json", content | {"regions": regions})
        with pytest.raises(ModelError, match=message):
            Model.load(tmp_path, verify=False)


def test_a_folder_is_scored_by_the_regions_that_are_declared(cohort: Cohort, tmp_path: Path) -> None:
    for subject in cohort:
        labels = subject.read_labels()
        labels.array[labels.array == 2] = 4
        write_labels(tmp_path / f"{subject.name}.nii.gz", labels)
    references = cohort.root / "labelsTr"
    table = evaluate_folder(tmp_path, references)
    assert table.as_json()["labels"] == {"whole": (2, 4), "core": 4}
    assert all(row.dice == 1 for row in table.rows if row.label == "whole")
    assert all(row.dice < 1 for row in table.rows if row.label == "core")
    assert [*evaluate_folder(tmp_path, references, labels=["2", "whole"]).labels] == ["label 2", "whole"]
    with pytest.raises(InputError, match="one of label 2, core, whole"):
        evaluate_folder(tmp_path, references, labels=["shell"])


def test_a_value_outside_of_all_regions_is_scored_under_its_number(cohort: Cohort, tmp_path: Path) -> None:
    for folder in ("found", "labelsTr"):
        for subject in cohort:
            labels = subject.read_labels()
            labels.array[:, :2] = 9
            (tmp_path / folder).mkdir(exist_ok=True)
            write_labels(tmp_path / folder / f"{subject.name}.nii.gz", labels)
    (tmp_path / "dataset.json").write_bytes((cohort.root / "dataset.json").read_bytes())
    assert evaluate_folder(tmp_path / "found", tmp_path / "labelsTr").labels == {"whole": (2, 4), "core": 4, "9": 9}


def test_a_study_scores_regions(cohort: Cohort, tmp_path: Path) -> None:
    options = StudyOptions(atlases=2, methods=("propagation",), seeds=1, operator="affine")
    tests = read_test_subjects(cohort.root, cohort)
    study = run_study(cohort, tests, tmp_path / "s", options, execution=ONE)
    found = summarise(study)
    assert found["labels"] == {"whole": (2, 4), "core": 4}
    assert [*found["methods"]["propagation"]["labels"]] == ["whole", "core"]
    (result, *_) = study.results
    labels = read_labels(study.folder / result.run.folder / f"{result.case}.nii.gz")
    (test,) = (test for test in tests if test.name == result.case)
    whole = {"whole": next(row["dice"] for row in result.scores if row["label"] == "whole")}
    a, b = labels.array > 0, test.read_labels().array > 0
    assert whole["whole"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    with pytest.raises(InputError, match="labels"):
        run_study(replace(cohort, regions={}), tests, tmp_path / "s", options, execution=ONE)


def test_the_command_line_tells_regions_and_takes_weights(
    cohort: Cohort, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(cohort.root)]) == 0
    assert "label 2 = 2, core = 4; region whole = 2 + 4" in capsys.readouterr().out
    assert main(["check", str(cohort.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["regions"] == {"whole": [2, 4], "core": 4}
    for subject in told["fingerprint"]["subjects"]:
        volumes = subject["label_ml"]
        assert volumes["whole"] == pytest.approx(volumes["label 2"] + volumes["core"], abs=1e-5)
    assert main(["model", "info", str(model.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regions"] == {"whole": [2, 4], "core": 4}
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--width", "0.25", "--epochs", "1", "--atlases", "1"]
    words += ["--registration", "affine", "--threads", "1", "--quiet", "--loss-weights", "core=3", "whole = 0.5"]
    assert main(words) == 0
    assert Model.load(tmp_path / "m").provenance["loss_weights"] == {"core": 3.0, "whole": 0.5}
    assert main([*words, "core=2"]) == 2
    assert "a label has two weights in the loss" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "core"])
    assert "expected something like lesion=3" in capsys.readouterr().err
