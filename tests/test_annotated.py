"""Subjects in which only some of the labels were annotated, from `dataset.json` to networks, tables and a study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlasnet.atlas import resolve_atlases
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, check_cohort
from atlasnet.cohort.annotated import hidden_values, lost_values
from atlasnet.cohort.structures import annotated_structures
from atlasnet.errors import CohortError, InputError, ModelError, RegistrationError
from atlasnet.evaluation import evaluate_cohort, evaluate_folder, evaluate_subject
from atlasnet.execution import Execution, read_json, write_json
from atlasnet.prediction import Predictor
from atlasnet.registration import TissueClass, make_operator
from atlasnet.registration.learning.learn import Learning, LearnSettings
from atlasnet.report import write_training_report
from atlasnet.study import (
    StudyOptions,
    cross_validate,
    plan_folds,
    read_test_subjects,
    run_study,
    split,
    summarise,
    train_fold,
    write_study,
)
from atlasnet.study.propagation import propagate_labels
from atlasnet.training.fit import Fitting, fit
from atlasnet.training.fusion_weights import FusionSamples
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import keyed_subject
from atlasnet.volume import Grid, Volume, read_labels, write_labels
from synthetic import LABELS, dice, subject, write_cohort, write_study_cohort

RECIPE = replace(Recipe.preset("default"), epochs=2, iterations=6, passes=0.0, batch_slices=8)
OPTIONS = FitOptions(atlases=2, width=0.25, preset=RECIPE, operator="centre")
ONE = Execution(threads=1)


def without(folder: Path, names: Sequence[str], label: str = "core", part: str = "labelsTr", stands: int = 0) -> Path:
    """Nobody has annotated the label in these cases, and nothing says so."""
    for name in names:
        path = folder / part / f"{name}.nii.gz"
        labels = read_labels(path)
        write_labels(path, labels.replace(np.where(labels.array == LABELS[label], stands, labels.array)))
    return folder


def declare(folder: Path, annotated: Mapping[str, Any]) -> Path:
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"annotated": annotated})
    return folder


def partly(folder: Path, seeds: Sequence[int], names: Sequence[str], tests: Sequence[str] = ()) -> Path:
    """A cohort of whose subjects and tests some have the shell alone."""
    write_study_cohort(folder, seeds, tests)
    without(folder, [name for name in names if name not in tests])
    without(folder, [name for name in names if name in tests], part="labelsTs")
    return declare(folder, {name: ["shell"] for name in names})


def test_a_label_is_lost_with_the_last_subject_that_tells_it_and_no_other() -> None:
    everything, without_two = (), ((2, 1),)
    assert lost_values((0, 1, 2), [everything, without_two], [without_two]) == [2]
    assert lost_values((0, 1, 2), [everything, without_two], [everything]) == []
    assert lost_values((0, 1, 2), [without_two, without_two], [without_two]) == []  # nobody has told it


def test_cases_that_are_not_named_have_all_labels(tmp_path: Path) -> None:
    cohort = Cohort.read(partly(tmp_path, range(3), ["s1"]))
    assert [subject.hidden for subject in cohort] == [(), ((4, 0),), ()]
    assert cohort.hidden == {"s1": ((4, 0),)}
    assert cohort.annotated_in() == {"shell": 3, "core": 2}


def test_python_says_it_too(tmp_path: Path) -> None:
    cohort = Cohort.read(without(write_cohort(tmp_path, range(3)), ["s1"]))
    said = cohort.annotated({"s1": ["shell"]})
    assert said.subjects == Cohort.read(declare(tmp_path, {"s1": ["shell"]})).subjects
    assert said.annotated({"s2": ["shell"]}).hidden == {"s1": ((4, 0),), "s2": ((4, 0),)}
    with pytest.raises(CohortError, match=r"not subjects of the cohort.*found s9"):
        cohort.annotated({"s9": ["shell"]})


def declare_regions(folder: Path) -> Path:
    """The whole of shell (2) and core (4), and the core."""
    labels = {"background": 0, "whole": [2, 4], "core": 4}
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"labels": labels})
    return folder


def test_of_regions_a_case_has_those_that_were_annotated(tmp_path: Path) -> None:
    folder = without(declare_regions(write_cohort(tmp_path, range(4))), ["s2"], "shell")
    without(folder, ["s1"], stands=2)
    cohort = Cohort.read(declare(folder, {"s0": ["whole", "core"], "s1": ["whole"], "s2": ["core"]}))
    # A part of the whole may be core in s1, and the background part of the whole in s2.
    assert cohort.hidden == {"s1": ((4, 2),), "s2": ((2, 0),)}
    assert cohort.annotated_in() == {"whole": 3, "core": 3}
    assert not check_cohort(folder).errors


def test_values_are_told_apart_where_a_region_holds_one_of_them() -> None:
    labels = {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3, "liver": 4}
    regions = {"tumour": (1, 2, 3), "core": (2, 3), "enhancing": 3, "liver": 4}
    asked = {"a": ["tumour"], "b": ["core"], "c": ["tumour", "enhancing"], "d": [*regions], "e": ["liver", "label 2"]}
    found = hidden_values(asked, labels, regions, Path())
    assert found == {
        "a": ((2, 1), (3, 1), (4, 0)),
        "b": ((1, 0), (3, 2), (4, 0)),
        "c": ((2, 1), (4, 0)),
        "d": (),
        "e": ((1, 0), (3, 0)),
    }
    outer = {"background": 0, "enhancing": 1, "label 2": 2, "label 3": 3}
    nested = {"whole": (1, 2, 3), "core": (1, 2), "enhancing": 1}
    assert hidden_values({"a": ["whole"]}, outer, nested, Path())["a"] == ((1, 3), (2, 3))  # 3 is in fewest others
    twins = {"background": 0, "label 1": 1, "label 2": 2}
    assert hidden_values({"a": ["both"]}, twins, {"both": (1, 2)}, Path()) == {"a": ()}
    told = {case: [*annotated_structures(regions, hidden)] for case, hidden in found.items()}
    assert told == {
        "a": ["tumour"],
        "b": ["core"],
        "c": ["tumour", "enhancing"],
        "d": ["tumour", "core", "enhancing", "liver"],
        "e": ["liver"],
    }


@pytest.mark.parametrize(
    ("annotated", "fault"),
    [
        ({"s9": ["shell"]}, "names s9, which is no case; to mend it: name cases as they are called here: s0, s1"),
        (
            {"s1_0000": ["shell"]},
            "is no case; to mend it: name subjects without suffix and channel, as s1",
        ),
        ({"s1.nii.gz": ["shell"]}, "is no case; to mend it: name subjects without suffix and channel, as s1"),
        ({"s1": ["spleen"]}, r"names what is no label; expected some of shell, core; found 'spleen' in s1"),
        ({"s1": [["shell"]]}, "names what is no label"),
        ({"s1": "shell"}, r"in s1 are not a list.*found 'shell'; to mend it: write \[\"shell\"\]$"),
        ({"s1": []}, "annotated in s1 are not a list of names.*found an empty list"),
        ({"s1": ["background"]}, "names what is no label"),
        (["s1"], "'annotated' is not an object"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, annotated: Any, fault: str) -> None:
    folder = declare(write_cohort(tmp_path, range(2)), annotated)
    with pytest.raises(CohortError, match=fault):
        Cohort.read(folder)


def test_names_of_test_cases_are_known(tmp_path: Path) -> None:
    assert Cohort.read(partly(tmp_path, range(2), ["t0"], ["t0"])).hidden == {}


def test_an_atlas_onto_which_none_with_a_label_is_mapped_is_refused(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = PairRegistrar.register
    monkeypatch.setattr(
        PairRegistrar,
        "register",
        lambda self, source, targets: (
            None if source.name in ("s0", "s3") else found for found in register(self, source, targets)
        ),
    )
    with pytest.raises(RegistrationError, match="no subject in whom 4 was annotated could be mapped onto atlas s1"):
        fit(cohort, tmp_path / "m", replace(OPTIONS, atlases=("s1",)), execution=ONE)


def test_a_reference_that_holds_what_nobody_annotated_is_refused(tmp_path: Path) -> None:
    folder = declare(write_cohort(tmp_path, range(3)), {"s1": ["shell"]})
    report = check_cohort(folder)
    (error,) = report.errors
    assert error.subject == "s1"
    assert "labels that 'annotated' in dataset.json does not name; found 4 (" in error.text
    assert error.text.endswith("; to mend it: name all labels that were annotated in s1, or mend the reference")
    with pytest.raises(CohortError, match=r"labelsTr/s1.*" + re.escape(error.text)):
        fit(Cohort.read(folder), tmp_path / "m", OPTIONS, execution=ONE)


def test_a_label_that_nobody_annotated_is_refused(tmp_path: Path) -> None:
    folder = partly(tmp_path, range(2), ["s0", "s1"])
    assert ["in no subject of the cohort was annotated: core" in error.text for error in check_cohort(folder).errors]
    with pytest.raises(CohortError, match="was annotated: core"):
        fit(Cohort.read(folder), tmp_path / "m", OPTIONS, execution=ONE)


def test_check_counts_the_cases_of_each_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = partly(tmp_path / "data", range(3), ["s1", "s2"])
    assert main(["check", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "annotated: shell in 3, core in 1 of 3 subjects" in printed
    assert "core was annotated in a single subject" in printed
    report = check_cohort(folder)
    assert report.to_json()["annotated_in"] == {"shell": 3, "core": 1}
    assert report.fingerprint is not None
    assert [[*subject.label_ml] for subject in report.fingerprint.subjects] == [["shell", "core"], ["shell"], ["shell"]]


def test_check_measures_a_region_whose_parts_were_not_annotated(tmp_path: Path) -> None:
    folder = declare(without(write_cohort(tmp_path, range(2)), ["s1"], stands=LABELS["shell"]), {"s1": ["whole"]})
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"labels": {"background": 0, "whole": [2, 4], "core": 4}})
    labels = read_labels(folder / "labelsTr" / "s1.nii.gz")
    millilitres = np.count_nonzero(labels.array) * np.prod(labels.grid.spacing) / 1000
    found = check_cohort(folder).fingerprint
    assert found is not None
    assert found.subjects[0].label_ml.keys() == {"label 2", "core", "whole"}
    assert found.subjects[1].label_ml == pytest.approx({"whole": millilitres}, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("within", [False, True])
def test_a_label_that_few_subjects_have_is_learnt_as_if_all_had_it(within: bool, tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(8) if number % 4 != 1]
    folders = [write_cohort(tmp_path / what, range(8)) for what in ("whole", "part")]
    if within:  # the core is shell in the others, else background
        folders = [declare_regions(folder) for folder in folders]
    whole, absent = Cohort.read(folders[0]), Cohort.read(without(folders[1], names, stands=2 if within else 0))
    annotated = absent.annotated({name: ["whole" if within else "shell"] for name in names})
    options = replace(OPTIONS, atlases=1, preset=replace(RECIPE, epochs=10, iterations=40))
    found = {}
    for what, cohort in {"whole": whole, "absent": absent, "annotated": annotated}.items():
        model = fit(cohort, tmp_path / what / "m", options, work=tmp_path / "work", execution=ONE)
        predictor = Predictor(model, execution=ONE)
        scans = [subject(seed) for seed in range(100, 104)]
        labels = [(predictor.predict(image).labels.array, reference.array) for image, reference in scans]
        found[what] = {value: np.mean([dice(a == value, b == value) for a, b in labels]) for value in (2, 4)}
    assert found["annotated"][4] > found["whole"][4] - 0.05
    assert found["annotated"][4] > found["absent"][4] + 0.15
    assert found["annotated"][2] > found["whole"][2] - 0.05


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return partly(tmp_path_factory.mktemp("cohort"), range(4), ["s1", "s2", "t1"], ["t0", "t1"])


@pytest.fixture(scope="module")
def cohort(data: Path) -> Cohort:
    return Cohort.read(data)


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS, execution=ONE)


def test_what_was_annotated_is_part_of_what_a_model_depends_on(cohort: Cohort, model: Model) -> None:
    assert fit(cohort, model.folder, OPTIONS, execution=ONE).checksums == model.checksums
    with pytest.raises(ModelError, match="other data of s2"):
        fit(cohort.annotated({"s2": ["shell", "core"]}), model.folder, OPTIONS, execution=ONE)


def test_a_network_in_three_dimensions_learns_of_hidden_classes_too(cohort: Cohort, tmp_path: Path) -> None:
    options = replace(OPTIONS, network="unet3d")
    partial = fit(cohort, tmp_path / "partial", options, work=tmp_path / "work", execution=ONE)
    every = replace(cohort, subjects=tuple(replace(subject, hidden=()) for subject in cohort))
    other = fit(every, tmp_path / "every", options, work=tmp_path / "work", execution=ONE)
    assert partial.checksums.keys() == other.checksums.keys()
    differing = {name for name, value in partial.checksums.items() if other.checksums[name] != value}
    assert differing == {name for name in partial.checksums if name.startswith("networks/")}


def test_an_update_takes_in_what_was_annotated_since(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to update"):
        fit(cohort, tmp_path / "newer", OPTIONS, update=model, execution=ONE)
    now = cohort.annotated({"s1": ["shell", "core"]})
    updated = fit(now, tmp_path / "newer", replace(OPTIONS, atlases=None), update=model, execution=ONE)
    assert updated.provenance["update"]["changed"] == ["s1"]


def test_a_structure_that_was_not_annotated_has_no_score() -> None:
    random = np.random.default_rng(0)
    grid = Grid.from_parts((5, 9, 8), (1.0, 0.7, 2.0))
    found = Volume(random.choice([0, 2, 4], (5, 9, 8)).astype(np.uint8), grid)
    truth = Volume(random.choice([0, 2], (5, 9, 8)).astype(np.uint8), grid)
    structures = {"whole": (2, 4), "shell": 2, "core": 4}
    every = evaluate_subject(found, truth, structures, per_slice=True)
    for hidden, known in (((4, 0),), "shell"), (((4, 2),), "whole"):
        some = evaluate_subject(found, truth, structures, hidden=hidden, per_slice=True)
        assert some.rows == tuple(row for row in every.rows if row.label == known)
        assert some.slices == tuple(row for row in every.slices if row.label == known)


def test_a_table_takes_means_over_those_who_have_the_label(data: Path, cohort: Cohort, tmp_path: Path) -> None:
    for name in ("s0", "s1", "s2", "s3"):
        labels = read_labels(data / "labelsTr" / f"{name}.nii.gz")
        core = np.roll(labels.array == 4, 1, axis=-1) if name == "s0" else labels.array == 4
        # What is found of the core where nobody annotated it is neither right nor wrong.
        core[0, 0, 0, :5] = name in ("s1", "s2")
        write_labels(tmp_path / f"{name}.nii.gz", labels.replace(np.where(core, 4, labels.array).astype(np.uint8)))
    table = evaluate_folder(tmp_path, data / "labelsTr")
    assert {(row.case, row.label) for row in table.rows} == {
        *((f"s{number}", "shell") for number in range(4)),
        ("s0", "core"),
        ("s3", "core"),
    }
    core = [row.dice for row in table.rows if row.label == "core"]
    summary = table.summary()
    assert summary["labels"]["core"]["dice"]["mean"] == pytest.approx(np.mean(core))
    assert summary["labels"]["core"]["dice"]["undefined"] == 0
    assert summary["mean_over_labels"]["dice"]["worst_case"] == "s0"
    assert table.unannotated == {"core": ("s1", "s2")}
    assert "core: not annotated in s1, s2" in table.text()
    places = {subject.name: tmp_path / f"{subject.name}.nii.gz" for subject in cohort}
    assert evaluate_cohort(cohort, places).rows == table.rows


def test_what_was_annotated_nowhere_cannot_be_scored(data: Path, tmp_path: Path) -> None:
    path = data / "labelsTr" / "s1.nii.gz"
    with pytest.raises(InputError, match="nothing that is to be scored was annotated"):
        evaluate_folder(path, path, labels=["core"])


def test_a_page_of_scores_says_what_was_not_annotated(data: Path, tmp_path: Path) -> None:
    references = str(data / "labelsTr")
    assert main(["evaluate", references, references, "-o", str(tmp_path / "t.json"), "--report", "--quiet"]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["unannotated"] == {"core": ["s1", "s2"]}
    assert "core: not annotated in s1, s2" in (tmp_path / "t.html").read_text(encoding="utf-8")


def test_folds_deal_out_those_who_have_a_label_evenly() -> None:
    names = [f"s{number}" for number in range(12)]
    hidden = dict.fromkeys(names[3:], ((4, 0),))
    for seed in range(20):
        groups = split(names, 3, seed, hidden)
        assert [len(group) for group in groups] == [4, 4, 4]
        assert [len({*group} - {*hidden}) for group in groups] == [1, 1, 1]
        assert sorted(name for group in groups for name in group) == sorted(names)


def test_the_seed_divides_a_cohort_and_deals_out_those_who_have_a_label(cohort: Cohort, tmp_path: Path) -> None:
    divided = {plan_folds(cohort, tmp_path, OPTIONS, 2, replace(ONE, seed=seed)) for seed in range(6)}
    assert len(divided) > 1
    for groups in divided:
        assert [len({"s0", "s3"}.intersection(group)) for group in groups] == [1, 1]


def test_a_fold_that_learns_nothing_of_a_label_is_refused_before_any_training(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="in no subject of those of fold 2 was annotated: core"):
        cross_validate(cohort, tmp_path, OPTIONS, folds=[["s1", "s2"], ["s0", "s3"]], execution=ONE)
    assert not (tmp_path / "fold_1").exists()


def test_cross_validation_scores_what_was_annotated(cohort: Cohort, tmp_path: Path) -> None:
    found = cross_validate(cohort, tmp_path, OPTIONS, folds=2, execution=ONE)
    assert {row.case for row in found.table.rows if row.label == "core"} == {"s0", "s3"}
    assert {row.case for row in found.table.rows if row.label == "shell"} == {"s0", "s1", "s2", "s3"}
    assert "core: not annotated in s1, s2" in found.text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "predictions").glob("*.nii.gz")}
    again = cross_validate(cohort, tmp_path, OPTIONS, folds=2, execution=ONE)
    assert again.as_json() == found.as_json()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # What is said of those whom a fold leaves out does not touch its model, only what is learnt from them.
    number = next(number for number, fold in enumerate(found.folds, start=1) if "s1" in fold)
    told = replace(cohort, subjects=tuple(replace(s, hidden=()) if s.name == "s1" else s for s in cohort))
    train_fold(told, tmp_path, number, OPTIONS, folds=found.folds, execution=ONE)
    assert [path.stem[:2] for path in before if path.stat().st_mtime_ns != before[path]] == ["s1"]


def test_fusion_takes_the_background_for_what_may_be_there() -> None:
    random = np.random.default_rng(0)
    said = torch.from_numpy(random.dirichlet(np.ones(3), 50).T.astype(np.float32))
    truth = torch.from_numpy(random.integers(0, 2, 50))
    atlas = (said, torch.zeros(50), torch.ones(50, dtype=torch.bool), 0.5)
    samples = FusionSamples.of([atlas], truth, ((2, 0),))
    expected = np.where(truth == 0, said[0] + said[2], said[1])
    np.testing.assert_allclose(samples.truth[0], expected, rtol=1e-6)


def test_an_atlas_without_a_label_does_not_vote_against_it() -> None:
    grid = Grid.from_parts((4, 6, 5), (1.0, 1.0, 1.0))
    image = Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)
    whole, part = (np.zeros(grid.shape, dtype=np.uint8) for _ in range(2))
    whole[:, 1:3], whole[:, 4] = 4, 2
    part[:, 4:] = 2  # and nobody looked for 4
    atlases = [(image, Volume(whole, grid)), *[(image, Volume(part, grid))] * 2]
    operator, asked = make_operator("identity"), {"values": (0, 2, 4), "execution": ONE}
    found, _ = propagate_labels(image, atlases, operator=operator, hidden=[(), ((4, 0),), ((4, 0),)], **asked)
    expected = whole.copy()
    expected[:, 5] = 2
    np.testing.assert_array_equal(found.array[0], expected)
    without, _ = propagate_labels(image, atlases, operator=operator, **asked)
    assert not (without.array == 4).any()


def test_a_study_scores_what_was_annotated_and_takes_whole_subjects_as_atlases(
    data: Path, cohort: Cohort, tmp_path: Path
) -> None:
    tests = read_test_subjects(data, cohort)
    assert [test.hidden for test in tests] == [(), ((4, 0),)]
    options = StudyOptions(
        atlases=2, methods=("atlasnet", "propagation"), preset=RECIPE, width=0.25, operator="affine", seeds=1
    )
    study = run_study(cohort, tests, tmp_path, options, execution=ONE)
    assert study.atlases == ("s0", "s3")
    for result in study.results:
        labels = [row["label"] for row in result.scores]
        assert labels == (["shell", "core"] if result.case == "t0" else ["shell"])
    found = summarise(study)
    assert found["unannotated"] == {"core": ["t1"]}
    assert found["how"]["annotated_in"] == {"shell": 4, "core": 2}
    write_study(study, tests)
    assert "4; shell annotated in 4; core annotated in 2" in (tmp_path / "study.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="other data of t1"):
        run_study(cohort, [tests[0], replace(tests[1], hidden=())], tmp_path, options, execution=ONE)
    named = replace(options, atlases=("s1", "s2"))
    with pytest.raises(InputError, match="in no atlas was annotated: core"):
        run_study(cohort, tests, tmp_path / "other", named, execution=ONE)


def test_a_model_says_in_how_many_a_label_was_annotated(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model.annotated_in == {"shell": 4, "core": 2}
    assert main(["model", "info", str(model.folder)]) == 0
    assert "4 subjects; shell annotated in 4; core annotated in 2" in capsys.readouterr().out
    write_training_report(tmp_path / "page.html", model, [], execution=ONE)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "annotated in" in page
    assert "2 training subjects" in page


def test_metrics_by_tissue_look_at_whole_references_alone(cohort: Cohort, tmp_path: Path) -> None:
    learning = Learning(cohort, tmp_path, LearnSettings(), ONE)
    assert {name for pair in (*learning.pairs, *learning.judging) for name in pair} <= {"s0", "s3"}
    with pytest.raises(CohortError, match=r"all labels were annotated.*found s0"):
        Learning(cohort.select(["s0", "s1"]), tmp_path, LearnSettings(), ONE)
    weights = {"mi": 0.5, "ncc": 0.5}
    tissue = [TissueClass("other", (0,), weights), TissueClass("core", (4,), weights)]
    settings = {"metrics": weights, "classes": tissue}
    fitting = Fitting(cohort, tmp_path / "m", replace(OPTIONS, operator="mrf", operator_settings=settings))
    hashes = fitting.hashes()
    subjects = [keyed_subject(subject, hashes[subject.name]) for subject in cohort]
    sources = resolve_atlases(cohort, ["s0", "s1"])
    atlases = fitting.atlases.written(sources, subjects, tmp_path / "m", labelled=True)
    assert [atlas.labels_key for atlas in atlases] == [subjects[0].labels_key, ""]
