"""`train --update`: cases and atlases are added to a model, and what it had stays."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlasnet import AtlasNet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import Cancelled, InputError, ModelError
from atlasnet.execution import Execution, SilentReporter, digest, write_json
from atlasnet.network.weights import read_tensors
from atlasnet.study import StudyOptions
from atlasnet.training.fit import fit
from atlasnet.training.forecast import forecast_fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing
from atlasnet.training.update import Update
from atlasnet.volume import write_volume
from synthetic import subject, write_cohort

RECIPE = replace(Recipe.preset("default"), epochs=2, iterations=2, passes=0.0, batch_slices=4)
FIRST = FitOptions(atlases=("s100", "s101"), width=0.25, preset=RECIPE, sharing="independent", operator="centre")
THEN = FitOptions(preset=RECIPE)
ONE = Execution(threads=1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Three subjects that the model knows, and a new one."""
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(100, 104)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model") / "m"
    return fit(cohort.select(["s100", "s101", "s102"]), folder, FIRST, execution=ONE)


@pytest.fixture(scope="module")
def updated(cohort: Cohort, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """With one subject and one atlas more."""
    options = replace(THEN, atlases=("s102",))
    return fit(cohort, tmp_path_factory.mktemp("updated") / "m", options, update=model, execution=ONE)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pairs(work: Path) -> set[str]:
    return {path.name for path in work.glob("registrations/*")}


def distance(first: Path, second: Path) -> float:
    """Of what the optimiser changes."""
    one, other = read_tensors(first)[0], read_tensors(second)[0]
    names = [name for name in one if "running" not in name and "tracked" not in name]
    return max(float((one[name] - other[name]).abs().max()) for name in names)


def changed(cohort: Cohort, folder: Path, name: str) -> Cohort:
    """The cohort with another image and reference of one subject."""
    shutil.copytree(cohort.root, folder)
    for volume, path in zip(subject(70), (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"), strict=True):
        write_volume(folder / path, volume)
    return Cohort.read(folder)


def test_only_new_pairs_are_registered(
    cohort: Cohort, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlasnet.registration.linear import CentreOperator

    made = []
    register = CentreOperator.find
    monkeypatch.setattr(CentreOperator, "find", lambda *given: made.append(given) or register(*given))
    with_case = fit(cohort, tmp_path / "case", THEN, update=model, execution=ONE)
    assert len(made) == 2  # the new subject onto two atlases
    old, new = pairs(model.folder / "work"), pairs(with_case.folder / "work")
    assert (len(old), len(new - old), old - new) == (4, 2, set())
    fit(cohort, tmp_path / "atlas", replace(THEN, atlases=("s103",)), update=with_case, execution=ONE)
    assert len(made) == 2 + 3  # three subjects onto the new atlas, which is the fourth


def test_old_atlases_stay_bit_for_bit_and_the_old_model_too(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    before = content(model.folder)
    found = fit(cohort, tmp_path / "m", replace(THEN, atlases=("s103",)), update=model, execution=ONE)
    assert content(model.folder) == before
    assert [atlas.name for atlas in found.atlases] == ["s100", "s101", "s103"]
    assert {name: found.checksums[f"atlases/{name}.nii.gz"] for name in ("s100", "s101")} == {
        name: model.checksums[f"atlases/{name}.nii.gz"] for name in ("s100", "s101")
    }
    assert (found.plan, found.network, found.labels) == (model.plan, model.network, model.labels)
    assert (found.operator, found.operator_settings) == (model.operator, model.operator_settings)


def test_networks_go_on_from_the_models_weights(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    still = replace(THEN, atlases=("s103",), sharing=Sharing("model", tuning=0.5, rate=1e-7))
    found = fit(cohort, tmp_path / "m", still, update=model, execution=ONE)
    weights = {atlas.name: found.weights_path(atlas) for atlas in found.atlases}
    before = {atlas.name: model.weights_path(atlas) for atlas in model.atlases}
    assert distance(weights["s100"], before["s100"]) < 1e-5
    assert distance(weights["s101"], before["s101"]) < 1e-5
    assert distance(weights["s103"], before["s100"]) < 1e-5
    assert distance(before["s100"], before["s101"]) > 1e-3
    rows = (found.folder / "log" / "s103.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 1  # half of two epochs


def test_trained_anew_it_is_the_model_that_all_of_it_would_have_given(
    cohort: Cohort, model: Model, tmp_path: Path
) -> None:
    options = replace(THEN, sharing="independent", atlases=("s103",))
    found = fit(cohort, tmp_path / "m", options, update=model, execution=ONE)
    (tmp_path / "all").mkdir()
    model.plan.write(tmp_path / "all" / "plan.json")
    whole = fit(cohort, tmp_path / "all", replace(FIRST, atlases=("s100", "s101", "s103")), execution=ONE)
    assert found.checksums == whole.checksums


@pytest.mark.parametrize("stop", ["registrations", "networks"])
def test_an_interrupted_update_goes_on_with_the_same_result(
    cohort: Cohort, model: Model, updated: Model, tmp_path: Path, stop: str
) -> None:
    options, work = replace(THEN, atlases=("s102",)), tmp_path / "m" / "work"
    begun = {
        "registrations": lambda: len(pairs(work) - pairs(model.folder / "work")) == 2,
        "networks": lambda: len(list(work.glob("networks/*/network.safetensors"))) == 2,
    }[stop]
    with pytest.raises(Cancelled):
        fit(cohort, tmp_path / "m", options, update=model, execution=replace(ONE, cancelled=begun))
    assert not (tmp_path / "m" / "model.json").exists()
    again = fit(cohort, tmp_path / "m", options, update=model, execution=ONE)
    assert again.checksums == updated.checksums
    before = content(again.folder)
    fit(cohort, tmp_path / "m", options, update=model, execution=ONE)
    assert content(again.folder) == before


def test_without_the_old_work_everything_else_is_used(
    cohort: Cohort, model: Model, updated: Model, tmp_path: Path
) -> None:
    model.export(tmp_path / "model.zip")
    reporter = SilentReporter()
    found = fit(
        cohort,
        tmp_path / "m",
        replace(THEN, atlases=("s102",)),
        update=Model.load(tmp_path / "model.zip"),
        execution=replace(ONE, reporter=reporter),
    )
    assert found.checksums == updated.checksums
    assert len(pairs(found.folder / "work")) == 3 * 3
    assert reporter.warnings == []


def test_damage_in_the_old_work_is_noticed_and_left_there(
    cohort: Cohort, model: Model, updated: Model, tmp_path: Path
) -> None:
    copy = tmp_path / "old"
    shutil.copytree(model.folder, copy)
    file = sorted(copy.glob("work/registrations/*/transform.safetensors"))[0]
    damaged = file.read_bytes()[:-9]
    file.write_bytes(damaged)
    reporter = SilentReporter()
    options, execution = replace(THEN, atlases=("s102",)), replace(ONE, reporter=reporter)
    found = fit(cohort, tmp_path / "m", options, update=Model.load(copy), execution=execution)
    assert found.checksums == updated.checksums
    assert file.read_bytes() == damaged
    assert any(file.parent.name in text and "done again" in text for text in reporter.warnings)


def test_atlases_are_chosen_beside_those_that_there_are(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    found = fit(cohort, tmp_path / "m", replace(THEN, atlases=3), update=model, execution=ONE)
    assert [atlas.name for atlas in found.atlases][:2] == ["s100", "s101"]
    assert found.atlases[2].name in ("s102", "s103")


def test_the_record_says_what_was_updated(updated: Model, model: Model) -> None:
    assert updated.provenance["update"] == {
        "model": digest(dict(model.checksums)),
        "added": ["s103"],
        "changed": [],
        "removed": [],
        "atlases": ["s102"],
        "earlier": [],
    }
    assert updated.provenance["sharing"]["kind"] == "model"
    assert set(updated.provenance["data"]) == {"s100", "s101", "s102", "s103"}


def test_a_subject_that_is_called_otherwise_is_mapped_already(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    shutil.copytree(cohort.root, tmp_path / "data")
    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        place = tmp_path / "data" / folder
        (place / f"s102{ending}.nii.gz").rename(place / f"s102b{ending}.nii.gz")
    renamed = Cohort.read(tmp_path / "data").select(["s100", "s101", "s102b"])
    found = fit(renamed, tmp_path / "m", THEN, update=model, execution=ONE)
    kept = content(model.folder / "work" / "mapped")
    assert len({Path(name).parent for name in kept}) == 2 * 3
    assert content(found.folder / "work" / "mapped") == kept
    assert set(found.provenance["data"]) == {"s100", "s101", "s102b"}


def test_subjects_that_are_gone_or_changed_are_named(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    others = changed(cohort, tmp_path / "data", "s100").select(["s100", "s101"])
    reporter = SilentReporter()
    found = fit(others, tmp_path / "m", THEN, update=model, execution=replace(ONE, reporter=reporter))
    assert found.provenance["update"]["changed"] == ["s100"]
    assert found.provenance["update"]["removed"] == ["s102"]
    gone, learnt = reporter.warnings
    assert "do not train it now: s102" in gone
    assert "--sharing independent" in learnt
    # The atlas is what it was, so its subject's new image is mapped onto it as any other's is.
    assert found.checksums["atlases/s100.nii.gz"] == model.checksums["atlases/s100.nii.gz"]
    assert found.atlases[0].quality["maximum"] < 1
    assert len(pairs(found.folder / "work") - pairs(model.folder / "work")) == 2


def test_an_updated_model_is_updated_again(cohort: Cohort, updated: Model, tmp_path: Path) -> None:
    write_volume(tmp_path / "template.nii.gz", subject(60)[0])
    options = replace(THEN, atlases=(str(tmp_path / "template.nii.gz"),))
    once = fit(cohort, tmp_path / "once", options, update=updated, execution=ONE)
    (tmp_path / "template.nii.gz").unlink()  # the model has its image
    fewer = cohort.select(["s101", "s102", "s103"])
    twice = fit(fewer, tmp_path / "twice", THEN, update=once, execution=ONE)
    assert [atlas.name for atlas in twice.atlases] == ["s100", "s101", "s102", "template"]
    assert pairs(twice.folder / "work") < pairs(once.folder / "work")


def relabelled(cohort: Cohort, folder: Path, **declared: Any) -> Cohort:
    shutil.copytree(cohort.root, folder)
    file = folder / "dataset.json"
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | declared)
    return Cohort.read(folder)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"labels": {"background": 0, "core": 4, "shell": 2, "other": 7}}, "labels are not the model's"),
        ({"labels": {"background": 0, "core": 2, "shell": 4}}, "labels are not the model's"),
        ({"channel_names": {"0": "CT"}}, "channels are not the model's"),
    ],
)
def test_labels_and_channels_that_the_model_has_not_are_refused(
    cohort: Cohort, model: Model, tmp_path: Path, declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"{message}.*dataset.json"):
        fit(relabelled(cohort, tmp_path / "data", **declared), tmp_path / "m", THEN, update=model)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atlases": ("s101",)}, "atlases of these names already"),
        ({"atlases": 1}, "keeps its atlases"),
        ({"network": "segnet"}, "the network of a model that is updated stays"),
        ({"width": 1.0}, "the width of a model that is updated stays"),
        ({"operator": "mrf"}, "the registration of a model that is updated stays"),
        ({"operator_settings": {"nothing": 1}}, "settings of a model that is updated stay"),
        ({"keep_epochs": (1,)}, "networks that are trained from scratch"),
    ],
)
def test_options_against_the_model_are_refused(
    cohort: Cohort, model: Model, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fit(cohort, tmp_path / "m", replace(THEN, **options), update=model)
    assert not (tmp_path / "m").exists()


def test_settings_that_the_model_has_anyway_are_no_others(cohort: Cohort, model: Model) -> None:
    ranged = replace(model, operator="mrf", operator_settings={"mi_range": [[-900.0, 100.0]], "spacing": 3.0})
    asked = replace(THEN, operator_settings={"mi_range": ((-900.0, 100.0),)})
    assert Update(ranged, cohort).completed(asked).operator_settings == ranged.operator_settings
    with pytest.raises(InputError, match="settings of a model that is updated stay"):
        Update(ranged, cohort).completed(replace(THEN, operator_settings={"mi_range": ((-900.0, 99.0),)}))


def test_what_would_change_nothing_or_the_old_model_is_refused(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to update"):
        fit(cohort.select(["s100", "s101", "s102"]), tmp_path / "m", THEN, update=model)
    with pytest.raises(InputError, match="in its own folder"):
        fit(cohort, model.folder, THEN, update=model)
    with pytest.raises(InputError, match="no model whose weights"):
        fit(cohort, tmp_path / "m", replace(THEN, sharing="model"))
    with pytest.raises(InputError, match="trains its models anew"):
        StudyOptions(sharing="model")
    (tmp_path / "p").mkdir()
    replace(model.plan, context=0).write(tmp_path / "p" / "plan.json")
    with pytest.raises(InputError, match="the plan of a model that is updated stays"):
        fit(cohort, tmp_path / "p", THEN, update=model)


def test_a_model_that_does_not_say_what_it_was_trained_on_is_refused(
    cohort: Cohort, model: Model, tmp_path: Path
) -> None:
    for data in (None, [], {"s100": {}}, {"s100": {"images": None}}):
        other = replace(model, provenance={**model.provenance, "data": data})
        with pytest.raises(ModelError, match="does not say what"):
            fit(cohort, tmp_path / "m", THEN, update=other)


def test_a_dry_run_counts_what_an_update_would_do(
    cohort: Cohort, model: Model, updated: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(THEN, atlases=("s102",))
    found = forecast_fit(cohort, tmp_path / "m", options, update=model, execution=ONE)
    assert found.pairs == (9, 4)
    assert found.epochs == (3, 0)
    assert found.chosen == ("s100", "s101", "s102")
    assert found.changes is not None
    assert found.changes.added == ("s103",)
    assert not (tmp_path / "m").exists()
    after = forecast_fit(cohort, updated.folder, options, update=model, execution=ONE)
    assert after.finished
    command = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--update", str(model.folder), "--dry-run"]
    assert main([*command, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["update"] == {"added": ["s103"], "changed": [], "removed": []}
    assert not (tmp_path / "m").exists()


def test_the_command_and_the_object_update_alike(
    cohort: Cohort, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("s101\ns103\n", encoding="utf-8")
    words = ["train", str(cohort.root), "-o", str(tmp_path / "c"), "--update", str(model.folder), "--epochs", "1"]
    words += ["--subjects", str(names), "--threads", "1", "--log", str(tmp_path / "log.txt")]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "added: s103; not there any more: s100, s102" in said
    assert "1 of 3 registrations there already" in said
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "not there any more" in log
    assert not any(name in log for name in ("s100", "s101", "s102", "s103"))
    net = AtlasNet(epochs=1, execution=ONE)
    net.fit(cohort.select(["s101", "s103"]), tmp_path / "o", update=model.folder)
    assert net.model is not None
    assert net.model.checksums == Model.load(tmp_path / "c").checksums


def test_an_update_is_not_cross_validated(
    cohort: Cohort, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--update", str(model.folder), "--folds"]
    assert main(words) == 2
    assert "cannot be cross-validated" in capsys.readouterr().err
