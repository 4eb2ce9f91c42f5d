"""Metric weights by tissue class: which class a control point has, what the weights do, and the way of the file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from atlasnet.cli import learn_metrics as verb
from atlasnet.cli.main import main
from atlasnet.cohort import Cohort
from atlasnet.errors import Cancelled, CohortError, InputError, VolumeError
from atlasnet.execution import Execution, SilentReporter, WorkFolder, made_alone
from atlasnet.prediction import Predictor
from atlasnet.prediction.record import brief
from atlasnet.prediction.scan import Scan
from atlasnet.registration import MetricWeights, MRFOperator, MRFSettings, TissueClass, make_operator, register_images
from atlasnet.registration.context import ClassMap, point_weights
from atlasnet.registration.learning import LearnSettings, SVMSettings, learn_metrics
from atlasnet.registration.pyramid import LevelSettings, build_levels
from atlasnet.registration.settings import DISCRETE_LEVELS
from atlasnet.registration.similarity import unary_costs, weighted_costs
from atlasnet.training.fit import fit
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.pairs import PairRegistrar
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import Keyed
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume, write_volume
from synthetic import subject, write_cohort
from test_similarity import pair

ONE = Execution(threads=1)
LEVELS = (LevelSettings(3, 2, 3), LevelSettings(2, 1, 3))
CLASSES = (
    TissueClass("background", (0,), {"mi": 0.2, "ncc": 0.6}),
    TissueClass("shell", (2,), {"mi": 1.0, "ncc": 0.1}),
    TissueClass("core", (4,), {"mi": 0.1, "ncc": 1.3}),
)
WEIGHTS = MetricWeights(CLASSES, {"mi": 0.4, "ncc": 0.6}, 0.15, {"seed": 0})
TINY = LearnSettings(
    metrics=("ncc", "sad"),
    pairs=2,
    registration={"levels": LEVELS, "iterations": 3, "spacing": 3.5},
    svm=SVMSettings(iterations=2, rounds=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort") / "data", range(3))


@pytest.fixture(scope="module")
def cohort(data):
    return Cohort.read(data)


@pytest.fixture(scope="module")
def learnt(cohort, tmp_path_factory):
    return learn_metrics(cohort, tmp_path_factory.mktemp("learnt") / "work", TINY, execution=ONE)


def operator(**more):
    return MRFOperator(MRFSettings(**{**WEIGHTS.settings(), "levels": LEVELS, "affine": False, **more}))


def two():
    """Image and labels of a source and of a target, on one grid."""
    (source, labels), (target, known) = subject(0), subject(1)
    return Volume(source.array, target.grid), Volume(labels.array, target.grid), target, known


def test_the_class_of_a_control_point_is_the_one_most_present_in_its_support():
    random = np.random.default_rng(0)
    grid = Grid.from_parts((10, 13, 16), (1.0, 1.0, 1.0))  # control points end where voxels do
    labels = Volume(random.choice([0, 2, 4, 9], (1, *grid.shape)).astype(np.uint8), grid)
    classes = ClassMap.of(labels, CLASSES, torch.device("cpu"), of_source=False)
    (level,) = build_levels(grid, (LevelSettings(1, 1, 3),))
    found = classes.prevailing(classes.on(level.grid), level).numpy()
    voxels = classes.on(level.grid).numpy()
    for place in np.ndindex(*level.control.shape):
        hats = [
            np.maximum(
                0, 1 - np.abs(level.control.positions(a)[n] - level.image.positions(a)) / level.control.spacing[a]
            )
            for a, n in enumerate(place)
        ]
        weight = hats[0][:, None, None] * hats[1][:, None] * hats[2]
        shares = [weight[voxels == number].sum() for number in (1, 2, 3)]
        assert shares[found[place] - 1] == pytest.approx(max(shares), rel=1e-3)


def test_a_support_without_any_class_has_none():
    grid = Grid.from_parts((9, 9, 9))
    (level,) = build_levels(grid, (LevelSettings(1, 1, 3),))
    nothing = ClassMap.of(Volume(np.full((1, 9, 9, 9), 7, np.uint8), grid), CLASSES, torch.device("cpu"))
    assert not nothing.prevailing(nothing.on(grid), level).any()


def test_costs_with_weights_by_point_are_those_of_each_points_own_weights():
    random = np.random.default_rng(1)
    images = (torch.tensor(random.random((n, n, n)), dtype=torch.float32) for n in (16, 18))
    bound = pair(*images, (1, 1, 1))
    prevailing = torch.tensor(random.integers(0, 4, bound.control.shape))
    mixed = weighted_costs(bound, point_weights(WEIGHTS.average, CLASSES, prevailing))
    for number, weights in enumerate((WEIGHTS.average, *(one.weights for one in CLASSES))):
        alone = unary_costs(bound, weights) * sum(weights.values())
        here = prevailing == number
        assert torch.allclose(mixed[..., here], alone[..., here], atol=1e-5)


def test_classes_with_the_average_weights_change_nothing():
    source, labels, target, _ = two()
    equal = tuple(replace(one, weights=WEIGHTS.average) for one in CLASSES)
    plain = MRFSettings(metrics=WEIGHTS.average, levels=LEVELS, affine=False)
    expected = register_images(source, target, operator=MRFOperator(plain), execution=ONE)
    found = register_images(
        source, target, operator=MRFOperator(replace(plain, classes=equal)), source_labels=labels, execution=ONE
    )
    grid = target.grid
    assert torch.allclose(found.transform.displacement(grid), expected.transform.displacement(grid), atol=1e-3)


def test_the_record_says_where_the_classes_came_from():
    source, labels, target, known = two()
    found = {}
    for name, given in (
        ("source", {"source_labels": labels, "target_labels": known}),
        ("target", {"target_labels": known}),
        ("average", {}),
    ):
        result = register_images(source, target, operator=operator(), execution=ONE, **given)
        assert result.record["classes_from"] == name
        found[name] = result.transform.displacement(target.grid)
    assert not torch.equal(found["source"], found["average"])
    plain = MRFOperator(MRFSettings(metrics=WEIGHTS.average, alpha=WEIGHTS.alpha, levels=LEVELS, affine=False))
    average = register_images(source, target, operator=plain, execution=ONE)
    assert "classes_from" not in average.record
    assert torch.equal(found["average"], average.transform.displacement(target.grid))


def test_the_way_back_of_a_symmetric_registration_is_that_of_the_images_called_the_other_way_round():
    source, labels, target, known = two()
    halves = np.zeros_like(known.array)
    halves[..., : known.array.shape[-1] // 2] = 1
    masks = {"source_mask": source.replace(halves), "target_mask": target.replace(1 - halves[..., ::-1])}
    near = Transform.affine(np.array([[1, 0, 0, 3.0], [0, 1, 0, -2], [0, 0, 1, 4], [0, 0, 0, 1]]))
    # A class may be told by a metric that counts nowhere else.
    classes = (*CLASSES[:2], TissueClass("core", (4,), {"mind": 1.0}))
    both, one = (operator(classes=classes, symmetric=symmetric) for symmetric in (True, False))
    found = register_images(
        source, target, operator=both, source_labels=labels, target_labels=known, initial=near, execution=ONE, **masks
    )
    back = register_images(
        target,
        source,
        operator=one,
        source_mask=masks["target_mask"],
        target_mask=masks["source_mask"],
        source_labels=known,
        target_labels=labels,
        initial=near.inverse,
        execution=ONE,
    )
    levels = [[{**level, "seconds": 0} for level in of] for of in (found.record["levels_back"], back.record["levels"])]
    assert levels[0] == levels[1]


def test_labels_that_cannot_tell_the_tissue_are_refused():
    source, labels, target, _ = two()
    for wrong in (
        Volume(labels.array[:, 1:], Grid((13, 28, 32), labels.grid.affine)),
        labels.replace(np.full_like(labels.array, 7)),
    ):
        with pytest.raises(VolumeError, match="source's labels"):
            register_images(source, target, operator=operator(), source_labels=wrong, execution=ONE)
    with pytest.raises(InputError, match="do not depend on the tissue"):
        register_images(source, target, source_labels=labels, execution=ONE)


def test_settings_without_classes_have_the_keys_that_they_always_had():
    assert "classes" not in MRFSettings().as_json()


def test_an_operator_is_made_again_from_its_settings_in_json():
    again = make_operator("mrf", **json.loads(json.dumps(operator().settings())))
    assert again.settings() == operator().settings()
    assert again.options.classes == CLASSES


def test_weights_are_read_back_as_they_were_written(tmp_path):
    WEIGHTS.write(tmp_path / "w.json")
    assert MetricWeights.read(tmp_path / "w.json") == WEIGHTS


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 9},
        {"classes": []},
        {"classes": [{"name": "a", "labels": [1], "weights": {"ssd": 1}}]},
        {"classes": [{"name": "a", "labels": [1], "weights": {"mi": -1}}]},
        {"classes": [{"name": "a", "labels": [1], "weights": {"mi": 0}}]},
        {"classes": [{"name": n, "labels": [1], "weights": {"mi": 1}} for n in "ab"]},
        {"classes": [{"name": "a", "labels": [], "weights": {"mi": 1}}]},
        {"classes": [{"name": "a"}]},
        {"metrics": {"mi": 0}},
        {"alpha": 0},
        {"alpha": "much"},
    ],
)
def test_a_file_of_weights_that_make_no_sense_is_refused_by_name(tmp_path, wrong):
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"format": 1, **WEIGHTS.settings()} | wrong), encoding="utf-8")
    with pytest.raises(InputError) as error:
        MetricWeights.read(path)
    assert error.value.path == path


def test_a_cohort_gives_weights_with_the_record_of_how_they_came_about(learnt):
    weights = learnt
    assert [one.name for one in weights.classes] == ["background", "shell", "core"]
    assert sum(weights.average.values()) == pytest.approx(1)
    assert all(weight >= 0 for one in weights.classes for weight in one.weights.values())
    record = weights.provenance
    learning, judging = ({name for pair in record[key] for name in pair} for key in ("pairs", "judging_pairs"))
    (spared,) = judging - learning
    assert len(record["pairs"]) == 2
    assert len(record["judging_pairs"]) == 4
    assert all(spared in pair for pair in record["judging_pairs"])
    assert all(row["objective"] <= row["objective_before"] for row in record["iterations"])
    shares = np.array([record["points"][one.name] for one in weights.classes])
    table = np.array([[one.weights[name] for name in TINY.metrics] for one in weights.classes])
    assert shares @ table == pytest.approx(list(weights.average.values()), abs=1e-4)


def test_learning_goes_on_where_it_was_stopped_and_ends_in_the_same_bytes(cohort, learnt, tmp_path):
    learnt.write(tmp_path / "whole.json")
    calls = iter(range(10_000))
    stopped = Execution(threads=1, cancelled=lambda: next(calls) > 40)
    with pytest.raises(Cancelled):
        learn_metrics(cohort, tmp_path / "work", TINY, execution=stopped)
    learn_metrics(cohort, tmp_path / "work", TINY, execution=ONE).write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_judging_pairs_choose_among_the_iterations(tmp_path):
    cohort = Cohort.read(write_cohort(tmp_path / "data", range(8)))
    settings = replace(TINY, pairs=1, judging=1, svm=SVMSettings(iterations=1, rounds=1))
    record = learn_metrics(cohort, tmp_path / "work", settings, execution=ONE).provenance
    scores = [row["judging_dice"]["mean"] for row in record["iterations"]]
    assert record["chosen"] == scores.index(max(scores))
    assert set(record["iterations"][0]["judging_dice"]) == {"shell", "core", "mean"}


def test_a_subject_without_a_reference_is_named(cohort, tmp_path):
    bare = replace(cohort, subjects=(*cohort.subjects[:2], replace(cohort.subjects[2], labels=None)))
    with pytest.raises(CohortError, match="s2"):
        learn_metrics(bare, tmp_path, TINY, execution=ONE)


def test_the_verb_writes_weights_that_register_takes(data, tmp_path, capsys):
    out = tmp_path / "weights.json"
    options = ["--pairs", "1", "--judging-pairs", "0", "--metrics", "ncc,sad", "--iterations", "1"]
    options += ["--class", "organ=2,4", "--spacing", "4"]
    figure = tmp_path / "weights.svg"
    words = ["learn-metrics", str(data), "-o", str(out), "--figure", str(figure), "--threads", "1", *options]
    assert main(words) == 0
    assert "weights of iteration 1 of 1" in capsys.readouterr().out
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert [(one.name, one.labels) for one in MetricWeights.read(out).classes] == [("other", (0,)), ("organ", (2, 4))]
    images = [str(data / "imagesTr" / f"s{n}_0000.nii.gz") for n in (0, 1)]
    labels = ["--target-labels", str(data / "labelsTr" / "s1.nii.gz")]
    code = main(
        [
            "register",
            *images,
            "-o",
            str(tmp_path / "r"),
            "--metrics",
            str(out),
            *labels,
            "--threads",
            "1",
            "--spacing",
            "4",
        ]
    )
    assert code == 0
    record = json.loads((tmp_path / "r" / "record.json").read_text(encoding="utf-8"))
    assert record["classes_from"] == "target"
    assert [one["name"] for one in record["settings"]["classes"]] == ["other", "organ"]


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (["lungs"], "no class with labels"),
        (["=1"], "no class with labels"),
        (["lungs="], "an entry of the list is empty"),
        (["lungs=1", "lungs=2"], "given twice"),
    ],
)
def test_the_verb_refuses_classes_that_it_would_have_to_guess(classes, problem):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    args = parser.parse_args(["data", "-o", "w.json", *(word for name in classes for word in ("--class", name))])
    with pytest.raises(InputError, match=problem):
        verb._settings(args)


def test_two_learnings_do_not_write_one_file_from_work_folders_of_their_own(cohort, tmp_path, capsys):
    out = tmp_path / "weights.json"
    with made_alone(out):
        assert main(["learn-metrics", str(cohort.root), "-o", str(out), "--work", str(tmp_path / "work")]) == 2
    assert "weights.json: another process is making this" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "name"), [("-o", "new.json"), ("--figure", "new.svg")])
def test_outputs_that_cannot_be_written_are_refused_before_the_learning(cohort, tmp_path, capsys, option, name):
    (tmp_path / "file.json").write_text('{"no": "weights"}', encoding="utf-8")
    for path in (tmp_path, tmp_path / "file.json", tmp_path / "file.json" / name):
        options = {"-o": tmp_path / "w.json"} | {option: path}
        words = [str(word) for pair in options.items() for word in pair]
        assert main(["learn-metrics", str(cohort.root), *words]) == 2
    assert f"give another place after {option}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == '{"no": "weights"}'


def test_a_model_keeps_weights_and_references_and_registers_scans_with_them(cohort, tmp_path, capsys):
    settings = {**WEIGHTS.settings(), "levels": [asdict(level) for level in LEVELS]}
    short = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4)
    options = FitOptions(atlases=("s0",), width=0.25, preset=short, operator_settings=settings)
    model = fit(cohort, tmp_path / "m", options, execution=ONE)
    assert "atlas_labels/s0.nii.gz" in model.checksums
    assert sitk.ReadImage(model.folder / "atlas_labels/s0.nii.gz").GetMetaData("intent_code") == "1002"
    model.export(tmp_path / "m.zip")
    (member,) = Predictor(Model.load(tmp_path / "m.zip"), execution=ONE).members
    assert member.operator.settings()["classes"][2]["weights"] == dict(CLASSES[2].weights)
    (made,) = member.register(Scan(subject(9)[0], ONE))
    assert brief("s0", made.record)["classes_from"] == "target"  # what the record of a prediction keeps
    assert main(["model", "info", str(tmp_path / "m.zip")]) == 0
    assert "metrics learnt for background, shell, core" in capsys.readouterr().out
    atlas = cohort["s0"]
    (expected,) = member.operator.register(
        subject(9)[0], [atlas.read_image()], target_labels=[atlas.read_labels()], execution=ONE
    )
    grid = atlas.read_grid()
    apart = made.transform.displacement(grid) - expected.transform.displacement(grid)
    assert float(apart.abs().mean()) < 0.02  # mm; headers are rounded


@pytest.mark.parametrize(
    ("words", "metrics", "discrete"),
    [
        (["--registration-preset", "publication"], {"mi": 1.0, "ncc": 1.0, "dwt": 1.0}, True),
        (["--metrics", "mi=1, ncc=0.5"], {"mi": 1.0, "ncc": 0.5}, False),
    ],
)
def test_a_training_registers_by_the_metrics_that_the_command_line_names(
    data, tmp_path, capsys, words, metrics, discrete
):
    out = tmp_path / "m"
    words = ["train", str(data), "-o", str(out), "--atlas", "s0", "--epochs", "1", "--width", "0.1", *words]
    assert main([*words, "--threads", "1", "--quiet"]) == 0
    model = Model.load(out)
    assert model.operator_settings["metrics"] == metrics
    if discrete:
        assert model.operator_settings["levels"] == [asdict(level) for level in DISCRETE_LEVELS]
    (record, *_) = [json.loads(path.read_text()) for path in out.glob("work/registrations/*/record.json")]
    assert record["metrics"] == metrics
    assert any(level["correlation_before_refinements"] for level in record["levels"]) is not discrete
    assert main([*words, "--threads", "1", "--quiet"]) == 0  # the same request is finished
    assert main(["model", "info", str(out)]) == 0
    assert ", ".join(f"{name} {weight:g}" for name, weight in metrics.items()) in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "study"])
@pytest.mark.parametrize("option", [["--metrics", "mi=1"], ["--registration-preset", "publication"]])
def test_metrics_for_a_registration_that_has_none_are_refused_before_anything_is_read(
    data, tmp_path, capsys, verb, option
):
    words = [verb, str(data), "-o", str(tmp_path / "m"), "--registration", "affine", *option]
    if verb == "study":
        names = tmp_path / "names.txt"
        names.write_text("s0\n")
        words += ["--test-subjects", str(names)]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "takes neither --metrics nor --registration-preset" in said
    assert "checking the files" not in said


def test_settings_that_an_operator_does_not_have_are_refused_before_any_file_is_read(cohort, tmp_path):
    class Listening(SilentReporter):
        def track(self, *_):
            raise AssertionError("files are read")

    options = FitOptions(atlases=("s0",), operator="affine", operator_settings={"metrics": {"mi": 1.0}})
    with pytest.raises(InputError, match=r"'affine' does not take these settings; expected .*voxels.*; found metrics"):
        fit(cohort, tmp_path / "m", options, execution=Execution(reporter=Listening()))
    assert not (tmp_path / "m").exists()


def test_a_training_refuses_weights_that_were_learnt_for_other_labels(cohort, tmp_path):
    other = MetricWeights((TissueClass("liver", (17,), {"mi": 1.0}),), {"mi": 1.0}, 0.1)
    with pytest.raises(InputError, match="other labels than the cohort's"):
        fit(cohort, tmp_path / "m", FitOptions(atlases=("s0",), operator_settings=other.settings()), execution=ONE)


def test_a_reference_without_any_structure_is_all_background():
    source, labels, target, _ = two()
    nothing = labels.replace(np.zeros_like(labels.array))
    alone = MRFSettings(metrics={"mi": 0.2, "ncc": 0.6}, alpha=0.15 / 0.8, levels=LEVELS, affine=False)
    expected = register_images(source, target, operator=MRFOperator(alone), execution=ONE)
    weights = {"metrics": {"mi": 0.4, "ncc": 0.6}, "temperature": 0.02 * 0.8}
    found = register_images(source, target, operator=operator(**weights), source_labels=nothing, execution=ONE)
    apart = found.transform.displacement(target.grid) - expected.transform.displacement(target.grid)
    assert float(apart.abs().mean()) < 0.02  # mm; beyond the source there is no class, and the average holds


def test_a_pair_is_registered_anew_when_the_reference_of_its_atlas_changes(tmp_path):
    image, labels = subject(0)
    write_volume(tmp_path / "image.nii.gz", image)
    keyed = [Keyed("a", "image", lambda: image, key, lambda: labels) for key in ("one", "two")]
    scan = Keyed("scan", "scan", lambda: image)
    plain, by_class = (PairRegistrar(o, WorkFolder(tmp_path), ONE) for o in (MRFOperator(), operator()))
    assert plain.key(scan, keyed[0]) == plain.key(scan, keyed[1])
    assert by_class.key(scan, keyed[0]) != by_class.key(scan, keyed[1])
