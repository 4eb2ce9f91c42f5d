"""What counts as the same training, and what is refused or told before it begins."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import atlasnet
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import CohortError, InputError, ModelError
from atlasnet.execution import Execution, SilentReporter, digest, file_digest
from atlasnet.execution.memory import Room
from atlasnet.prediction import Ensemble, PredictOptions, Predictor, predict_cases
from atlasnet.prediction.output import _decisive, provenance
from atlasnet.registration.learning.programme import SVMSettings
from atlasnet.training.estimate import DiceEstimate
from atlasnet.training.fit import fit
from atlasnet.training.forecast import forecast_fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.pairs import REVISION
from atlasnet.training.recipe import Recipe
from atlasnet.training.registered import registered_pairs
from atlasnet.volume import read_labels, read_volume, write_volume
from synthetic import LABELS, subject, write_cohort

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4, sharing="independent")
QUICK = FitOptions(atlases=("s0",), width=0.25, preset=RECIPE, operator="centre")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "data", range(2))


def declare(root: Path, **labels: int) -> None:
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    (root / "dataset.json").write_text(json.dumps(content | {"labels": labels}), encoding="utf-8")


def two_channels(root: Path) -> None:
    """A second channel, the first one backwards, for every image of a cohort and of the folder beside it."""
    for folder in (root / "imagesTr", root.parent / "outside"):
        for path in sorted(folder.glob("*_0000.nii.gz")):
            image = read_volume(path)
            write_volume(folder / path.name.replace("_0000", "_0001"), image.replace(-image.array))
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["channel_names"] = {"0": "T1", "1": "T2"}
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def test_values_that_nobody_declared_are_refused_before_any_registration(root: Path, tmp_path: Path) -> None:
    declare(root, background=0, shell=LABELS["shell"])
    with pytest.raises(CohortError, match=r"s0 holds label values that are not declared.*found 4 \(\d+ voxels\)"):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)
    assert not (tmp_path / "m" / "work" / "registrations").exists()
    # A plan that is there already spares the fingerprint, not the check.
    write_plan = fit(Cohort.read(write_cohort(tmp_path / "sound", range(2))), tmp_path / "n", QUICK, execution=ONE)
    (tmp_path / "m").mkdir(exist_ok=True)
    shutil.copyfile(write_plan.folder / "plan.json", tmp_path / "m" / "plan.json")
    with pytest.raises(CohortError, match="not declared"):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)


def test_a_label_that_is_to_be_ignored_makes_another_training(root: Path, tmp_path: Path) -> None:
    fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)
    declare(root, **LABELS, ignore=9)
    with pytest.raises(
        ModelError, match="other data, options or plan; found ignore_label: nothing there, 9 asked for;"
    ):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)


def test_what_differs_from_the_model_that_is_there_is_named(root: Path, tmp_path: Path) -> None:
    quick = replace(QUICK, operator="affine")  # which has settings
    model = fit(Cohort.read(root), tmp_path / "m", quick, execution=ONE)

    def refused(options: FitOptions = quick, seed: int = 0) -> str | None:
        with pytest.raises(ModelError, match="other data, options or plan") as error:
            fit(Cohort.read(root), tmp_path / "m", options, execution=replace(ONE, seed=seed))
        return error.value.found

    assert refused(replace(quick, epochs=7, width=0.5)) == (
        "width: 0.25 there, 0.5 asked for; epochs: nothing there, 7 asked for"
    )
    assert refused(seed=3) == "seed: 0 there, 3 asked for"
    assert refused(replace(quick, operator_settings={"candidates": 2})) == (
        "operator_settings.candidates: nothing there, 2 asked for"
    )
    many = {"candidates": 2, "turn_step": 15.0, "missing": 0.5, "iterations": 9, "tolerance": 0.1}
    assert refused(replace(quick, operator_settings=many)) == (
        "operator_settings: nothing there, {candidates, turn_step, missing, iterations and 1 more} asked for"
    )
    replace(model.plan, batch_size=3).write(tmp_path / "m" / "plan.json")
    assert refused() == f"plan.batch_size: {model.plan.batch_size} there, 3 asked for"
    model.plan.write(tmp_path / "m" / "plan.json")
    labels = root / "labelsTr" / "s1.nii.gz"
    write_volume(labels, read_labels(labels).replace(np.zeros_like(read_labels(labels).array)))
    assert refused() == "other data of s1 (labels)"
    # A model that was trained before it told what was asked for.
    replace(model, provenance={key: value for key, value in model.provenance.items() if key != "asked"}).save()
    assert refused(replace(quick, epochs=7)) == "other data of s1 (labels)"


def test_every_channel_of_an_outside_atlas_counts(root: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "outside" / "ref_0000.nii.gz", subject(9)[0])
    two_channels(root)
    options = replace(QUICK, atlases=(str(tmp_path / "outside" / "ref_0000.nii.gz"),))
    fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)
    fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)
    write_volume(tmp_path / "outside" / "ref_0001.nii.gz", subject(9)[0])
    atlas = r'\[\["ref_0000.nii.gz", "[0-9a-f]{8}…"\]\]'
    with pytest.raises(ModelError, match=f"found atlases: {atlas} there, {atlas} asked for; to mend it"):
        fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)


def test_python_takes_the_channels_of_a_case_by_one_of_them(root: Path, tmp_path: Path) -> None:
    two_channels(root)
    net = atlasnet.AtlasNet(atlases=["s0"], width=0.25, preset=RECIPE, registration="affine", execution=ONE)
    net.fit(root, tmp_path / "m")
    path = root / "imagesTr" / "s1_0000.nii.gz"
    whole = Cohort.read(root)["s1"].read_image()
    np.testing.assert_array_equal(net.predict(path).labels.array, net.predict(whole).labels.array)
    with pytest.raises(InputError, match="not that of one scan"):
        net.predict(root / "imagesTr")
    with pytest.raises(InputError, match="DICOM export only"):
        net.predict(path, series="7")


def test_channels_in_another_order_are_another_prediction(root: Path, tmp_path: Path) -> None:
    two_channels(root)
    for path in sorted((root / "imagesTr").glob("*_0001.nii.gz")):
        image = read_volume(path)
        write_volume(path, image.replace(np.sqrt(np.abs(image.array))))
    predictor = Predictor(fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE), execution=ONE)
    shutil.copytree(root, tmp_path / "elsewhere")
    case, copied = (Cohort.read(folder)["s1"] for folder in (root, tmp_path / "elsewhere"))
    turned = replace(case, images=case.images[::-1])

    def kept(case: Subject) -> bool:
        batch = predict_cases(predictor, [case], {"s1": tmp_path / "out" / "s1.nii.gz"})
        assert not batch.failed
        return "s1" in batch.kept

    assert [kept(of) for of in (case, case, copied, turned, turned)] == [False, True, True, False, True]
    inputs = [provenance(of, predictor.ensemble, PredictOptions(), ONE)["input_sha256"] for of in (case, turned)]
    assert inputs == [[file_digest(path) for path in sorted(case.images)]] * 2


def test_a_prediction_of_one_channel_has_the_key_that_it_always_had_and_all_that_decides_it_changes_it(
    root: Path, tmp_path: Path
) -> None:
    cohort = Cohort.read(root)
    model = fit(cohort, tmp_path / "m", QUICK, execution=ONE)
    found = provenance(cohort["s1"], model, PredictOptions(), ONE)
    known = {
        "atlasnet": atlasnet.__version__,
        "registration": REVISION,
        "input": [file_digest(cohort["s1"].images[0])],
        "series": None,
        "options": found["options"],
        "seed": 0,
    }
    assert found["request"] == digest(known | _decisive(model, allow_module=False))

    models = [
        replace(model, channels=("PD",)),
        replace(model, labels={"background": 0, "shell": 3, "core": 4}),
        replace(model, ignore_label=9),
        replace(model, plan=replace(model.plan, spacing=(1.0, 1.0, 1.0))),
        replace(model, operator="identity"),
        replace(model, operator_settings={**model.operator_settings, "iterations": 3}),
        replace(model, network=replace(model.network, width=0.5)),
        replace(model, checksums={**model.checksums, "atlases/s0.nii.gz": "0"}),
        replace(model, segment_table={"shell": {"colour": "#010203"}}),
        replace(model, typical=None),
        replace(model, dice_estimate=DiceEstimate({}, 0.1)),
        replace(model, regions={"both": (2, 4)}),
    ]
    others = [provenance(cohort["s1"], other, PredictOptions(), ONE) for other in models]
    others += [provenance(cohort["s1"], model, PredictOptions(minimum_quality=0.1), ONE)]
    others += [provenance(cohort["s1"], model, PredictOptions(), replace(ONE, seed=1))]
    masked = replace(cohort["s1"], mask=cohort["s1"].labels)
    # Of a DICOM folder that holds several series, all files are the input.
    cases = [masked, replace(masked, mask=cohort["s0"].labels), cohort["s0"]]
    cases += [replace(cohort["s1"], series=series) for series in (("7",), ("7", "8"))]
    others += [provenance(case, model, PredictOptions(), ONE) for case in cases]
    assert masked.mask is not None
    assert provenance(masked, model, PredictOptions(), ONE)["organ_mask_sha256"] == file_digest(masked.mask)
    assert "regions" not in _decisive(model, allow_module=False)  # models without any keep their key
    requests = [found["request"], *(other["request"] for other in others)]
    assert len(set(requests)) == len(requests)
    # What is written beside the labels, and what is refused, decides nothing of them.
    same = provenance(cohort["s1"], model, PredictOptions(agreement=True, probabilities=True, strict=True), ONE)
    assert same["request"] == found["request"]


def test_the_code_of_a_network_of_ones_own_counts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    code = (
        "from torch import nn\n\n\nclass Small(nn.Conv2d):\n    spatial_dims, context, divisibility = 2, 0, 1\n\n"
        "    def __init__(self, channels, classes):\n        super().__init__(channels, classes, 1)\n"
    )
    options = replace(QUICK, network="own_small:Small", width=1.0, allow_module=True, operator="centre")
    (tmp_path / "own_small.py").write_text(code, encoding="utf-8")
    first = fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)

    def request(*, allowed: bool) -> str:
        of = provenance(Cohort.read(root)["s1"], first, PredictOptions(), ONE, allow_module=allowed)
        return str(of["request"])

    before = request(allowed=True), request(allowed=False)
    (tmp_path / "own_small.py").write_text(code.replace("classes, 1)", "classes, 3, padding=1)"), encoding="utf-8")
    importlib.reload(sys.modules["own_small"])
    assert request(allowed=True) != before[0]
    assert request(allowed=False) == before[1]
    with pytest.raises(ModelError, match=r"found code: [0-9a-f]{8}… there, [0-9a-f]{8}… asked for; to mend it"):
        fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)
    work = tmp_path / "m" / "work"
    other = fit(Cohort.read(root), tmp_path / "n", options, work=work, execution=ONE)
    assert other.checksums != first.checksums
    Predictor(other, execution=ONE, allow_module=True)
    both = Ensemble((first, other), ("m", "n"))
    of = [provenance(Cohort.read(root)["s1"], both, PredictOptions(), ONE, allow_module=on) for on in (True, False)]
    assert of[0]["request"] != of[1]["request"]


def test_another_version_of_a_registration_from_elsewhere_makes_another_prediction(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = Cohort.read(root)
    model = fit(cohort, tmp_path / "m", QUICK, execution=ONE)
    requests = []
    for version in (None, "itk 1", "itk 2", "itk 2"):
        operator = SimpleNamespace() if version is None else SimpleNamespace(package_version=version)
        monkeypatch.setattr("atlasnet.prediction.output.make_operator", lambda *_, made=operator, **__: made)
        requests.append(provenance(cohort["s1"], model, PredictOptions(), ONE)["request"])
    assert len(set(requests)) == 3


@pytest.mark.parametrize("wrong", [{"network": "nope"}, {"operator": "nope"}, {"operator_settings": {"nope": 1}}])
def test_a_training_that_is_refused_leaves_no_plan(root: Path, tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(InputError, match="nope"):
        fit(Cohort.read(root), tmp_path / "m", replace(QUICK, **wrong), execution=ONE)
    assert not (tmp_path / "m" / "plan.json").exists()


def test_a_plan_that_was_derived_for_other_options_is_told(root: Path, tmp_path: Path) -> None:
    folder, publication = tmp_path / "m", replace(QUICK, preset=replace(RECIPE, name="publication"))

    def warned(options: FitOptions) -> list[str]:
        """Of what a training warns whose model has not been finished by an earlier one."""
        (folder / "model.json").unlink(missing_ok=True)
        reporter = SilentReporter()
        fit(Cohort.read(root), folder, options, execution=Execution(threads=1, reporter=reporter))
        return [text for text in reporter.warnings if "derived by an earlier call" in text]

    assert not warned(publication)
    (said,) = warned(QUICK)
    assert str(folder / "plan.json") in said
    assert "delete it" in said
    assert not warned(publication)
    (folder / "plan.json").unlink()
    assert not warned(QUICK)
    content = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    (folder / "plan.json").write_text(json.dumps(content | {"context": 0}), encoding="utf-8")
    assert not warned(publication)  # changed by hand


def test_one_name_is_that_of_one_atlas() -> None:
    assert atlasnet.AtlasNet(atlases="case_03").options.atlases == ("case_03",)
    assert atlasnet.AtlasNet(atlases=Path("template.nii.gz")).options.atlases == ("template.nii.gz",)
    assert atlasnet.AtlasNet(atlases=3).options.atlases == 3


def test_an_atlas_whose_name_cannot_be_a_file_is_refused_before_the_training(root: Path, tmp_path: Path) -> None:
    odd = tmp_path / "template\u00a0one.nii.gz"
    write_volume(odd, subject(8)[0])
    with pytest.raises(InputError, match="name of an atlas"):
        fit(Cohort.read(root), tmp_path / "m", replace(QUICK, atlases=(str(odd),)), execution=ONE)
    assert not (tmp_path / "m").exists()


def test_asking_for_what_is_planned_anyway_is_the_same_training(root: Path, tmp_path: Path) -> None:
    plain = replace(QUICK, width=None)
    first = fit(Cohort.read(root), tmp_path / "m", plain, execution=ONE)
    again = fit(Cohort.read(root), tmp_path / "m", replace(plain, network="unet", width=1.0), execution=ONE)
    assert again.checksums == first.checksums


def test_scans_that_memory_does_not_suffice_for_are_refused_before_they_are_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlasnet.execution.memory.memory_left", lambda: Room(1000, "the machine has"))
    monkeypatch.setattr("atlasnet.training.fit.take_fingerprint", lambda *_: pytest.fail("a scan was read"))
    with pytest.raises(InputError, match="memory"):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_network_without_width_is_refused(width: float) -> None:
    with pytest.raises(InputError, match="width"):
        FitOptions(width=width)


@pytest.mark.parametrize("size", [float("nan"), float("inf"), -1.0])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(InputError, match="minimum size"):
        PredictOptions(minimum_size_ml=size)
    with pytest.raises(InputError, match="learning"):
        SVMSettings(cost=size)


def test_numbers_and_devices_that_make_no_sense_are_told_without_a_traceback(root: Path, capsys: Capture) -> None:
    for words in (["--seed", "-1", "--folds"], ["--device", "meta"], ["--width", "nan"]):
        assert main(["train", str(root), "-o", str(root / "m"), *words]) == 2
        assert capsys.readouterr().err.startswith("atlasnet train: error: ")


def test_a_name_that_no_file_can_have_is_refused_at_once(root: Path, tmp_path: Path) -> None:
    long = "n" * 205
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (root / folder / f"s1{ending}").rename(root / folder / f"{long}{ending}")
    with pytest.raises(CohortError, match="name of a subject"):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)
    assert not (tmp_path / "m").exists()


def test_what_a_dry_run_calls_kept_is_kept_under_other_names_too(root: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = fit(Cohort.read(root), tmp_path / "m", QUICK, work=work, execution=ONE)
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (root / folder / f"s1{ending}").rename(root / folder / f"t1{ending}")
    renamed = Cohort.read(root)
    found = forecast_fit(renamed, tmp_path / "n", QUICK, work=work, execution=ONE)
    assert found.epochs == (1, 1)
    kept = {path: path.stat().st_mtime_ns for path in work.glob("networks/*/*")}
    again = fit(renamed, tmp_path / "n", QUICK, work=work, execution=ONE)
    assert {path: path.stat().st_mtime_ns for path in work.glob("networks/*/*")} == kept
    assert again.checksums == first.checksums


def test_a_finished_model_that_lost_a_file_says_how_to_make_it_again(root: Path, tmp_path: Path) -> None:
    model = fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)
    checksums = dict(model.checksums)
    (model.folder / "networks" / "s0.safetensors").unlink()
    with pytest.raises(ModelError, match=r"absent.*delete model\.json there"):
        fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE)
    (model.folder / "model.json").unlink()
    assert fit(Cohort.read(root), tmp_path / "m", QUICK, execution=ONE).checksums == checksums


def test_the_pairs_of_an_updated_model_are_those_of_all_its_atlases(root: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "outside" / "ref.nii.gz", subject(9)[0])
    options = replace(QUICK, atlases=("s1", str(tmp_path / "outside" / "ref.nii.gz")))
    model = fit(Cohort.read(root), tmp_path / "m", options, execution=ONE)
    write_cohort(root, range(3))
    later = FitOptions(preset=RECIPE, sharing="model")
    newer = fit(Cohort.read(root), tmp_path / "n", later, update=Model.load(model.folder), execution=ONE)
    pairs = registered_pairs(newer, Cohort.read(root), tmp_path / "n" / "work")
    found = {(pair.subject.name, pair.atlas.name) for pair in pairs}
    assert found == {("s0", "s1"), ("s2", "s1"), ("s0", "ref"), ("s1", "ref"), ("s2", "ref")}


def test_the_log_does_not_name_an_atlas_that_lies_beside(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(tmp_path / "doe_jane.nii.gz", subject(9)[0])
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "run.log"
    words = ["train", str(root), "-o", "m", "--atlas", "doe_jane.nii.gz", "--epochs", "1", "--width", "0.25"]
    assert main([*words, "--registration", "affine", "--threads", "1", "--quiet", "--log", str(log)]) == 0
    assert "doe_jane" not in log.read_text(encoding="utf-8")


def test_a_single_case_that_fails_is_an_object_too(root: Path, tmp_path: Path, capsys: Capture) -> None:
    model = fit(Cohort.read(root), tmp_path / "m", replace(QUICK, operator="affine"), execution=ONE)
    flat = read_labels(root / "labelsTr" / "s0.nii.gz")
    write_volume(tmp_path / "flat.nii.gz", flat.replace(np.full_like(flat.array, 5)))
    words = ["predict", str(tmp_path / "flat.nii.gz"), "-m", str(model.folder), "-o", str(tmp_path / "out")]
    assert main([*words, "--json", "--threads", "1"]) == 2
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert list(found["failed"]) == ["flat"]
    assert f"{tmp_path / 'flat.nii.gz'}: the scan shows nothing: it is constant; expected different" in said.err
