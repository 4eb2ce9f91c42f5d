"""Cross-validation on a small cohort: nobody is segmented by a model that has seen them, and work goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Fingerprint, Plan, take_fingerprint
from atlasnet.errors import InputError, ModelError, RegistrationError
from atlasnet.evaluation import LabelScores, Table
from atlasnet.execution import Execution, Reporter, SilentReporter, WorkFolder, hold
from atlasnet.execution.memory import Room
from atlasnet.prediction import Ensemble, Predictor
from atlasnet.prediction.answers import Answers
from atlasnet.study import CrossValidation, cross_validate, plan_folds, read_folds, split, train_fold
from atlasnet.training.estimate import DiceEstimate, Line
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.volume import Volume
from synthetic import LABELS, write_cohort

QUICK = FitOptions(atlases=1, width=0.25, epochs=2, operator="centre")
pytestmark = pytest.mark.usefixtures("brief")
NAMES = ["s0", "s1", "s2", "s3"]
ONE = Execution(threads=1)


class Told(SilentReporter):
    """Keeps notes too."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(4)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cross") / "validation"


@pytest.fixture(scope="module")
def found(cohort: Cohort, folder: Path) -> CrossValidation:
    return cross_validate(cohort, folder, QUICK, folds=2, execution=ONE)


@given(st.integers(2, 40), st.integers(2, 12), st.integers(0, 5))
def test_folds_are_a_fair_partition(count: int, folds: int, seed: int) -> None:
    names = [f"case{i}" for i in range(count)]
    if folds > count:
        with pytest.raises(InputError, match="folds"):
            split(names, folds, seed)
        return
    groups = split(names, folds, seed)
    assert sorted(name for group in groups for name in group) == sorted(names)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert groups == tuple(tuple(sorted(group)) for group in groups)
    assert groups == split(names[::-1], folds, seed)


def test_another_seed_divides_the_subjects_otherwise() -> None:
    names = [f"case{i}" for i in range(20)]
    assert len({split(names, 5, seed) for seed in range(4)}) == 4


def test_few_subjects_are_left_out_one_by_one() -> None:
    assert [len(group) for group in split(NAMES, None, 0)] == [1, 1, 1, 1]
    for count, sizes in ((9, [1] * 9), (10, [2] * 5), (11, [3, 2, 2, 2, 2])):
        assert [len(group) for group in split([str(i) for i in range(count)], None, 0)] == sizes
    with pytest.raises(InputError, match="expected 2 to 4; found 1"):
        split(NAMES, 1, 0)


def test_nobody_is_segmented_by_a_model_that_has_seen_them(found: CrossValidation, folder: Path) -> None:
    assert sorted(name for fold in found.folds for name in fold) == NAMES
    for number, fold in enumerate(found.folds, start=1):
        model = Model.load(folder / f"fold_{number}")
        assert set(model.provenance["data"]) == set(NAMES) - set(fold)
        assert not {atlas.subject for atlas in model.atlases} & set(fold)
        for name in fold:
            record = json.loads((folder / "predictions" / f"{name}.json").read_text())
            assert [atlas["name"] for atlas in record["atlases"]] == [atlas.name for atlas in model.atlases]


def test_the_table_holds_every_subject_and_its_interval_the_mean(found: CrossValidation, folder: Path) -> None:
    assert found.table.cases == NAMES
    assert not found.table.missing
    assert set(found.table.labels) == {name for name, value in LABELS.items() if value}
    for name in found.table.labels:
        dice = [row.dice for row in found.table.rows if row.label == name]
        interval = found.intervals[name]
        assert interval is not None
        assert min(dice) <= interval[0] <= np.mean(dice) <= interval[1] <= max(dice)
        assert f"{name}: Dice {np.mean(dice):.3f}" in found.text()
    written = json.loads((folder / "cross_validation.json").read_text())
    assert written["folds"] == [list(fold) for fold in found.folds]
    assert (folder / "table.csv").exists()
    of_cases = [np.mean([row.dice for row in found.table.rows if row.case == case]) for case in NAMES]
    assert written["over_labels"]["dice"] == pytest.approx(np.mean(of_cases))
    assert written["over_labels"]["worst_tenth"] == pytest.approx(min(of_cases))
    assert written["cautions"] == ["With 4 subjects intervals are too narrow."]
    assert written["cautions"][0] in found.text()
    assert f"mean over labels: Dice {np.mean(of_cases):.3f} on average, 95 % interval" in found.text()
    assert f"worst tenth of the subjects {min(of_cases):.3f}\n" in found.text()


def test_of_many_subjects_the_worst_tenth_has_an_interval_and_nothing_is_warned_of() -> None:
    dice = np.random.default_rng(0).uniform(0.6, 0.9, (30, 2))
    score = dict.fromkeys((field.name for field in fields(LabelScores)), 0.0)
    rows = tuple(
        LabelScores(**score | {"case": f"s{case}", "label": label, "dice": value, "presence": "both"})
        for case, of_labels in enumerate(dice.tolist())
        for label, value in zip(("a", "b"), of_labels, strict=True)
    )
    found = CrossValidation((("s0",),), Table({"a": 1, "b": 2}, rows), {"a": None, "b": None})
    every = found.over_labels()
    assert every is not None
    means = np.sort(dice.mean(1))
    assert (every["subjects"], every["dice"]) == (30, pytest.approx(means.mean()))
    assert every["worst_tenth"] == pytest.approx(means[:3].mean())
    low, high = every["worst_tenth_interval_95"]
    assert low <= every["worst_tenth"] <= high
    assert f"{every['worst_tenth']:.3f}, 95 % interval {low:.3f} to {high:.3f}" in found.text()
    assert found.cautions() == []


def test_of_many_labels_the_lowest_are_told_and_how_many_can_be_estimated() -> None:
    score = dict.fromkeys((field.name for field in fields(LabelScores)), 0.0)
    names = [f"rib {number:02d}" for number in range(1, 41)]
    rows = tuple(
        LabelScores(**score | {"case": "s", "label": name, "dice": 0.9 - number / 100, "presence": "both"})
        for number, name in enumerate(names)
    )
    lines = {name: Line((0.4, 0.2), (0.5, 0.5), 0.6, number / 100, 9) for number, name in enumerate(names[:30])}
    table = Table({name: number for number, name in enumerate(names, 1)}, rows)
    text = CrossValidation((("s",),), table, dict.fromkeys(names), DiceEstimate(lines, 0.1)).text()
    told = [line.split(":")[0] for line in text.splitlines() if line.startswith("rib")]
    assert told == names[:-13:-1]
    assert "for 30 of 40 labels, with errors of 0.000 to 0.290" in text


def test_predictions_are_called_label_maps(found: CrossValidation, folder: Path) -> None:
    for name in NAMES:
        assert sitk.ReadImage(folder / "predictions" / f"{name}.nii.gz").GetMetaData("intent_code") == "1002"


@pytest.mark.parametrize("damage", ["absent", "cut off", "other labels"])
def test_the_same_call_goes_on_where_it_was_stopped(
    found: CrossValidation, cohort: Cohort, folder: Path, damage: str
) -> None:
    predictions = folder / "predictions"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in predictions.glob("*.nii.gz")}
    labels = predictions / "s2.nii.gz"
    if damage == "absent":
        labels.unlink()
    elif damage == "cut off":
        labels.write_bytes(labels.read_bytes()[:-9])
    else:
        shutil.copy(predictions / "s1.nii.gz", labels)
    left = [predictions / "s2.nii.gz", predictions / "s2.json", folder / "fusion_samples" / "s2.safetensors"]
    left = [file.with_name(f".{file.name}.a1b2c3d4") / file.name for file in left]  # as `kill -9` leaves them
    for begun in left:
        begun.parent.mkdir()
        begun.touch()
    again = cross_validate(cohort, folder, QUICK, folds=2, execution=ONE)
    assert again.as_json() == found.as_json()
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in predictions.glob("*.nii.gz")}
    assert {name for name in before if after[name][0] != before[name][0]} == {"s2.nii.gz"}
    assert after["s2.nii.gz"][1] == before["s2.nii.gz"][1]
    assert not [begun for begun in left if begun.parent.exists()]


def test_other_folds_in_the_same_folder_are_refused(found: CrossValidation, cohort: Cohort, folder: Path) -> None:
    with pytest.raises(InputError, match="other folds; found 2 folds there, 4 asked for"):
        cross_validate(cohort, folder, QUICK, folds=4, execution=ONE)
    one, other = found.folds
    with pytest.raises(InputError, match=f"found {one[0]} in fold 1 there, in 2 as asked for"):
        cross_validate(cohort, folder, QUICK, folds=[one[1:], [one[0], *other]], execution=ONE)
    with pytest.raises(InputError, match=f"found only there: {', '.join(other)}"):
        cross_validate(cohort.select(one), folder, QUICK, folds=[one[:1], one[1:]], execution=ONE)


def _times(folder: Path) -> dict[str, int]:
    """When the models and predictions of a cross-validation were written."""
    files = [*folder.glob("fold_*/model.json"), *folder.glob("predictions/*"), *folder.glob("fusion_samples/*")]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def test_folds_that_were_trained_one_by_one_are_gathered_without_doing_anything_again(
    found: CrossValidation, cohort: Cohort, tmp_path: Path
) -> None:
    other = tmp_path / ".fold_1.lock"
    with hold(other, place=tmp_path, busy="busy", remedy=""):  # the first fold's job is still at it
        second = train_fold(cohort, tmp_path, 2, QUICK, folds=2, execution=ONE)
        with pytest.raises(InputError, match="another process works at this fold"):
            train_fold(cohort, tmp_path, 1, QUICK, folds=2, execution=ONE)
        assert not (tmp_path / "fold_1").exists()
        with pytest.raises(InputError, match="another process works at this fold"):
            cross_validate(cohort, tmp_path, QUICK, folds=2, execution=ONE)
    assert (second.left_out, second.missing) == (found.folds[1], ())
    assert "fold 2 of 2" in second.text()
    train_fold(cohort, tmp_path, 1, QUICK, folds=2, execution=ONE)
    before = _times(tmp_path)
    assert len(before) == 2 + 4 * 3
    gathered = cross_validate(cohort, tmp_path, QUICK, folds=2, execution=ONE)
    assert gathered.as_json() == found.as_json()
    assert _times(tmp_path) == before
    assert not (tmp_path / "work").exists()


def test_a_fold_whose_job_was_stopped_is_gone_on_with_where_it_was(
    found: CrossValidation, cohort: Cohort, tmp_path: Path
) -> None:
    train_fold(cohort, tmp_path, 1, QUICK, folds=2, execution=ONE)
    (tmp_path / "fold_1" / "model.json").unlink()
    networks = {path: path.stat().st_mtime_ns for path in (tmp_path / "fold_1" / "work" / "networks").rglob("*.*")}
    assert networks
    gathered = cross_validate(cohort, tmp_path, QUICK, folds=2, execution=ONE)
    assert gathered.as_json() == found.as_json()
    assert {path: path.stat().st_mtime_ns for path in networks} == networks


def test_a_fold_takes_over_what_the_training_of_all_subjects_has_registered(
    found: CrossValidation, cohort: Cohort, folder: Path, tmp_path: Path
) -> None:
    told = Told()
    train_fold(cohort, tmp_path, 1, QUICK, folds=2, earlier=folder / "work", execution=replace(ONE, reporter=told))
    kept = {path.name: path for path in (folder / "work" / "registrations").iterdir()}
    taken = list((tmp_path / "fold_1" / "work" / "registrations").iterdir())
    assert taken
    assert all((path / "checksums.json").samefile(kept[path.name] / "checksums.json") for path in taken)


def test_finished_folds_are_found_so_while_another_process_works_in_their_work_folder(
    found: CrossValidation, cohort: Cohort, folder: Path
) -> None:
    """A second call may come at any moment of a first one, and would hold that folder when the next fold needs it."""
    with WorkFolder(folder / "work").locked():
        again = cross_validate(cohort, folder, QUICK, folds=2, execution=ONE)
    assert again.as_json() == found.as_json()


def test_other_folds_that_another_job_begins_meanwhile_are_refused(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> tuple[()]:
        (tmp_path / "folds.json").write_text(json.dumps([[name] for name in NAMES]), encoding="utf-8")
        return ()

    monkeypatch.setattr("atlasnet.study.folds.same_scans", meanwhile)
    with pytest.raises(InputError, match="other folds; found 4 folds there, 2 asked for"):
        train_fold(cohort, tmp_path, 1, QUICK, folds=2, execution=ONE)


@pytest.mark.parametrize("text", ["[", "7"])
def test_folds_that_are_damaged_are_named(cohort: Cohort, tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"folds\.json: what an earlier call wrote cannot be used"):
        plan_folds(cohort, tmp_path, QUICK, 2, ONE)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_fold_that_there_is_not_is_refused(cohort: Cohort, tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError, match=r"no such fold.*1 to 2"):
        train_fold(cohort, tmp_path / "x", number, QUICK, folds=2, execution=ONE)
    assert not (tmp_path / "x").exists()


def test_the_command_trains_single_folds_by_the_plan_beside_the_model(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m"
    base = ["train", str(cohort.root), "-o", str(model), "--atlases", "1", "--width", "0.25", "--epochs", "1"]
    words = [*base, "--registration", "centre", "--threads", "1", "--json"]
    assert main([*words, "--folds", "2", "--only-fold", "2", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["subjects"] == 2
    assert not model.exists()
    assert main([*words, "--only-fold", "2"]) == 2
    assert main([*words, "--folds", "2", "--only-fold", "2", "--ensemble"]) == 2
    assert main([*words, "--folds", "2", "--only-fold", "3"]) == 2
    told = capsys.readouterr().err
    assert [text in told for text in ("there are no folds", "--ensemble is for all folds", "no such fold")] == [
        True
    ] * 3
    plan = Plan.derive(take_fingerprint(cohort), registered=True)
    replace(plan, spacing=(9.0, 9.0, 9.0)).write(model / "plan.json")
    assert main([*words, "--folds", "2", "--only-fold", "2", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["spacing"] == [9.0, 9.0, 9.0]
    assert main([*words, "--folds", "2", "--only-fold", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["fold"], result["folds"], len(result["left_out"]), result["missing"]) == (2, 2, 2, [])
    assert Model.load(model / "cross_validation" / "fold_2").plan.spacing == (9.0, 9.0, 9.0)
    assert not (model / "model.json").exists()
    before = _times(model / "cross_validation")
    assert main([*words, "--folds", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cross_validation"]["folds"]) == 2
    assert before.items() <= _times(model / "cross_validation").items()


def test_a_subject_that_is_an_atlas_is_not_left_out(cohort: Cohort, tmp_path: Path) -> None:
    for name in ("s1", str(cohort["s1"].images[0])):
        with pytest.raises(InputError, match="s1"):
            cross_validate(cohort, tmp_path / "x", FitOptions(atlases=(name,)), execution=ONE)
    assert not (tmp_path / "x").exists()


def test_the_command_trains_and_cross_validates(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--atlases", "1", "--width", "0.25", "--epochs", "1"]
    code = main([*words, "--registration", "centre", "--folds", "2", "--threads", "1", "--json"])
    assert code == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["cross_validation"]["folds"]) == 2
    assert (tmp_path / "m" / "model.json").exists()
    assert (tmp_path / "m" / "cross_validation" / "table.json").exists()


def test_a_subject_without_a_prediction_is_named_and_in_no_mean(
    found: CrossValidation, cohort: Cohort, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copy(copy / "predictions" / "s2.nii.gz", copy / "predictions" / "s1.nii.gz")
    ask = Predictor.ask

    def refuse_one(self: Predictor, image: Volume, **options: Any) -> Answers:
        (lock,) = copy.glob(".fold_*.lock")
        with pytest.raises(InputError, match="busy"), hold(lock, place=copy, busy="busy", remedy=""):
            pass
        if np.array_equal(image.array, cohort["s1"].read_image().array):
            raise RegistrationError("it fits no atlas")
        return ask(self, image, **options)

    monkeypatch.setattr(Predictor, "ask", refuse_one)
    without = cross_validate(cohort, copy, QUICK, folds=2, execution=ONE)
    assert without.table.missing == ("s1",)
    assert not (copy / "predictions" / "s1.nii.gz").exists()  # it was of a model that is not asked
    assert without.table.cases == ["s0", "s2", "s3"]
    assert "without a prediction, and in no mean: s1" in without.text()


def test_subjects_that_fit_no_atlas_at_all_are_an_error(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Left where they lie, the subjects do not fit each other well.
    ask = Predictor.ask

    def ask_for_more(self: Predictor, image: Volume, **options: Any) -> Answers:
        return ask(self, image, **{**options, "minimum_quality": 0.5})

    monkeypatch.setattr(Predictor, "ask", ask_for_more)
    options = FitOptions(atlases=1, width=0.25, epochs=1, operator="identity")
    with pytest.raises(RegistrationError, match="no subject"):
        cross_validate(cohort, tmp_path / "x", options, folds=2, execution=replace(ONE, reporter=(told := Told())))
    warnings = [text for text in told.warnings if "is not asked" in text]
    assert sorted(text.partition(": ")[0] for text in warnings) == NAMES


def test_too_many_folds_are_refused_before_training(cohort: Cohort, tmp_path: Path) -> None:
    assert main(["train", str(cohort.root), "-o", str(tmp_path / "m"), "--folds", "9", "--quiet"]) == 2
    assert not (tmp_path / "m").exists()


def test_other_folds_than_those_begun_are_refused_before_training(
    cohort: Cohort, folder: Path, tmp_path: Path, found: CrossValidation, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "m" / "cross_validation"
    begun.mkdir(parents=True)
    shutil.copyfile(folder / "folds.json", begun / "folds.json")
    for dry in ([], ["--dry-run"]):
        words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--folds", "4", *dry, "--quiet"]
        assert main(words) == 2
        assert "other folds" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["cross_validation"]


@pytest.mark.parametrize(
    ("file", "what"), [("folds.json", "cross-validation"), ("ensemble.json", "ensemble"), ("study.json", "study")]
)
def test_a_model_is_not_trained_among_the_files_of_something_else(
    cohort: Cohort, tmp_path: Path, file: str, what: str
) -> None:
    (tmp_path / file).write_text("[]")
    with pytest.raises(ModelError, match=f"holds an? {what}, not a model; found {file}"):
        fit(cohort, tmp_path, QUICK, execution=ONE)
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize(("file", "what"), [("model.json", "model"), ("study.json", "study")])
def test_folds_are_not_trained_among_the_files_of_something_else(
    cohort: Cohort, tmp_path: Path, file: str, what: str
) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=f"holds a {what}, not a cross-validation; found {file}"):
        cross_validate(cohort, tmp_path, QUICK, execution=ONE)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_scan_that_is_there_twice_is_refused_before_training(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    shutil.copytree(cohort.root, root)
    scan = sitk.ReadImage(root / "imagesTr" / "s1_0000.nii.gz")
    sitk.WriteImage(sitk.Cast(scan, sitk.sitkFloat64), root / "imagesTr" / "again_0000.nii.gz", useCompression=False)
    shutil.copy(root / "labelsTr" / "s1.nii.gz", root / "labelsTr" / "again.nii.gz")
    assert main(["train", str(root), "-o", str(tmp_path / "m"), "--folds", "2", "--quiet"]) == 2
    assert "s1 is again" in capsys.readouterr().err
    # Nor may it be the atlas of a model that segments it.
    command = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--folds", "2", "--quiet"]
    for option, value in (("--atlas-images", root), ("--atlas", root / "imagesTr" / "again_0000.nii.gz")):
        assert main([*command, option, str(value)]) == 2
        assert "again is s1" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def splits(groups: list[list[str]]) -> list[dict[str, list[str]]]:
    """As nnU-Net writes them."""
    return [{"train": sorted({*NAMES} - {*group}), "val": group} for group in groups]


def test_folds_may_be_those_of_a_file(cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two scans of one patient are left out together."""
    folds = tmp_path / "splits_final.json"
    folds.write_text(json.dumps(splits([["s1", "s0", "s3"], ["s2"]])), encoding="utf-8")
    command = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--folds", str(folds), "--atlases", "1", "--json"]
    command += ["--width", "0.25", "--epochs", "1", "--registration", "centre", "--threads", "1", "--quiet"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["cross_validation"]["folds"] == [["s0", "s1", "s3"], ["s2"]]
    trained = [Model.load(tmp_path / "m" / "cross_validation" / f"fold_{n}").provenance["data"] for n in (1, 2)]
    assert [sorted(names) for names in trained] == [["s2"], ["s0", "s1", "s3"]]


def test_a_scan_may_be_there_twice_where_both_are_left_out_together(cohort: Cohort, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(cohort.root, root)
    for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        shutil.copy(root / part.format("s1"), root / part.format("again"))
    twice = Cohort.read(root)
    found = plan_folds(twice, tmp_path, QUICK, [["s1", "again"], ["s0", "s2", "s3"]], ONE)
    assert found == (("again", "s1"), ("s0", "s2", "s3"))
    with pytest.raises(InputError, match="s1 is again"):
        plan_folds(twice, tmp_path, QUICK, [["s1"], ["again", "s0", "s2", "s3"]], ONE)


@pytest.mark.parametrize(
    ("groups", "found"),
    [
        ([["s0", "s1"], ["s1", "s2", "s3"]], "left out more than once; .*s1 2 times"),
        ([["s0", "s1"], ["s2", "s3", "x"]], "somebody who is no subject; .*found x;"),
        ([["s0", "s1", "s2", "s3"]], "fold 0 leaves nobody to train on"),
        ([["s0", "s1", "s2", "s3"], []], "a fold leaves nobody out"),
        ([], "there is no fold"),
    ],
)
def test_folds_that_cannot_be_trained_or_scored_are_refused(
    cohort: Cohort, groups: list[list[str]], found: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=found):
        plan_folds(cohort, tmp_path, QUICK, groups, ONE)


def written(folder: Path, content: object) -> Path:
    path = folder / "splits_final.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_folds_that_learn_from_fewer_than_all_others_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    """The file means that somebody is in no training; we have no such folds."""
    path = written(tmp_path, [{"train": ["s0"], "val": ["s2", "s3"]}, *splits([["s0", "s1"]])])
    with pytest.raises(InputError, match=r"fold 0 is not trained on everybody.*found in neither: s1;.*--subjects"):
        plan_folds(cohort, tmp_path, QUICK, read_folds(path), ONE)
    # What the message advises mends it.
    without = cohort.select(["s0", "s2", "s3"])
    assert plan_folds(without, tmp_path, QUICK, read_folds(path), ONE) == (("s2", "s3"), ("s0",))
    # A fold that leaves out none of those who take part is not trained.
    path, without = (
        written(tmp_path, [{"train": ["s0"], "val": ["s2"]}, *splits([["s1"]])]),
        cohort.select(["s0", "s1", "s3"]),
    )
    assert plan_folds(without, tmp_path, QUICK, read_folds(path), ONE) == (("s1",),)


def test_a_train_list_may_name_subjects_only(cohort: Cohort, tmp_path: Path) -> None:
    path = written(tmp_path, [{"train": [*NAMES[1:], "typo"], "val": ["s0"]}])
    with pytest.raises(InputError, match=r"splits_final.json: the folds name somebody who is no subject; .*found typo"):
        plan_folds(cohort, tmp_path, QUICK, read_folds(path), ONE)


def test_a_file_does_not_train_on_whom_it_leaves_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fold 0 is trained on subjects whom it leaves out; .*found s1;"):
        read_folds(written(tmp_path, [{"train": ["s0", "s1"], "val": ["s1", "s2"]}]))


def test_folds_of_everybody_serve_those_who_take_part(cohort: Cohort, tmp_path: Path) -> None:
    say = Told()
    part, folds = cohort.select(["s3", "s0", "s1"]), read_folds(written(tmp_path, splits([[name] for name in NAMES])))
    assert plan_folds(part, tmp_path, QUICK, folds, replace(ONE, reporter=say)) == (("s0",), ("s1",), ("s3",))
    assert "those who take no part are taken out of the folds: s2" in say.notes
    assert not say.warnings
    with pytest.raises(InputError, match="nobody whom the folds leave out takes part"):
        plan_folds(part, tmp_path, QUICK, [["s2"]], ONE)


def test_who_is_left_out_by_no_fold_is_trained_on_in_all_and_has_no_score(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single split, as nnU-Net users write it, and the atlas is one that it trains on."""
    path, model = written(tmp_path, [{"train": ["s0", "s1"], "val": ["s2", "s3"]}]), tmp_path / "m"
    command = ["train", str(cohort.root), "-o", str(model), "--folds", str(path), "--atlas", "s0", "--ensemble"]
    command += ["--width", "0.25", "--epochs", "1", "--registration", "centre", "--threads", "1", "--report"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.count("2 of 4 subjects are left out by no fold") == 1
    assert "2 subjects, each by a model that has not seen it, 1 fold\n2 subjects more, left out by no fold" in said.out
    folder = model / "cross_validation"
    assert f"ensemble of 1 model: {folder}" in said.out
    assert sorted(Model.load(folder / "fold_1").provenance["data"]) == ["s0", "s1"]
    found = json.loads((folder / "cross_validation.json").read_text(encoding="utf-8"))
    assert (found["folds"], found["never_left_out"], found["missing"]) == ([["s2", "s3"]], ["s0", "s1"], [])
    assert sorted({row["case"] for row in found["rows"]}) == ["s2", "s3"]
    assert "without a score: s0, s1." in (model / "report.html").read_text(encoding="utf-8")
    assert len(Ensemble.load([folder])) == 1


def test_a_scan_that_is_there_twice_is_not_both_left_out_and_trained_on_in_all(cohort: Cohort, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(cohort.root, root)
    for part in ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"):
        shutil.copy(root / part.format("s1"), root / part.format("again"))
    twice = Cohort.read(root)
    with pytest.raises(InputError, match="s1 is again"):
        plan_folds(twice, tmp_path, QUICK, [["s1"]], ONE)
    assert plan_folds(twice, tmp_path, QUICK, [["s2"]], ONE) == (("s2",),)


@pytest.mark.parametrize("name", ["all", "2.5", "absent.json"])
def test_folds_that_are_no_number_and_no_file_are_refused(
    cohort: Cohort, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(cohort.root), "-o", str(tmp_path / "m"), "--folds", name]) == 2
    error = capsys.readouterr().err
    assert f"{name}: the folds are no number and no file; expected a number, or JSON" in error
    assert "--folds 5" in error
    assert "Error" not in error
    with pytest.raises(InputError, match="the folds are no file"):
        read_folds(tmp_path)


def test_scans_that_memory_does_not_suffice_for_are_not_compared(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("atlasnet.execution.memory.memory_left", lambda: Room(1000, "the machine has"))
    with pytest.raises(InputError, match="memory does not suffice"):
        plan_folds(cohort, tmp_path, QUICK, 2, ONE)


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", '{"val": ["a"]}', "[7]", '["a", "b"]', '[{"train": ["a"]}]', "[[1], [2]]"),
        '[{"train": [1], "val": ["a"]}]',
    ],
)
def test_a_file_that_holds_no_folds_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="folds cannot be read"):
        read_folds(tmp_path / "folds.json")


def test_a_cohort_is_measured_for_the_folds_only_where_its_plan_is_kept(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--quiet", "--threads", "1", "--atlases", "1"]
    words += ["--registration", "centre", "--epochs", "1", "--width", "0.25"]
    assert main(words) == 0
    measured: list[int] = []

    def noted(subjects: Cohort, reporter: Reporter) -> Fingerprint:
        measured.append(len(subjects))
        return take_fingerprint(subjects, reporter)

    monkeypatch.setattr("atlasnet.training.fit.take_fingerprint", noted)
    assert main([*words, "--folds", "2"]) == 0
    assert measured == [len(cohort) // 2] * 2  # each fold's own subjects


def test_a_plan_changed_by_hand_is_that_of_every_fold(cohort: Cohort, tmp_path: Path) -> None:
    data, model = str(cohort.root), tmp_path / "m"
    words = ["train", data, "-o", str(model), "--quiet", "--threads", "1", "--atlases", "1", "--registration", "centre"]
    words += ["--epochs", "1", "--folds", "2"]
    plan = replace(
        Plan.derive(take_fingerprint(cohort), registered=False), width=0.25, context=0, spacing=(3.0, 3.0, 3.5)
    )
    plan.write(model / "plan.json")
    assert main(words) == 0
    found = [Model.load(model / place).plan for place in (".", "cross_validation/fold_1", "cross_validation/fold_2")]
    assert found == [plan] * 3
