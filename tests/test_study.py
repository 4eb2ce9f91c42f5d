"""The study on a small cohort: every method, restarted, extended, refused where it would mislead."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Plan, Subject
from atlasnet.errors import Cancelled, CohortError, InputError, RegistrationError
from atlasnet.execution import Execution, SilentReporter, write_json
from atlasnet.prediction import Predictor
from atlasnet.prediction.answers import Answers
from atlasnet.registration import make_operator
from atlasnet.study import Study, StudyOptions, forecast_study, read_test_subjects, run_study, summarise, write_study
from atlasnet.study.memory import RememberingOperator
from atlasnet.study.methods import METHODS
from atlasnet.study.propagation import propagate_labels
from atlasnet.study.request import StudyRequest
from atlasnet.training.model import Model
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Volume, read_labels, read_volume, write_volume
from synthetic import LABELS, SPACING, dice, subject, write_cohort, write_study_cohort

ONE = Execution(threads=1)
RECIPE = replace(Recipe.preset("default"), epochs=3, iterations=8, passes=0.1, batch_slices=8, learning_rate=6e-3)
SETTINGS = {"atlases": 2, "seeds": 1, "width": 0.5, "preset": RECIPE, "operator": "centre"}
QUICK = StudyOptions(**SETTINGS, fractions=(1.0, 0.5))
TESTS = ("t0", "t1", "t2")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_study_cohort(tmp_path_factory.mktemp("cohort"), range(4), TESTS))


@pytest.fixture(scope="module")
def tests(cohort: Cohort) -> tuple[Subject, ...]:
    return read_test_subjects(cohort.root, cohort)


@pytest.fixture(scope="module")
def study(cohort: Cohort, tests: tuple[Subject, ...], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(cohort, tests, tmp_path_factory.mktemp("study") / "study", QUICK, execution=ONE)


@pytest.fixture(scope="module")
def found(study: Study, tests: tuple[Subject, ...]) -> dict:
    return write_study(study, tests)


def test_every_method_segments_every_test_subject(study: Study, found: dict) -> None:
    assert list(found["methods"]) == [method.name for method in METHODS]
    for row in found["methods"].values():
        assert row["failed"] == []
        assert 0.1 < row["mean_dice"] <= 1
        assert row["worst_tenth"] <= row["mean_dice"]
    for name in ("plain", "atlasnet-2", "propagation"):
        for case in TESTS:
            labels = read_labels(study.folder / "runs" / name / "100" / "seed0" / f"{case}.nii.gz")
            assert set(np.unique(labels.array)) <= set(LABELS.values())


def test_every_label_map_of_a_study_is_called_one(study: Study) -> None:
    written = list((study.folder / "runs").rglob("*.nii.gz"))
    assert len(written) >= len(TESTS)
    assert {sitk.ReadImage(path).GetMetaData("intent_code") for path in written} == {"1002"}


def test_the_table_is_the_mean_of_the_scores_on_disk(study: Study, found: dict) -> None:
    with (study.folder / "cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for name, atlases in (("atlasnet", "2"), ("plain", "")):
        own = [r for r in rows if r["method"] == name and r["atlases"] == atlases and r["fraction"] == "1.0"]
        assert len(own) == len(TESTS) * 2
        assert np.mean([float(r["dice"]) for r in own]) == pytest.approx(found["methods"][name]["mean_dice"])
        core = [float(r["dice"]) for r in own if r["label"] == "core"]
        assert np.mean(core) == pytest.approx(found["methods"][name]["labels"]["core"]["dice"])


def test_scores_are_those_of_the_label_maps(study: Study, cohort: Cohort) -> None:
    for result in study.results:
        if result.run.fraction == 1 and result.run.method.name in ("atlasnet", "propagation-local", "ensemble"):
            labels = read_labels(study.folder / result.run.folder / f"{result.case}.nii.gz").array
            reference = read_labels(cohort.root / "labelsTs" / f"{result.case}.nii.gz").array
            for row in result.scores:
                value = LABELS[row["label"]]
                assert row["dice"] == pytest.approx(dice(labels == value, reference == value))


def test_only_what_several_networks_say_has_an_agreement(study: Study, found: dict) -> None:
    for result in study.results:
        one = result.run.method.name in ("plain", "augmented", "augmented-long") or result.run.atlases == 1
        if result.details.keys() > {"seconds"}:
            assert (result.details["agreement"] is None) == one
            assert result.details["certainty"] is not None
    assert found["confidence"]["plain"]["agreement_of_subjects"] == {}
    assert sorted(found["confidence"]["atlasnet"]["agreement_of_subjects"]) == [*TESTS]


def test_curves_have_a_point_for_each_number_of_atlases_and_share(found: dict) -> None:
    assert [p["x"] for p in found["over_atlases"]["atlasnet"]] == [1, 2]
    assert found["over_atlases"]["atlasnet"][1]["dice"] == found["methods"]["atlasnet"]["mean_dice"]
    assert [p["x"] for p in found["over_fractions"]["plain"]] == [0.5, 1.0]
    seconds = [p["seconds"] for p in found["over_atlases"]["atlasnet"]]
    assert 0 < seconds[0] < seconds[1]


def test_methods_are_compared_with_atlasnet_subject_by_subject(found: dict) -> None:
    gain = found["methods"]["plain"]["main_minus_this"]
    ours, theirs = found["subjects"]["atlasnet"], found["subjects"]["plain"]
    assert gain["mean"] == pytest.approx(np.mean([ours[c] - theirs[c] for c in ours]))
    assert gain["p"] <= gain["p_holm"] <= 1
    assert "main_minus_this" not in found["methods"]["atlasnet"]


def test_networks_of_an_ensemble_differ_and_share_the_plain_one(study: Study) -> None:
    models = study.folder / "models" / "own-unaugmented" / "100"
    assert sorted(path.name for path in models.iterdir()) == ["seed0", "seed1000"]
    weights = [next((path / "networks").glob("*.safetensors")).read_bytes() for path in sorted(models.iterdir())]
    assert weights[0] != weights[1]
    of_method = {r.run.method.name: r for r in study.results if r.case == "t0" and r.run.fraction == 1}
    assert of_method["ensemble"].scores != of_method["plain"].scores


def test_the_longer_training_sees_as_many_epochs_as_all_atlases(study: Study) -> None:
    folder = study.folder / "models" / "own-long" / "100" / "seed0"
    common, tunings = 3, 2 * 1
    assert len(next(folder.glob("log/*.csv")).read_text().splitlines()) - 1 == common + tunings
    recipe = Recipe.from_json(Model.load(folder).provenance["recipe"])
    for slices in (10, 10**5):  # an epoch does not become shorter by there being more of them
        assert recipe.steps(slices, 8) == RECIPE.steps(slices, 8)


def test_the_same_call_does_nothing_and_gives_the_same(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("something finished was done again")

    monkeypatch.setattr("atlasnet.study.study.fit", nothing)
    monkeypatch.setattr("atlasnet.study.study.propagate_labels", nothing)
    again = run_study(cohort, tests, study.folder, QUICK, execution=ONE)
    assert again.results == study.results


def test_a_stopped_study_goes_on_to_the_same_scores(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path
) -> None:
    options = StudyOptions(**SETTINGS, methods=("propagation", "atlasnet"))
    stopped = 0
    found = None
    while found is None:
        # Each call gets a little further than the one before.
        left = iter([False] * (60 + 25 * stopped) + [True] * 10**5)
        execution = Execution(threads=1, cancelled=left.__next__)
        try:
            found = run_study(cohort, tests, tmp_path / "stopped", options, execution=execution)
        except Cancelled:
            stopped += 1
    assert stopped > 1
    expected = {
        (r.run, r.case): r.scores
        for r in study.results
        if r.run.fraction == 1 and r.run.method.name in ("propagation", "atlasnet")
    }
    assert {(r.run, r.case): r.scores for r in found.results} == expected


def test_warnings_that_come_up_within_a_scan_name_it(
    cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Left where they lie, scans and atlases do not fit each other well.
    ask, reporter = Predictor.ask, SilentReporter()

    def ask_for_more(self: Predictor, image: Volume, **options: Any) -> Answers:
        return ask(self, image, **{**options, "minimum_quality": 0.5})

    monkeypatch.setattr(Predictor, "ask", ask_for_more)
    options = StudyOptions(**SETTINGS | {"operator": "identity", "width": 0.25}, methods=("atlasnet",))
    run_study(cohort, tests, tmp_path / "s", options, execution=replace(ONE, reporter=reporter))
    warnings = [text for text in reporter.warnings if "is not asked" in text]
    assert sorted(text.partition(": ")[0] for text in warnings) == sorted(2 * TESTS)


def test_another_study_in_the_folder_is_refused(study: Study, cohort: Cohort, tests: Sequence[Subject]) -> None:
    options = StudyOptions(**SETTINGS | {"width": 0.25})
    with pytest.raises(InputError, match=r"other settings; found width: 0\.5 there, 0\.25 asked for; to mend it"):
        run_study(cohort, tests, study.folder, options, execution=ONE)
    with pytest.raises(InputError, match=r"found tests: without t2; seed: 0 there, 1 asked for; to mend it"):
        run_study(cohort, tests[:2], study.folder, QUICK, execution=replace(ONE, seed=1))


@pytest.mark.parametrize("wrong", [{"network": "nope"}, {"operator": "nope"}, {"observers": (Path("nowhere"),)}])
def test_a_study_that_is_refused_leaves_nothing_that_refuses_the_next(
    cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, wrong: dict
) -> None:
    with pytest.raises(InputError):
        run_study(cohort, tests, tmp_path / "s", StudyOptions(**SETTINGS | wrong), execution=ONE)
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".json"] == []


def test_a_training_subject_cannot_be_a_test_subject(cohort: Cohort, tmp_path: Path) -> None:
    copied = tmp_path / "scans" / "copy_0000.nii.gz"
    copied.parent.mkdir()
    shutil.copyfile(cohort["s1"].images[0], copied)
    leaked = Subject("innocent", (copied,), cohort["s1"].labels)
    with pytest.raises(InputError, match="innocent is s1"):
        run_study(cohort, [leaked], tmp_path / "o", QUICK, execution=ONE)


def test_a_training_scan_is_recognised_in_another_file(cohort: Cohort, tmp_path: Path) -> None:
    """Turned, in another format and type of numbers, without its place in the patient."""
    scan = sitk.ReadImage(cohort["s1"].images[0], sitk.sitkFloat64)
    turned = sitk.Flip(sitk.PermuteAxes(scan, [2, 0, 1]), [True] * 3)
    turned.SetOrigin((40.0, -7.0, 3.0))
    (tmp_path / "scans").mkdir()
    sitk.WriteImage(turned, tmp_path / "scans" / "copy.mha")
    reference = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(cohort["s1"].labels), [2, 0, 1]), [True] * 3)
    reference.CopyInformation(turned)
    sitk.WriteImage(reference, tmp_path / "labels.nii.gz")
    leaked = Subject("innocent", (tmp_path / "scans" / "copy.mha",), tmp_path / "labels.nii.gz")
    with pytest.raises(InputError, match="innocent is s1"):
        run_study(cohort, [leaked], tmp_path / "o", QUICK, execution=ONE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seed"),
        ({"fractions": (1.2,)}, "shares"),
        ({"methods": ("nonsense",)}, "no such method"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        StudyOptions(**options)


def test_test_subjects_without_reference_are_named(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(cohort.root, folder)
    (folder / "labelsTs" / "t1.nii.gz").unlink()
    with pytest.raises(CohortError, match="t1"):
        read_test_subjects(folder, cohort)


def test_observers_are_scored_beside_the_methods(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path
) -> None:
    for case, suffix in zip(TESTS, (".nii.gz", ".nii", ".mha"), strict=True):
        labels = read_labels(cohort.root / "labelsTs" / f"{case}.nii.gz")
        labels.array[labels.array == LABELS["core"]] = LABELS["shell"]
        write_volume(tmp_path / f"{case}{suffix}", labels)
    options = StudyOptions(**SETTINGS, methods=("plain",), observers=(tmp_path,))
    again = run_study(cohort, tests, study.folder, options, execution=ONE)
    (observer,) = summarise(again)["observers"]
    assert observer["subjects"] == 3
    assert observer["labels"]["core"]["dice"] == 0
    assert observer["undefined"]["core"]["hausdorff_mm"] == 3
    assert 0.5 < observer["labels"]["shell"]["dice"] < 1


def test_the_atlas_itself_propagates_its_own_labels(cohort: Cohort) -> None:
    image, labels = cohort["s0"].read_image(), cohort["s0"].read_labels()
    for local in (False, True):
        found, _ = propagate_labels(
            image, [(image, labels)], (0, 2, 4), make_operator("identity"), local=local, execution=ONE
        )
        np.testing.assert_array_equal(found.array, labels.array)


def test_an_atlas_has_no_vote_where_nobody_annotated_it() -> None:
    image, labels = subject(7)
    thin = labels.array.copy()
    thin[:, ::2] = 9
    found, _ = propagate_labels(
        image,
        [(image, labels), *[(image, labels.replace(thin))] * 2],
        (0, 2, 4),
        make_operator("identity"),
        execution=ONE,
    )
    np.testing.assert_array_equal(found.array, labels.array)


def test_an_atlas_has_no_vote_beyond_its_field_of_view() -> None:
    image, labels = subject(7)
    half = image.grid.cropped((slice(7, 14), slice(0, 28), slice(0, 32)))
    upper = Volume(image.array[:, 7:].copy(), half), Volume(labels.array[:, 7:].copy(), half)
    atlases = [(image, labels), upper, upper]
    found, _ = propagate_labels(image, atlases, (0, 2, 4), make_operator("identity"), execution=ONE)
    assert labels.array[:, :7].any()
    np.testing.assert_array_equal(found.array, labels.array)


def test_local_weights_prefer_the_atlas_that_fits() -> None:
    (image, labels), (other, wrong) = subject(7), subject(7)
    random = np.random.default_rng(0)
    noise = other.replace((0.5 * other.array + random.normal(size=other.array.shape) * 40).astype(np.float32))
    wrong = wrong.replace(np.where(labels.array == 4, 2, 4).astype(np.uint8))
    atlases = [(image, labels), (noise, wrong), (noise, wrong)]
    voted, weighted = (
        propagate_labels(image, atlases, (0, 2, 4), make_operator("identity"), local=local, execution=ONE)[0].array
        for local in (False, True)
    )
    assert dice(voted == 4, labels.array == 4) < 0.1
    np.testing.assert_array_equal(weighted, labels.array)


class Tags(HTMLParser):
    """Counts what a page holds, and where it would load anything from."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


@pytest.mark.parametrize("fusion", ["staple", "local"])
def test_another_fusion_is_asked_of_the_same_networks(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, fusion: str
) -> None:
    shutil.copytree(study.folder, tmp_path / "s", ignore=shutil.ignore_patterns("runs", "settings.json"))
    options = StudyOptions(**SETTINGS, methods=("ensemble", "atlasnet"), fusion=fusion)
    found = run_study(cohort, tests, tmp_path / "s", options, execution=ONE)
    maps = {}
    for method in ("ensemble", "atlasnet-2"):
        path = Path("runs") / method / "100" / "seed0" / "t0.nii.gz"
        maps[method] = [read_labels(folder / path).array for folder in (study.folder, found.folder)]
        assert dice(maps[method][0] > 0, maps[method][1] > 0) > 0.9
    assert (maps["atlasnet-2"][0] != maps["atlasnet-2"][1]).any()
    with pytest.raises(InputError, match=f"fusion: mean there, {fusion} asked for"):
        run_study(cohort, tests, study.folder, options, execution=ONE)


def test_the_page_holds_everything_and_loads_nothing(study: Study, found: dict) -> None:
    parser = Tags()
    parser.feed((study.folder / "study.html").read_text(encoding="utf-8"))
    assert parser.tags["table"] == 5 + len(study.labels)
    # Of three subjects there are no correlations, and no table without a number.
    assert "it takes four test subjects or more" in (study.folder / "study.html").read_text(encoding="utf-8")
    assert parser.tags["svg"] == 5
    assert parser.tags["img"] == 3 * len(METHODS)
    assert all(source.startswith(("data:", "#")) for source in parser.sources)
    assert {path.name for path in (study.folder / "figures").glob("*.svg")} == {
        "atlases.svg",
        "fractions.svg",
        "calibration.svg",
        "confidence.svg",
        "coverage.svg",
    }


def test_the_command_runs_says_where_the_page_is_and_removes_what_a_killed_one_had_begun(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", str(cohort.root), "-o", str(tmp_path / "o"), "--only", "propagation", "--atlases", "2"]
    (tmp_path / "two.txt").write_text("t0\nt2\n")
    words += ["--registration", "centre", "--test-subjects", str(tmp_path / "two.txt"), "--threads", "1"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cases"] == ["t0", "t2"]
    written = sorted((tmp_path / "o").rglob("*"))
    for file in ("study.html", "runs/propagation/100/seed0/t0.json", "figures/atlases.svg"):
        begun = (tmp_path / "o" / file).with_name(f".{Path(file).name}.a1b2c3d4")  # as `kill -9` leaves it
        begun.mkdir(parents=True)
        (begun / Path(file).name).touch()
    assert main(words) == 0
    assert "study.html" in capsys.readouterr().out
    assert sorted((tmp_path / "o").rglob("*")) == written


def test_no_other_call_takes_the_folder_before_the_page_is_written(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["study", str(cohort.root), "-o", str(tmp_path / "o"), "--only", "propagation", "--atlases", "2"]
    words += ["--registration", "centre", "--threads", "1"]

    def write(*given: Any, **named: Any) -> dict[str, Any]:
        assert main([*words, "--seeds", "1"]) == 2
        return write_study(*given, **named)

    monkeypatch.setattr("atlasnet.study.write_study", write)
    assert main(words) == 0
    assert f"{tmp_path / 'o'}: another process works in this folder" in capsys.readouterr().err
    assert {"study.json", "study.html"} < {path.name for path in (tmp_path / "o").iterdir()}


def test_recipes_without_augmentation_keep_everything_else(study: Study) -> None:
    recipes = {}
    for name in ("own", "own-unaugmented"):
        content = json.loads((study.folder / "models" / name / "100" / "seed0" / "model.json").read_text())
        recipes[name] = Recipe.from_json(content["provenance"]["recipe"])
    assert recipes["own"].augmentation != recipes["own-unaugmented"].augmentation
    assert recipes["own-unaugmented"].augmentation.rotation == 0
    assert recipes["own"].epochs == recipes["own-unaugmented"].epochs == 3


def test_the_canvas_holds_every_scan_however_it_is_turned(
    study: Study, cohort: Cohort, tests: Sequence[Subject]
) -> None:
    canvas = read_volume(study.folder / "canvas.nii.gz")
    assert not canvas.array.any()
    for scan in (*cohort, *tests):
        grid = scan.read_grid()
        reach = np.abs(grid.affine[:3, :3]).sum(1) / 2 + np.ptp(grid.corners(), axis=0) / 2
        assert (canvas.grid.size * canvas.grid.spacing / 2 >= reach - 1e-3).all()


def test_a_failing_atlas_costs_only_the_runs_that_need_it(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    for folder in (tmp_path / "s" / "runs").glob("atlasnet-*"):
        shutil.rmtree(folder)
    register = RememberingOperator.register

    def failing(self: RememberingOperator, source: Volume, targets: Sequence[Volume], **rest: object) -> list:
        first = read_volume(next((tmp_path / "s").glob(f"models/atlases/100/seed0/atlases/{study.atlases[0]}.nii.gz")))
        if np.array_equal(targets[0].array, first.array):
            raise RegistrationError("not onto this one")
        return register(self, source, targets, **rest)

    monkeypatch.setattr(RememberingOperator, "register", failing)
    options = StudyOptions(**SETTINGS, methods=("atlasnet", "propagation"))
    found = summarise(run_study(cohort, tests, tmp_path / "s", options, execution=ONE))
    assert found["methods"]["atlasnet"]["failed"] == []
    assert [point["x"] for point in found["over_atlases"]["atlasnet"]] == [2]


def test_corrected_references_need_a_folder_of_their_own(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    labels = read_labels(tests[0].labels)
    labels.array[labels.array == 4] = 2
    write_volume(tmp_path / "t0.nii.gz", labels)
    changed = (replace(tests[0], labels=tmp_path / "t0.nii.gz"), *tests[1:])
    with pytest.raises(InputError, match="found tests: other data of t0;"):
        run_study(cohort, changed, study.folder, QUICK, execution=ONE)


def test_test_subjects_that_are_labelled_otherwise_are_refused(cohort: Cohort, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", [60, 61])
    content = json.loads((other / "dataset.json").read_text())
    content["labels"] = {"background": 0, "core": 2, "shell": 4}
    (other / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(CohortError, match="not labelled as"):
        read_test_subjects(other, cohort)


def test_a_later_call_adds_methods_to_what_is_there(cohort: Cohort, tests: Sequence[Subject], tmp_path: Path) -> None:
    settings = {**SETTINGS, "operator": "centre"}
    for name in ("propagation", "propagation-local"):
        found = run_study(cohort, tests[:1], tmp_path / "s", StudyOptions(**settings, methods=(name,)), execution=ONE)
    summary = write_study(found, tests[:1])
    assert list(summary["methods"]) == ["propagation", "propagation-local"]
    assert summary["methods"]["propagation"]["interval"] is None
    assert (tmp_path / "s" / "figures" / "propagation-best.png").exists()
    assert not (tmp_path / "s" / "figures" / "propagation-median.png").exists()


def test_one_cohort_can_be_divided_by_names(cohort: Cohort) -> None:
    assert [test.name for test in read_test_subjects(cohort.root, cohort, ["s3", "t1"])] == ["s3", "t1"]
    with pytest.raises(CohortError, match="nobody"):
        read_test_subjects(cohort.root, cohort, ["nobody"])


def test_a_plan_that_changed_between_two_calls_is_refused(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path
) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study.folder, copy, ignore=shutil.ignore_patterns("work", "runs"))
    plan = Plan.read(copy / "plan.json")
    replace(plan, context=0, spacing=(6.0, 6.0, 7.0)).write(copy / "plan.json")
    for what in (run_study, forecast_study):
        with pytest.raises(InputError, match="plan of the study is another one"):
            what(cohort, tests, copy, QUICK, execution=ONE)


def test_a_spacing_that_is_asked_for_is_that_of_the_plan(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path
) -> None:
    for what in (run_study, forecast_study):
        with pytest.raises(InputError, match="another spacing than was asked for"):
            what(cohort, tests, study.folder, replace(QUICK, spacing=(9.0, 9.0, 9.0)), execution=ONE)
    asked = StudyRequest(cohort, tests, tmp_path / "new", replace(QUICK, spacing="scan"), ONE)
    assert asked.plan().spacing == SPACING
    asked.checked_settings()


def test_what_failed_or_was_lost_is_done_again(
    study: Study, cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path
) -> None:
    """A scan may have been out of reach, and label maps may have been deleted to make room."""
    copy = tmp_path / "study"
    shutil.copytree(study.folder, copy)
    failed, lost = sorted((copy / "runs").rglob("t1.json"))[:2]
    before, labels = failed.read_bytes(), lost.with_suffix(".nii.gz").read_bytes()
    write_json(failed, {"scores": [], "details": {}, "error": "there is no such file"})
    lost.with_suffix(".nii.gz").unlink()
    found = run_study(cohort, tests, copy, QUICK, execution=ONE)
    assert json.loads(failed.read_text())["scores"] == json.loads(before)["scores"]
    assert lost.with_suffix(".nii.gz").read_bytes() == labels
    assert all(result.scores for result in found.results)


@pytest.mark.parametrize("name", ["settings.json", "table.csv"])
def test_files_of_another_origin_are_not_written_over(
    cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"editor": 1}', encoding="utf-8")
    with pytest.raises(InputError, match=f"{name}.*is of no study"):
        run_study(cohort, tests, tmp_path, QUICK, execution=ONE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir() if path.suffix] == [(name, '{"editor": 1}')]


@pytest.mark.parametrize(
    ("name", "what"),
    [("model.json", "a model"), ("folds.json", "a cross-validation"), ("ensemble.json", "an ensemble")],
)
def test_a_study_is_not_made_among_the_files_of_a_model(
    cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=f"holds {what}, not a study; found {name}"):
        run_study(cohort, tests, tmp_path, QUICK, execution=ONE)


def test_two_references_of_one_case_are_refused(cohort: Cohort, tests: tuple[Subject, ...], tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(cohort.root, root)
    shutil.copy(root / "labelsTs" / "t1.nii.gz", root / "labelsTs" / "t1.NII.GZ")
    with pytest.raises(InputError, match="two files are called t1"):
        read_test_subjects(root, cohort)


def test_a_test_scan_that_cannot_be_used_is_named_and_the_others_are_scored(tmp_path: Path) -> None:
    data = Cohort.read(write_study_cohort(tmp_path / "data", range(2), TESTS))
    path = tmp_path / "data" / "imagesTs" / "t1_0000.nii.gz"
    image = read_volume(path)
    write_volume(path, image.replace(np.full_like(image.array, 7)))
    options = StudyOptions(**SETTINGS | {"atlases": 1, "operator": "affine"}, methods=("propagation",))
    found = run_study(data, read_test_subjects(data.root, data), tmp_path / "study", options, execution=ONE)
    assert {result.case for result in found.results if result.scores} == {"t0", "t2"}
    row = write_study(found, read_test_subjects(data.root, data))["methods"]["propagation"]
    assert row["failed"] == ["t1"]
