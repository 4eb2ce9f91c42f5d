"""The study's curves over epochs and over shares of the slices, and the training that they rest on."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from atlasnet.cohort import Cohort, Subject
from atlasnet.errors import Cancelled, InputError
from atlasnet.evaluation import PatchCounts, PatchProtocol, classify_patches
from atlasnet.execution import Execution
from atlasnet.network import NetworkSpec
from atlasnet.network.weights import read_tensors
from atlasnet.study import Study, StudyOptions, read_test_subjects, run_study, write_study
from atlasnet.study.patches import accuracies
from atlasnet.study.shares import share_of_slices, share_of_subjects, spread
from atlasnet.training.fit import fit
from atlasnet.training.loop import WEIGHTS, epoch_weights, train_network
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import MappedCase
from atlasnet.volume import read_labels
from synthetic import LABELS, write_cohort, write_study_cohort

ONE = Execution(threads=1)
RECIPE = replace(
    Recipe.preset("default"),
    epochs=4,
    iterations=2,
    passes=0.0,
    batch_slices=4,
    learning_rate=6e-3,
    sharing="independent",
)
SETTINGS = {"atlases": 2, "seeds": 1, "width": 0.25, "preset": RECIPE, "operator": "centre"}
CURVES = StudyOptions(
    **SETTINGS,
    methods=("plain", "augmented-long", "propagation", "atlasnet"),
    curve_epochs=(1, 2, 4),
    fractions=(1.0, 0.4),
    fraction_of="slices",
    patches=PatchProtocol("core", ("shell",), size=4),
)
TESTS = ("t0", "t1")
SPEC = NetworkSpec("unet", 0.25)
SLICES = (6, 16, 16)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_study_cohort(tmp_path_factory.mktemp("cohort"), range(3), TESTS))


@pytest.fixture(scope="module")
def tests(cohort: Cohort) -> tuple[Subject, ...]:
    return read_test_subjects(cohort.root, cohort)


@pytest.fixture(scope="module")
def study(cohort: Cohort, tests: tuple[Subject, ...], tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(cohort, tests, tmp_path_factory.mktemp("study") / "study", CURVES, execution=ONE)


@pytest.fixture(scope="module")
def found(study: Study, tests: tuple[Subject, ...]) -> dict:
    return write_study(study, tests)


def cases(count: int = 2) -> list[MappedCase]:
    random = np.random.default_rng(0)
    return [
        MappedCase(
            f"c{i}", random.normal(size=(1, 6, 16, 16)).astype(np.float32), random.integers(0, 2, (6, 16, 16), np.uint8)
        )
        for i in range(count)
    ]


def weights(path: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in read_tensors(path)[0].items()}


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def stepped(epochs: int) -> Recipe:
    """A recipe whose first epochs do not depend on how many there are."""
    return replace(Recipe.preset("publication"), epochs=epochs)


def test_kept_weights_are_those_of_a_training_of_so_many_epochs(tmp_path: Path) -> None:
    train_network(cases(), SPEC, stepped(3), 2, tmp_path / "long", ONE, keep=(1, 2))
    train_network(cases(), SPEC, stepped(2), 2, tmp_path / "short", ONE)
    assert_same(epoch_weights(tmp_path / "long", 2), tmp_path / "short" / WEIGHTS)
    assert (weights(epoch_weights(tmp_path / "long", 1))).keys() == weights(tmp_path / "short" / WEIGHTS).keys()


def test_keeping_weights_changes_nothing_else(tmp_path: Path) -> None:
    for name, keep in (("with", (1, 2)), ("without", ())):
        train_network(cases(), SPEC, RECIPE, 2, tmp_path / name, ONE, keep=keep)
    assert (tmp_path / "with" / WEIGHTS).read_bytes() == (tmp_path / "without" / WEIGHTS).read_bytes()


def test_weights_that_are_asked_for_later_are_those_of_the_first_training(tmp_path: Path) -> None:
    train_network(cases(), SPEC, RECIPE, 2, tmp_path / "at once", ONE, keep=(1, 2))
    train_network(cases(), SPEC, RECIPE, 2, tmp_path / "later", ONE)
    before = (tmp_path / "later" / WEIGHTS).read_bytes()
    train_network(cases(), SPEC, RECIPE, 2, tmp_path / "later", ONE, keep=(2, 1))
    assert (tmp_path / "later" / WEIGHTS).read_bytes() == before
    for epoch in (1, 2):
        one, other = (epoch_weights(tmp_path / name, epoch) for name in ("at once", "later"))
        assert one.read_bytes() == other.read_bytes()
    assert not list((tmp_path / "later").glob("checkpoint-*"))


def test_a_training_stopped_past_an_epoch_still_gives_its_weights(tmp_path: Path) -> None:
    train_network(cases(), SPEC, RECIPE, 2, tmp_path / "whole", ONE, keep=(1,))
    for keep in ((), (1,)):  # each call is stopped in its third epoch
        left = iter([False] * 5 + [True])
        with pytest.raises(Cancelled):
            train_network(
                cases(), SPEC, RECIPE, 2, tmp_path / "stopped", Execution(threads=1, cancelled=left.__next__), keep=keep
            )
    train_network(cases(), SPEC, RECIPE, 2, tmp_path / "stopped", ONE, keep=(1,))
    for name in (WEIGHTS, epoch_weights(tmp_path, 1).name):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_epochs_that_a_training_has_not_cannot_be_kept(
    cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such epochs"):
        fit(cohort, tmp_path, FitOptions(preset=RECIPE, keep_epochs=(5,)), execution=ONE)
    with pytest.raises(InputError, match="no such epochs"):
        run_study(cohort, tests, tmp_path, StudyOptions(**SETTINGS, curve_epochs=(0,)), execution=ONE)
    with pytest.raises(InputError, match="time budget"):
        fit(cohort, tmp_path, FitOptions(preset=RECIPE, keep_epochs=(1,), time_budget=60), execution=ONE)


def test_every_trained_method_has_a_curve_over_the_epochs(found: dict) -> None:
    curves = found["over_epochs"]
    assert sorted(curves) == ["atlasnet", "atlasnet-1", "augmented-long", "plain"]
    assert all([p["x"] for p in curve] == [1, 2, 4] for curve in curves.values())
    for name in ("plain", "augmented-long", "atlasnet"):
        assert curves[name][-1]["dice"] == found["methods"][name]["mean_dice"]
    assert curves["atlasnet-1"][-1]["dice"] == found["over_atlases"]["atlasnet"][0]["dice"]


@pytest.mark.parametrize("sharing", ["common", "first"])
def test_a_network_that_is_tuned_has_been_the_one_that_it_starts_from(
    cohort: Cohort, tmp_path: Path, sharing: str
) -> None:
    options = FitOptions(atlases=2, width=0.25, preset=RECIPE, sharing=sharing, operator="centre", keep_epochs=(1, 4))
    model = fit(cohort, tmp_path / "m", options, execution=ONE)
    first, second = (model.weights_path(atlas, 1) for atlas in model.atlases)
    assert first.read_bytes() == second.read_bytes() != model.weights_path(model.atlases[1], 4).read_bytes()
    tuned_from = model.weights_path(model.atlases[1], 4)
    last = [model.weights_path(atlas).read_bytes() for atlas in model.atlases]
    assert last[1] != tuned_from.read_bytes()
    assert (last[0] == tuned_from.read_bytes()) == (sharing == "first")
    again = fit(cohort, tmp_path / "m", replace(options, keep_epochs=(1, 2, 4)), execution=ONE)
    assert again.checksum == model.checksum
    assert again.weights_path(again.atlases[1], 2).is_file()


def test_tuned_networks_have_a_curve_that_ends_with_them(
    cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    options = StudyOptions(**SETTINGS, methods=("augmented-long", "atlasnet"), sharing="common", curve_epochs=(1, 2))
    found = write_study(run_study(cohort, tests, tmp_path / "s", options, execution=ONE), tests)
    curves = found["over_epochs"]
    assert all([p["x"] for p in curve] == [1, 2, 4] for curve in curves.values())
    assert curves["atlasnet"][-1]["dice"] == found["methods"]["atlasnet"]["mean_dice"]
    page = (tmp_path / "s" / "study.html").read_text(encoding="utf-8")
    assert "before its end, that one segments for all of them" in page


def test_points_of_a_curve_are_the_means_of_the_scores_on_disk(study: Study, found: dict) -> None:
    with (study.folder / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["method"] == "atlasnet" and row["atlases"] == "2"]
    with (study.folder / "curves.csv").open(newline="", encoding="utf-8") as stream:
        points = [row for row in csv.DictReader(stream) if row["method"] == "atlasnet"]
    for over, x, chosen in (
        ("epochs", "2", [r for r in rows if r["epoch"] == "2"]),
        ("epochs", "4", [r for r in rows if r["epoch"] == "" and r["fraction"] == "1.0"]),
        ("slices", "0.4", [r for r in rows if r["fraction_of"] == "slices"]),
    ):
        assert len(chosen) == len(TESTS) * 2
        (point,) = [p for p in points if p["over"] == over and p["x"] == x]
        assert float(point["dice"]) == pytest.approx(np.mean([float(r["dice"]) for r in chosen]))


def test_the_longer_training_is_tested_at_the_same_share_of_it(study: Study) -> None:
    kept = study.folder / "models" / "own-long" / "100" / "seed0" / "epochs"
    assert sorted(int(path.name) for path in kept.iterdir()) == [2, 4, 8]


def test_the_curves_are_on_the_page_and_in_the_figures(study: Study, found: dict) -> None:
    page = (study.folder / "study.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6
    assert "would end with the rate low" in page
    assert {path.name for path in (study.folder / "figures").glob("*.svg")} == {
        "atlases.svg",
        "calibration.svg",
        "confidence.svg",
        "coverage.svg",
        "epochs.svg",
        "slices.svg",
    }


def test_curves_can_be_asked_for_later(cohort: Cohort, tests: Sequence[Subject], study: Study, tmp_path: Path) -> None:
    first = StudyOptions(**SETTINGS, methods=("atlasnet",))
    run_study(cohort, tests, tmp_path / "s", first, execution=ONE)
    then = replace(first, curve_epochs=(2,), fractions=(0.4,), fraction_of="slices")
    later = run_study(cohort, tests, tmp_path / "s", then, execution=ONE)
    expected = {(r.run, r.case): r.scores for r in study.results}
    assert {r.run.epoch for r in later.results} == {None, 2}
    assert all(expected[r.run, r.case] == r.scores for r in later.results)


def test_the_same_call_does_nothing_and_gives_the_same(
    study: Study, cohort: Cohort, tests: Sequence[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("something finished was done again")

    monkeypatch.setattr("atlasnet.study.study.fit", nothing)
    monkeypatch.setattr(PatchProtocol, "count", nothing)
    again = run_study(cohort, tests, study.folder, CURVES, execution=ONE)
    assert again.results == study.results
    assert again.patches == study.patches


def test_patches_are_pooled_over_the_subjects(study: Study, found: dict, cohort: Cohort) -> None:
    assert sorted(found["patches"]["methods"]) == ["atlasnet", "augmented-long", "plain", "propagation"]
    for name, folder in (("atlasnet", "atlasnet-2"), ("propagation", "propagation")):
        total = PatchCounts()
        for case in TESTS:
            truth = read_labels(cohort.root / "labelsTs" / f"{case}.nii.gz")
            labels = read_labels(study.folder / "runs" / folder / "100" / "seed0" / f"{case}.nii.gz")
            total += classify_patches(labels, truth, LABELS["core"], truth.array[0] > 0, size=4)
        row = found["patches"]["methods"][name]
        assert (row["diseased"], row["healthy"]) == (total.diseased, total.healthy)
        assert min(total.diseased, total.healthy) > 0
        assert row["mean_accuracy"] == pytest.approx(total.mean_accuracy)
    assert "Patches: core or not?" in (study.folder / "study.html").read_text(encoding="utf-8")


def test_accuracies_are_means_over_the_seeds_of_all_patches_together() -> None:
    one = {"a": PatchCounts(10, 8, 30, 30), "b": PatchCounts(2, 0, 10, 9), "gone": PatchCounts(99, 0, 99, 0)}
    two = {"a": PatchCounts(10, 6, 30, 24), "b": PatchCounts(2, 2, 10, 10)}
    row = accuracies([one, two])
    of_seeds = [(one["a"] + one["b"]).mean_accuracy, (two["a"] + two["b"]).mean_accuracy]
    assert row["mean_accuracy"] == pytest.approx(np.mean(of_seeds))
    assert (row["subjects"], row["diseased"], row["healthy"]) == (2, 12, 40)
    assert row["diseased_accuracy"] == pytest.approx((8 / 12 + 8 / 12) / 2)
    many = [{str(i): PatchCounts(4, i % 4, 5, 5) for i in range(12)}]
    low, high = accuracies(many)["interval"]
    assert low < accuracies(many)["mean_accuracy"] < high
    only = accuracies([{"a": PatchCounts(0, 0, 4, 3)}])
    assert (only["mean_accuracy"], only["healthy_accuracy"], only["interval"]) == (None, 0.75, None)
    rare = [{str(i): PatchCounts(int(i == 0), 0, 5, i) for i in range(4)}]
    assert accuracies(rare)["interval"] is None


def test_observers_are_asked_for_patches_too(study: Study, cohort: Cohort, tests: Sequence[Subject]) -> None:
    options = replace(CURVES, methods=("plain",), observers=(cohort.root / "labelsTs",))
    (observer,) = write_study(run_study(cohort, tests, study.folder, options, execution=ONE), tests)["patches"][
        "observers"
    ]
    assert observer["mean_accuracy"] == 1


def test_patches_of_a_label_that_is_not_there_are_refused(
    cohort: Cohort, tests: Sequence[Subject], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no such label"):
        run_study(cohort, tests, tmp_path, StudyOptions(**SETTINGS, patches=PatchProtocol("lesion")), execution=ONE)


@pytest.mark.parametrize("count", [1, 7, 50, 300])
def test_shares_of_slices_are_exact_nested_and_even(count: int) -> None:
    shares = [spread(count, fraction, np.random.default_rng(3)) for fraction in (0.1, 0.3, 0.5, 0.7, 1.0)]
    assert [len(s) for s in shares] == [max(1, round(f * count)) for f in (0.1, 0.3, 0.5, 0.7, 1.0)]
    for smaller, larger in pairwise(shares):
        assert set(smaller.tolist()) <= set(larger.tolist())
    for kept in shares:
        assert len(np.unique(np.diff(kept))) <= 3  # the three-gap theorem


def test_no_stretch_of_slices_is_left_out(cohort: Cohort) -> None:
    for seed in range(20):
        gaps = np.diff(spread(200, 0.3, np.random.default_rng(seed)))
        assert gaps.max() <= 5


@pytest.mark.parametrize(("axis", "across"), [("z", 1), ("y", 2), ("x", 3)])
def test_references_keep_whole_slices_and_lose_whole_slices(
    cohort: Cohort, tmp_path: Path, axis: str, across: int
) -> None:
    part = share_of_slices(cohort, 0.5, 0, axis, tmp_path)
    assert part.ignore_label == 5
    assert all(sitk.ReadImage(subject.labels).GetMetaData("intent_code") == "1002" for subject in part)
    for before, after in zip(cohort, part, strict=True):
        full, thinned = before.read_labels().array, after.read_labels().array
        other = tuple(a for a in range(4) if a != across)
        gone = (thinned == 5).all(axis=other)
        same = (thinned == full).all(axis=other)
        assert (gone ^ same).all()
        assert same.sum() == round(0.5 * full.shape[across])


def test_slices_that_nobody_annotated_are_not_counted(tmp_path: Path) -> None:
    partial = Cohort.read(write_cohort(tmp_path / "c", [0], ignore=9))
    part = share_of_slices(partial, 0.5, 0, "z", tmp_path / "r")
    before, after = partial["s0"].read_labels().array, part["s0"].read_labels().array
    annotated = (before != 9).any(axis=(0, 2, 3))
    assert (after != 9).any(axis=(0, 2, 3)).sum() == round(0.5 * annotated.sum())
    assert part.ignore_label == 9
    assert (after[before == 9] == 9).all()


def test_slices_differ_by_seed_and_subject(cohort: Cohort, tmp_path: Path) -> None:
    parts = [share_of_slices(cohort, 0.3, seed, "z", tmp_path / str(seed)) for seed in (0, 0, 1)]
    kept = [[(s.read_labels().array != 5).any(axis=(0, 2, 3)).tolist() for s in part] for part in parts]
    assert kept[0] == kept[1]
    assert kept[0] != kept[2]
    assert kept[0][0] != kept[0][1]


def test_a_share_of_the_subjects_is_part_of_a_larger_one(cohort: Cohort) -> None:
    names = [{s.name for s in share_of_subjects(cohort, fraction, 1)} for fraction in (0.3, 0.7, 1.0)]
    assert names[0] <= names[1] <= names[2]
    assert len(names[0]) == 2
    drawn = {frozenset(s.name for s in share_of_subjects(cohort, 0.3, seed)) for seed in range(8)}
    assert len(drawn) > 1
