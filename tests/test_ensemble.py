"""Several models together: how they are fused, what they share, what the record says, and which do not fit."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import atlasnet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import InputError, ModelError, UnusualInputError
from atlasnet.execution import Execution, read_json, write_json
from atlasnet.prediction import (
    Ensemble,
    Prediction,
    PredictOptions,
    Predictor,
    find_cases,
    import_models,
    open_voxels,
    provenance,
)
from atlasnet.prediction import predictor as predictor_module
from atlasnet.prediction.ensemble import pair_keys
from atlasnet.prediction.fusion import FusedSlab, fuse_models, fuse_slab
from atlasnet.prediction.verdict import UNKNOWN, UNUSUAL, USUAL, Verdict, joined
from atlasnet.registration import Operator, Registration, make_operator
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.typical import KINDS
from atlasnet.volume import Grid, Volume, read_volume, write_volume
from synthetic import subject, write_cohort

Capture = pytest.CaptureFixture[str]
ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=12, passes=0.0, batch_slices=4)
QUICK = FitOptions(width=0.25, preset=RECIPE, operator="centre", sharing="independent")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(4)))


@pytest.fixture(scope="module")
def models(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """One of two atlases and one of one of them, trained with another seed."""
    folder = tmp_path_factory.mktemp("models")
    wanted = [("first", ("s0", "s1"), 0), ("second", ("s0",), 7)]
    return [
        fit(
            cohort,
            folder / name,
            replace(QUICK, atlases=atlases),
            work=folder / "work",
            execution=replace(ONE, seed=seed),
        )
        for name, atlases, seed in wanted
    ]


@pytest.fixture(scope="module")
def ensemble(models: list[Model]) -> Ensemble:
    return Ensemble.load([model.folder for model in models])


@pytest.fixture(scope="module")
def found(ensemble: Ensemble) -> tuple[list[Prediction], int]:
    """What each model says of a scan, and both together; and how many registrations both together took."""
    whole, _ = subject(100)
    # Higher than the atlases: its upper slices no atlas reaches, or one of two.
    image = Volume(np.concatenate([whole.array, whole.array], 1), Grid((28, 28, 32), whole.grid.affine))
    operator = Counting(make_operator("centre"))
    predictors = [Predictor(model, execution=ONE) for model in ensemble.models]
    predictors.append(Predictor(ensemble, execution=ONE, operator=operator))
    wanted = PredictOptions(probabilities=True, agreement=True)
    return [predictor.fuse(predictor.ask(image), wanted) for predictor in predictors], operator.calls


@pytest.fixture(scope="module")
def folds(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``train --folds 2 --ensemble`` leaves, on an atlas that all folds share."""
    folder = tmp_path_factory.mktemp("folds")
    template = write_template(folder / "template.nii.gz")
    words = ["train", str(cohort.root), "-o", str(folder / "m"), "--atlas", str(template), "--width", "0.25"]
    words += ["--epochs", "1", "--registration", "centre", "--folds", "2", "--threads", "1", "--quiet"]
    assert main(words) == 0
    with pytest.raises(ModelError, match="--ensemble"):
        Ensemble.load([folder / "m" / "cross_validation"])
    assert main([*words, "--ensemble"]) == 0
    return folder / "m" / "cross_validation"


def write_template(path: Path) -> Path:
    write_volume(path, subject(60)[0])
    return path


class Counting:
    """An operator that counts what it is asked."""

    def __init__(self, operator: Operator) -> None:
        self.operator, self.name, self.calls = operator, operator.name, 0

    def settings(self) -> dict[str, Any]:
        return self.operator.settings()

    def register(self, source: Volume, targets: Sequence[Volume], **options: Any) -> list[Registration]:
        self.calls += len(targets)
        return self.operator.register(source, targets, **options)


def test_the_mean_of_the_models_probabilities_decides_however_many_atlases_each_has(
    ensemble: Ensemble, found: tuple[list[Prediction], int]
) -> None:
    predictions, _ = found
    said, unsure = ([np.asarray(getattr(p, what).array) for p in predictions] for what in ("probabilities", "entropy"))
    # Where no atlas reaches, a model says background and knows nothing.
    reached = np.stack([~((p[0] == 1) & (e[0] == 1)) for p, e in zip(said[:2], unsure[:2], strict=True)])
    assert 0.4 < reached.mean() < 1
    mean = (np.stack(said[:2]) * reached[:, None]).sum(0) / np.maximum(reached.sum(0), 1)
    mean[0][~reached.any(0)] = 1
    np.testing.assert_allclose(said[2], mean, atol=1e-6)
    second, first = np.sort(mean, axis=0)[-2:]
    clear = first - second > 1e-5
    assert clear.mean() > 0.99
    expected = np.asarray(ensemble.values)[mean.argmax(0)]
    assert np.array_equal(predictions[2].labels.array[0][clear], expected[clear])


@pytest.mark.parametrize("method", ["mean", "staple", "local"])
def test_a_scan_of_which_the_background_is_asked_about_first_has_the_same_result(
    ensemble: Ensemble, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(ensemble if method == "mean" else ensemble.models[0], execution=ONE)
    answers, options = predictor.ask(subject(100)[0], fit=method == "local"), PredictOptions(fusion=method)
    expected = predictor.fuse(answers, options)
    calls = []
    monkeypatch.setattr(open_voxels, "FEWEST_CLASSES", 2)
    monkeypatch.setattr(predictor_module, "fuse_slab", calls.append)  # of every class everywhere
    found = predictor.fuse(answers, options)
    assert not calls
    assert np.array_equal(found.labels.array, expected.labels.array)
    assert found.labels.array.any()
    parts = ("atlases", "agreement", "uncovered_voxels", "volumes_ml", "volumes_of_atlases_ml", "warnings")
    assert {name: found.record[name] for name in parts} == {name: expected.record[name] for name in parts}


def test_an_atlas_that_models_share_is_registered_once(ensemble: Ensemble, found: tuple[list[Prediction], int]) -> None:
    (*alone, together), registrations = found
    assert registrations == ensemble.pairs == 2
    names = [atlas["name"] for atlas in together.record["atlases"]]
    assert names == ["first/s0", "first/s1", "second/s0"]
    assert set(together.to_atlases) == set(names)
    qualities = [atlas["quality"] for prediction in alone for atlas in prediction.record["atlases"]]
    assert [atlas["quality"] for atlas in together.record["atlases"]] == qualities


def test_registrations_of_other_settings_are_not_shared(models: list[Model]) -> None:
    other = replace(models[1], operator_settings={**models[1].operator_settings, "spacing": 9.0})
    assert set(pair_keys(models[1])) < set(pair_keys(models[0]))
    assert not set(pair_keys(other)) & set(pair_keys(models[0]))


def random_slab(random: np.random.Generator, atlases: int) -> FusedSlab:
    """What atlases that reach some of the voxels say."""
    logits = torch.from_numpy(random.normal(size=(atlases, 3, 3, 4, 5)))
    covered = torch.from_numpy(random.random((atlases, 3, 4, 5)) < 0.6)
    return fuse_slab((p.float(), c, 1.0) for p, c in zip(logits.softmax(1), covered, strict=True))


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_models_are_fused_like_a_loop_over_the_voxels(atlases: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    slabs = [random_slab(random, count) for count in atlases]
    fused = fuse_models(slabs)
    for voxel in np.ndindex(3, 4, 5):
        there = [slab.probabilities[:, *voxel].double().numpy() for slab in slabs if slab.reached[voxel] > 0]
        expected = int(np.mean(there, axis=0).argmax()) if there else 0
        assert int(fused.labels[voxel]) == expected
        votes = [int(choice[voxel]) for slab in slabs for choice in slab.choices if choice[voxel] >= 0]
        assert int(fused.reached[voxel]) == len(votes)
        share = float(np.mean([vote == expected for vote in votes])) if votes else 0.0
        assert float(fused.share[voxel]) == pytest.approx(share)


def said(scores: Sequence[float]) -> Verdict:
    evidence = {k.name: {"value": 9.0, "limit": 1.0, "score": s} for k, s in zip(KINDS, scores, strict=True)}
    result = UNUSUAL if max(scores) > 1 else USUAL
    return Verdict(result, (), evidence)


@given(st.lists(st.tuples(*[st.floats(0, 2)] * len(KINDS)), min_size=1, max_size=5))
def test_a_number_is_unusual_where_more_than_half_of_the_models_find_it_so(scores: list[tuple[float, ...]]) -> None:
    together = joined([said(own) for own in scores])
    beyond = [sum(own[kind] > 1 for own in scores) * 2 > len(scores) for kind in range(len(KINDS))]
    assert len(together.reasons) == sum(beyond)
    assert (together.result == UNUSUAL) == any(beyond)
    silent = Verdict(UNKNOWN, ("too few",), {})
    assert joined([silent, *(said(own) for own in scores)]) == together
    assert joined([silent, silent]) == silent


def test_a_scan_is_mirrored_along_the_axes_that_the_model_in_the_middle_names() -> None:
    orientation = [kind.name for kind in KINDS].index("orientation")
    verdicts = [
        replace(said([score * (number == orientation) for number in range(len(KINDS))]), mirrored=axes)
        for score, axes in ((3.0, "y"), (0.5, None), (2.0, "x"))
    ]
    together = joined(verdicts)
    assert together.mirrored == "x"
    assert "mirrored left-right" in together.reasons[0]


def test_a_scan_is_judged_before_the_networks_run(ensemble: Ensemble) -> None:
    image, _ = subject(102)
    noise = np.random.default_rng(0).normal(size=image.array.shape).astype(np.float32)
    predictor = Predictor(ensemble, execution=ONE)
    assert predictor.verdict(image).result == USUAL
    for member in predictor.members:
        member.networks.clear()  # whoever asks one now fails otherwise
    with pytest.raises(UnusualInputError, match="noise"):
        predictor.predict(image.replace(image.array + 400 * noise), PredictOptions(strict=True))


def test_a_batch_names_all_models_and_is_kept_until_one_is_another(
    models: list[Model], tmp_path: Path, capsys: Capture
) -> None:
    write_volume(tmp_path / "in" / "case.nii.gz", subject(200)[0])
    first, second = (str(model.folder) for model in models)
    words = ["predict", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--threads", "1", "--json", "--report"]
    assert main([*words, "-m", first, "-m", second]) == 0
    record = read_json(tmp_path / "out" / "case.json")
    assert (record["verdict"]["result"], record["estimated_dice"]) == (USUAL, None)
    origin = record["provenance"]
    listed = [{"name": model.folder.name, "checksum": model.summary()["checksum"]} for model in models]
    assert origin["models"] == listed
    page = (tmp_path / "out" / "case_report.html").read_text(encoding="utf-8")
    assert "2 models segmented the scan together, first, second" in page
    assert all(model["checksum"] in page for model in listed)
    capsys.readouterr()
    assert main([*words, "-m", first, "-m", second]) == 0
    assert list(json.loads(capsys.readouterr().out)["kept"]) == ["case"]
    request = {
        provenance(find_cases([tmp_path / "in"], 1)[0], models, PredictOptions(), ONE)["request"]
        for models in (
            *(Ensemble.load([first, second]), Ensemble.load([second, first]), Ensemble.load([first])),
            Ensemble(tuple(models), ("one", "other")),
        )
    }
    assert len(request) == 4
    assert origin["request"] in request


def test_a_dry_run_counts_a_registration_for_every_pair(models: list[Model], tmp_path: Path, capsys: Capture) -> None:
    write_volume(tmp_path / "ct.nii.gz", subject(200)[0])
    words = ["predict", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "seg.nii.gz"), "--dry-run", "--json"]
    words += [word for model in models for word in ("-m", str(model.folder))]
    assert main([*words, "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == ["ct"]
    assert found["seconds"] == pytest.approx(sum(found["case_seconds"].values()), abs=0.1)
    assert main([*words, "--fusion", "vote"]) == 2


def test_folds_segment_together_on_request(folds: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "ct.nii.gz", subject(200)[0])
    words = ["predict", str(tmp_path / "ct.nii.gz"), "-m", str(folds), "-o", str(tmp_path / "seg.nii.gz"), "--quiet"]
    assert main([*words, "--threads", "1"]) == 0
    origin = read_json(tmp_path / "seg.json")["provenance"]
    models = [Model.load(folds / name) for name in ("fold_1", "fold_2")]
    assert origin["models"] == [{"name": model.folder.name, "checksum": model.checksum} for model in models]
    assert Ensemble.load([folds]).pairs == 1
    net = atlasnet.AtlasNet.load(folds, execution=ONE)
    assert np.array_equal(net.predict(tmp_path / "ct.nii.gz").labels.array, read_volume(tmp_path / "seg.nii.gz").array)


# What of the folds' models is for others: written out, so that nothing else slips in.
OF_EACH = ("model.json", "atlases/template.nii.gz", "networks/template.safetensors", "log/template.csv")
SHIPPED = {"ensemble.json", *(f"{fold}/{name}" for fold in ("fold_1", "fold_2") for name in OF_EACH)}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bundle(folds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folds as one file."""
    path = tmp_path_factory.mktemp("bundle") / "ensemble.zip"
    assert main(["model", "export", str(folds), "-o", str(path), "--quiet"]) == 0
    return path


def rezipped(bundle: Path, path: Path, changed: Mapping[str, bytes | None]) -> Path:
    """The zip with the content of some entries changed or, where it is None, without them."""
    with zipfile.ZipFile(bundle) as whole, zipfile.ZipFile(path, "w") as archive:
        entries = {name: whole.read(name) for name in whole.namelist()} | dict(changed)
        for name, data in entries.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def test_an_ensemble_travels_as_a_zip_and_nothing_else_with_it(
    folds: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert {"predictions", "folds.json", "table.json"} < {path.name for path in folds.iterdir()}
    assert sorted(zipfile.ZipFile(bundle).namelist()) == sorted(SHIPPED)
    folder = tmp_path / "deep" / "copy"
    assert main(["model", "import", str(bundle), "-o", str(folder)]) == 0
    assert capsys.readouterr().out == f"ensemble of 2 models: {folder}\n"
    assert content(folder) == {name: data for name, data in content(folds).items() if name in SHIPPED}
    assert [path.name for path in folder.parent.iterdir()] == ["copy"]
    assert folder.stat().st_mode == folder.parent.stat().st_mode
    for place in (bundle, folder):
        assert main(["model", "verify", str(place)]) == 0
        assert capsys.readouterr().out == "all 4 files are intact\n"
    assert main(["model", "import", str(bundle), "-o", str(folder)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_zip_of_an_ensemble_segments_as_its_folder_does(
    folds: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    write_volume(tmp_path / "in" / "ct.nii.gz", subject(200)[0])
    words = ["predict", str(tmp_path / "in"), "--threads", "1", "--json"]
    assert main([*words, "-m", str(folds), "-o", str(tmp_path / "folder")]) == 0
    assert main([*words, "-m", str(bundle), "-o", str(tmp_path / "zip")]) == 0
    first, second = (read_json(tmp_path / name / "ct.json")["provenance"] for name in ("folder", "zip"))
    assert first == second
    labels = [read_volume(tmp_path / name / "ct.nii.gz").array for name in ("folder", "zip")]
    assert np.array_equal(*labels)
    capsys.readouterr()
    assert main([*words, "-m", str(bundle), "-o", str(tmp_path / "folder")]) == 0
    assert list(json.loads(capsys.readouterr().out)["kept"]) == ["ct"]


def test_info_says_what_segments_together(folds: Path, bundle: Path, capsys: Capture) -> None:
    assert main(["model", "info", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    models = [Model.load(folds / name) for name in ("fold_1", "fold_2")]
    assert found["models"] == [{"name": model.folder.name, **model.summary()} for model in models]
    assert found["bytes"] == sum(model.summary()["bytes"] for model in models)
    assert (found["registrations"], found["checksum"]) == (1, Ensemble.load([folds]).checksum)
    assert main(["model", "info", str(folds)]) == 0
    text = capsys.readouterr().out
    assert "models       2, which segment together: fold_1, fold_2" in text
    assert all(model["checksum"] in text for model in (found, *found["models"]))


def test_a_damaged_file_in_the_zip_of_an_ensemble_is_named_as_the_user_knows_it(
    folds: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    name = "fold_2/networks/template.safetensors"
    data = bytearray((folds / name).read_bytes())
    data[-1] ^= 1
    archive = rezipped(bundle, tmp_path / "bad.zip", {name: bytes(data)})
    for words in (["verify", str(archive)], ["import", str(archive), "-o", str(tmp_path / "copy")]):
        assert main(["model", *words]) == 2
        assert f"{archive / name}: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fold_2/model.json": None}, "fold_2: this is not a model"),
        ({"ensemble.json": b"[1"}, "ensemble.json: ensemble.json cannot be read"),
        ({"ensemble.json": b'{"format": 1, "models": []}'}, "does not name each of its models once"),
        ({"ensemble.json": b'{"format": 2, "models": []}'}, "format 2"),
        ({"ensemble.json": b'{"format": 1, "models": [{"folder": "../m", "checksum": ""}]}'}, "no folder's"),
        ({"ensemble.json": b'{"format": 1, "models": [{"folder": "fold_1", "checksum": ""}]}'}, "not the one that"),
        ({"../outside": b""}, "outside itself"),
    ],
)
def test_a_zip_that_is_not_the_ensemble_that_was_exported_is_refused(
    bundle: Path, tmp_path: Path, changed: dict[str, bytes | None], said: str
) -> None:
    with pytest.raises(ModelError, match=said) as error:
        import_models(rezipped(bundle, tmp_path / "bad.zip", changed), tmp_path / "copy")
    assert str(tmp_path / "bad.zip") in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


def test_what_does_not_belong_to_the_models_is_not_unpacked_for_good(folds: Path, bundle: Path, tmp_path: Path) -> None:
    strays = {"work/registrations/x/record.json": b"{}", "fold_1/work/x": b"", "predictions/anna.nii.gz": b""}
    import_models(rezipped(bundle, tmp_path / "more.zip", strays), tmp_path / "copy")
    assert set(content(tmp_path / "copy")) == SHIPPED


def test_where_one_model_is_needed_several_are_refused(
    cohort: Cohort, folds: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    for place in (folds, bundle):
        assert main(["train", str(cohort.root), "-o", str(tmp_path / "m"), "--update", str(place)]) == 2
        assert "several models that segment together, and one is needed" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_an_ensemble_is_saved_like_a_model(folds: Path, models: list[Model], tmp_path: Path) -> None:
    net = atlasnet.AtlasNet.load(folds)
    net.save(tmp_path / "e.zip")
    net.save(tmp_path / "e")
    assert set(content(tmp_path / "e")) == set(zipfile.ZipFile(tmp_path / "e.zip").namelist()) == SHIPPED
    with pytest.raises(InputError, match="exists already"):
        net.save(tmp_path / "e")
    # Models from anywhere become an ensemble when they are saved together.
    atlasnet.AtlasNet.load(*(model.folder for model in models)).save(tmp_path / "both.zip")
    both = Ensemble.load([tmp_path / "both.zip"])
    assert both.names == ("first", "second")
    assert [model.checksum for model in both.models] == [model.checksum for model in models]
    with pytest.raises(ModelError, match="folders of these names"):
        Ensemble(both.models, ("a/b", "c")).export(tmp_path / "bad.zip")


def test_an_ensemble_whose_model_is_another_is_refused(folds: Path, models: list[Model], tmp_path: Path) -> None:
    copy = tmp_path / "folds"
    shutil.copytree(folds, copy, ignore=shutil.ignore_patterns("work", "predictions"))
    shutil.rmtree(copy / "fold_2")
    with pytest.raises(ModelError, match="no model"):
        Ensemble.load([copy])
    shutil.copytree(models[1].folder, copy / "fold_2", ignore=shutil.ignore_patterns("work"))
    with pytest.raises(ModelError, match="not the one that the ensemble was made of"):
        Ensemble.load([copy])
    write_json(copy / "ensemble.json", {"format": 1, "models": [{"folder": "../m", "checksum": ""}]})
    with pytest.raises(ModelError, match="no folder's"):
        Ensemble.load([copy])
    (copy / "ensemble.json").write_text("[1", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be read"):
        Ensemble.load([copy])


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"labels": {"background": 0, "core": 4, "rim": 2}}, "labels"), ({"channels": ("CT",)}, "channels")],
)
def test_models_of_other_labels_or_channels_are_refused(
    models: list[Model], changed: dict[str, Any], said: str, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models[1].folder, other)
    replace(Model.load(other), **changed).save()
    write_volume(tmp_path / "ct.nii.gz", subject(200)[0])
    words = ["predict", str(tmp_path / "ct.nii.gz"), "-m", str(models[0].folder), "-m", str(other)]
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert f"models of different {said}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_asked_of_an_ensemble_is_refused_before_any_work(
    models: list[Model], ensemble: Ensemble, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"named twice; found {re.escape(str(models[0].folder))};"):
        Ensemble.load([models[0].folder, models[0].folder])
    with pytest.raises(InputError, match="fused by the mean"):
        Predictor(ensemble, execution=ONE).predict(subject(100)[0], PredictOptions(fusion="staple"))
    assert main(["train", str(tmp_path), "-o", str(tmp_path / "m"), "--ensemble"]) == 2


def test_models_of_equal_folder_names_get_names_of_their_own(models: list[Model], tmp_path: Path) -> None:
    for place, model in zip(("a", "b"), models, strict=True):
        shutil.copytree(model.folder, tmp_path / place / "model", ignore=shutil.ignore_patterns("work"))
    assert Ensemble.load([tmp_path / "a" / "model", tmp_path / "b" / "model"]).names == ("1-model", "2-model")
