"""What a study finds again of earlier calls, what of it is damaged, and what is refused before any work."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from atlasnet import __version__
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import InputError, VolumeError
from atlasnet.evaluation import PatchProtocol
from atlasnet.execution import Execution, SilentReporter, write_json
from atlasnet.study import Study, StudyOptions, forecast_study, read_test_subjects, run_study, summarise, write_study
from atlasnet.study.kept import read_sealed, write_sealed
from atlasnet.study.records import Run
from atlasnet.study.request import StudyRequest
from atlasnet.study.software import as_text, versions
from atlasnet.study.tables import main_table
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Volume, read_labels, write_labels
from synthetic import write_study_cohort

ONE = Execution(threads=1)
TESTS = ("t0", "t1")
RECIPE = replace(Recipe.preset("default"), epochs=2, iterations=2, passes=0.0, batch_slices=4, sharing="independent")
OPTIONS = StudyOptions(
    atlases=2,
    seeds=1,
    width=0.25,
    preset=RECIPE,
    operator="centre",
    methods=("propagation", "atlasnet"),
    fractions=(0.4,),
    fraction_of="slices",
    curve_epochs=(1,),
    patches=PatchProtocol("core", ("shell",), size=4),
)
LOCAL = replace(OPTIONS, methods=("propagation-local",), fractions=(1.0,), curve_epochs=(), patches=None)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_study_cohort(tmp_path_factory.mktemp("cohort"), range(3), TESTS))


@pytest.fixture(scope="module")
def tests(cohort: Cohort) -> tuple[Subject, ...]:
    return read_test_subjects(cohort.root, cohort)


@pytest.fixture(scope="module")
def study(cohort: Cohort, tests: tuple[Subject, ...], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(cohort, tests, tmp_path_factory.mktemp("study") / "study", OPTIONS, execution=ONE)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("runs/propagation-local/100/seed0", ("propagation-local", 1.0, 0, None, "subjects", None)),
        ("runs/atlasnet-unaugmented-6/100/seed12-epoch3", ("atlasnet-unaugmented", 1.0, 12, 6, "subjects", 3)),
        ("runs/atlasnet-2/7.5-slices/seed0", ("atlasnet", 0.075, 0, 2, "slices", None)),
        ("runs/plain/0.001/seed0", ("plain", 1e-5, 0, None, "subjects", None)),
    ],
)
def test_a_folder_says_which_run_it_is_of(name: str, expected: tuple[object, ...]) -> None:
    run = Run.of_folder(name)
    assert run is not None
    assert (run.method.name, run.fraction, run.seed, run.atlases, run.fraction_of, run.epoch) == expected
    assert run.folder == name


@pytest.mark.parametrize("name", ["runs/other/100/seed0", "runs/plain/100.0/seed0", "runs/plain/./seed0", "runs/plain"])
def test_other_folders_are_of_no_run(name: str) -> None:
    assert Run.of_folder(name) is None


def test_a_later_call_finds_all_that_is_there_without_any_list_of_it(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    assert not (study.folder / "jobs.json").exists()
    shutil.copytree(study.folder, tmp_path / "s")
    (tmp_path / "s" / "runs" / "notes").mkdir()
    found = run_study(cohort, tests, tmp_path / "s", LOCAL, execution=ONE)
    assert [r for r in found.results if r.run.method.name != "propagation-local"] == list(study.results)
    assert {r.run.epoch for r in found.results} == {None, 1}
    assert {r.run.fraction for r in found.results} == {0.4, 1.0}


def test_results_of_several_versions_are_told_apart(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    (alone,) = summarise(study)["software"]
    assert alone["versions"] == [versions()]
    assert alone["results"] == len(study.results)
    monkeypatch.setattr("atlasnet.study.software.__version__", "9.9.0")
    said = SilentReporter()
    later = run_study(cohort, tests, tmp_path / "s", LOCAL, execution=replace(ONE, reporter=said))
    assert [text for text in said.warnings if "atlasnet 9.9.0" in text and f"atlasnet {__version__}" in text]
    found = write_study(later, tests)
    of_method = {name: group["versions"] for group in found["software"] for name in group["methods"]}
    assert of_method["propagation-local"] == [versions()]
    assert of_method["atlasnet"] == [versions() | {"atlasnet": __version__}]
    (caution,) = [text for text in found["cautions"] if "several versions of the software" in text]
    assert "atlasnet 9.9.0, torch" in caution
    assert caution in main_table(found)
    assert caution in html.unescape((tmp_path / "s" / "study.html").read_text(encoding="utf-8"))
    kept = json.loads((tmp_path / "s" / "settings.json").read_text(encoding="utf-8"))["software"]
    assert [one["atlasnet"] for one in kept] == [__version__, "9.9.0"]


def test_a_network_of_one_version_may_segment_in_another(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "runs" / "atlasnet-2" / "100" / "seed0")
    monkeypatch.setattr("atlasnet.study.software.__version__", "9.9.0")
    later = run_study(cohort, tests, tmp_path / "s", OPTIONS, execution=ONE)
    (result, _) = [r for r in later.results if r.run.folder == "runs/atlasnet-2/100/seed0"]
    assert [one["atlasnet"] for one in result.versions] == [__version__, "9.9.0"]


def test_a_study_of_before_versions_were_recorded_stays_and_says_so(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    for path in (tmp_path / "s" / "runs").rglob("t?.json"):
        content = read_sealed(path, pytest.fail)
        assert content is not None
        write_sealed(path, {name: value for name, value in content.items() if name != "versions"})
    settings = tmp_path / "s" / "settings.json"
    before = json.loads(settings.read_text(encoding="utf-8"))
    write_json(settings, {name: value for name, value in before.items() if name not in ("begun", "software")})
    found = write_study(run_study(cohort, tests, tmp_path / "s", OPTIONS, execution=ONE), tests)
    assert found["software"][0]["versions"] == []
    assert found["how"]["begun"] is None
    assert not [text for text in found["cautions"] if "versions" in text]
    found = write_study(run_study(cohort, tests, tmp_path / "s", LOCAL, execution=ONE), tests)
    (caution,) = [text for text in found["cautions"] if "several versions" in text]
    assert "versions that were not recorded: " in caution


def test_versions_that_are_not_known_are_said_to_be_that() -> None:
    assert as_text([]) == as_text([{}]) == "versions that were not recorded"
    assert as_text([{}, {"atlasnet": "1.2"}]) == "versions that were not recorded and atlasnet 1.2"


def test_the_page_says_how_the_study_was_done(study: Study, tests: Sequence[Subject]) -> None:
    how = write_study(study, tests)["how"]
    assert {name: how[name] for name in ("preset", "changed", "epochs", "network", "width", "registration")} == {
        "preset": "default",
        "changed": True,
        "epochs": 2,
        "network": "unet",
        "width": 0.25,
        "registration": "centre",
    }
    assert (how["training_subjects"], how["test_subjects"], how["sharing"], how["fusion"]) == (
        3,
        2,
        "independent",
        "mean",
    )
    assert how["spacing_mm"] == json.loads((study.folder / "plan.json").read_text())["spacing"]
    page = (study.folder / "study.html").read_text(encoding="utf-8")
    for cell in ("default, changed", "unet, width 0.25", "centre", f"atlasnet {__version__}, torch"):
        assert f">{cell}" in page
    assert "<h2>How</h2>" in page
    assert json.loads((study.folder / "study.json").read_text(encoding="utf-8"))["how"] == how


def names(subjects: Sequence[Subject]) -> list[str]:
    return [subject.name for subject in subjects]


@pytest.mark.parametrize(
    "content",
    [
        '{"scores": [{"dice": 1}], "details": {}}',
        "[]",
        '{"sco',
        None,  # a number that somebody changed
    ],
)
def test_a_damaged_result_is_told_and_made_again(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, content: str | None
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    path = tmp_path / "s" / "runs" / "atlasnet-2" / "100" / "seed0" / "t1.json"
    before = json.loads(path.read_text())
    changed = json.loads(path.read_text())
    changed["scores"][0]["dice"] = 0.999
    path.write_text(json.dumps(changed) if content is None else content)
    request = StudyRequest(cohort, tuple(tests), tmp_path / "s", OPTIONS, ONE)
    assert [names(request.unfinished(job, 2)) for job in request.jobs()] == [[], ["t1"], [], []]
    said = SilentReporter()
    found = run_study(cohort, tests, tmp_path / "s", OPTIONS, execution=replace(ONE, reporter=said))
    assert [text for text in said.warnings if "not what was written" in text and str(path) in text]
    assert json.loads(path.read_text())["scores"] == before["scores"]
    assert [r.scores for r in found.results] == [r.scores for r in study.results]


def test_a_damaged_label_map_is_told_and_made_again(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    path = tmp_path / "s" / "runs" / "atlasnet-2" / "100" / "seed0" / "t1.nii.gz"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    said = SilentReporter()
    found = run_study(cohort, tests, tmp_path / "s", OPTIONS, execution=replace(ONE, reporter=said))
    assert [text for text in said.warnings if f"{path} is not what was written" in text]
    assert path.read_bytes() == before
    assert [r.scores for r in found.results] == [r.scores for r in study.results]


def test_results_of_an_earlier_call_that_are_damaged_are_told_to_be_on_no_page(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    (tmp_path / "s" / "runs" / "propagation" / "100" / "seed0" / "t1.json").write_text("{}")
    (tmp_path / "s" / "runs" / "atlasnet-1" / "40-slices" / "seed0" / "t0.nii.gz").unlink()
    said = SilentReporter()
    found = run_study(cohort, tests, tmp_path / "s", LOCAL, execution=replace(ONE, reporter=said))
    told = [text for text in said.warnings if "ask for it again" in text]
    assert [text.partition(" of an earlier")[0] for text in told] == [
        "propagation, seed 0,",
        "atlasnet, seed 0, 40% of the slices,",
    ]
    assert "1 of 2 results are missing" in told[0]
    assert "propagation" not in write_study(found, tests)["methods"]
    assert {(r.run.method.name, r.run.fraction) for r in found.results} == {
        ("propagation-local", 1.0),
        ("atlasnet", 1.0),
    }


@pytest.mark.parametrize("content", ["3", '["nobody", "s1"]', '{"s0"', "[[]]"])
def test_damaged_names_of_atlases_are_told(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, content: str
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    (tmp_path / "s" / "atlases.json").write_text(content)
    for what in (forecast_study, run_study):
        with pytest.raises(InputError, match=r"atlases\.json.*damaged.*delete the file"):
            what(cohort, tests, tmp_path / "s", OPTIONS, execution=ONE)


def test_damaged_counts_of_patches_are_counted_again(
    study: Study, cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    shutil.copytree(study.folder, tmp_path / "s")
    path = tmp_path / "s" / "runs" / "propagation" / "100" / "seed0" / "t0.patches.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"counts": {"diseased": "many"}}))
    found = run_study(cohort, tests, tmp_path / "s", OPTIONS, execution=ONE)
    assert found.patches == study.patches
    assert json.loads(path.read_text()) == content


def test_shares_that_are_the_same_slices_are_refused(cohort: Cohort, tests: Sequence[Subject], tmp_path: Path) -> None:
    """Of 14 slices, 7 % and 10 % are one, and 98 % are all."""
    options = replace(OPTIONS, fractions=(0.07, 0.1, 0.5, 0.98), curve_epochs=())
    for what in (forecast_study, run_study):
        with pytest.raises(InputError, match=r"same slices.*found 0\.07, 0\.1; 0\.98, 1\.0"):
            what(cohort, tests, tmp_path / "s", options, execution=ONE)
    assert [path.name for path in tmp_path.rglob("*") if path.suffix == ".json"] == []


def observer_on_another_grid(cohort: Cohort, folder: Path) -> Path:
    labels = read_labels(cohort.root / "labelsTs" / "t0.nii.gz")
    write_labels(folder / "t0.nii.gz", Volume(labels.array, labels.grid.padded((1, 0, 0), (-1, 0, 0))))
    return folder


@pytest.mark.parametrize("what", [forecast_study, run_study])
def test_observers_that_cannot_be_scored_are_refused_before_any_work(
    cohort: Cohort, tests: Sequence[Subject], tmp_path: Path, what: object
) -> None:
    assert callable(what)
    with pytest.raises(InputError, match=r"nope.*holds no test subject"):
        what(cohort, tests, tmp_path / "s", replace(OPTIONS, observers=(tmp_path / "nope",)), execution=ONE)
    other = observer_on_another_grid(cohort, tmp_path / "reader")
    with pytest.raises(VolumeError, match=r"reader/t0\.nii\.gz"):
        what(cohort, tests, tmp_path / "s", replace(OPTIONS, observers=(other,)), execution=ONE)
    assert not (tmp_path / "s" / "settings.json").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--observer", "{tmp}/nope"], "nope"),
        (["--test", "{tmp}/nope"], "nope"),
        (["--patches", "tumour"], "tumour"),
        (["--patches", "core:liver"], "liver"),
        (["--subjects", "{tmp}/nope.txt"], "nope.txt"),
        (["--test-subjects", "{tmp}/nope.txt"], "nope.txt"),
        (["--organ-mask", "{tmp}/nope"], "nope"),
        (["--metrics", "{tmp}/nope.json"], "nope.json"),
        (["--atlas", "nobody"], "nobody"),
        (["--only", "magic"], "magic"),
        (["--fractions", "0.9"], "same subjects"),
        (["--curve-epochs", "99", "--sharing", "independent"], "99"),
        (["--network", "nope"], "nope"),
        (["--spacing", "1", "2"], "spacing"),
        (["-o", "{tmp}/file/s"], "file"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_refuses_what_the_run_refuses(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], named: str, dry: bool
) -> None:
    (tmp_path / "file").write_text("no folder")
    words = [word.format(tmp=tmp_path) for word in words]
    words = ["study", str(cohort.root), "-o", str(tmp_path / "s"), "--threads", "1", *words]
    assert main(words + ["--dry-run"] * dry) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "s" / "settings.json").exists()
