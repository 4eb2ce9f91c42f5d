"""From a cohort to a model and from a model to labels: the whole way on a small cohort of known shapes."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk

import atlasnet
from atlasnet.atlas import choose_atlases
from atlasnet.cli.main import main, parser
from atlasnet.cohort import Cohort, Plan
from atlasnet.errors import CohortError, InputError, ModelError, VolumeError
from atlasnet.execution import Execution, SilentReporter, WorkFolder
from atlasnet.prediction import Prediction, PredictOptions, Predictor
from atlasnet.prediction.answers import Answers
from atlasnet.prediction.fusion import BY_VOXEL, METHODS
from atlasnet.training.atlases import AtlasSet
from atlasnet.training.fit import fit
from atlasnet.training.forecast import forecast_fit
from atlasnet.training.fusion_weights import FusionWeights
from atlasnet.training.mapping import region_grid, working_grid
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.training.sources import keyed_subject
from atlasnet.training.store import IGNORED
from atlasnet.volume import Grid, Volume, read_volume, resample, write_volume
from atlasnet.volume.writing import to_sitk
from synthetic import LABELS, SPACING, dice, subject, write_cohort

pytestmark = pytest.mark.usefixtures("brief")
RECIPE = replace(Recipe.preset("default"), epochs=4, iterations=16, passes=0.0, batch_slices=8)
OPTIONS = FitOptions(atlases=2, width=0.5, preset=RECIPE)
SHORT = replace(Recipe.preset("default"), iterations=2, passes=2.0)  # three steps, so that every slice is seen twice
QUICK = FitOptions(atlases=("s0",), width=0.25, epochs=1, operator="centre", preset=SHORT)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.read(write_cohort(tmp_path_factory.mktemp("cohort"), range(3)))


@pytest.fixture(scope="module")
def model(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    fitted = fit(cohort, tmp_path_factory.mktemp("model") / "m", OPTIONS)
    replace(fitted, fusion_weights=FusionWeights(0.3, 0.5, 0.6)).save()
    return Model.load(fitted.folder)


@pytest.fixture(scope="module")
def quick(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return fit(cohort, tmp_path_factory.mktemp("quick") / "m", QUICK)


@pytest.fixture(scope="module")
def kept(quick: Model) -> Path:
    """The work folder of `quick`, from which other trainings may take over; it is only read then."""
    return quick.folder / "work"


@pytest.fixture(scope="module")
def net(model: Model) -> atlasnet.AtlasNet:
    return atlasnet.AtlasNet.load(model.folder)


@pytest.fixture(scope="module")
def scan() -> Volume:
    return subject(100)[0]


@pytest.fixture(scope="module")
def prediction(net: atlasnet.AtlasNet, scan: Volume) -> Prediction:
    """Of the scan, where nothing else is asked for."""
    return net.predict(scan)


@pytest.fixture(scope="module")
def answers(model: Model) -> Answers:
    """What the atlases say of scan 102, for every fusion."""
    return Predictor(model).ask(subject(102)[0], fit=True)


def test_a_model_holds_everything_under_its_checksum(model: Model) -> None:
    assert [atlas.subject in {"s0", "s1", "s2"} for atlas in model.atlases] == [True, True]
    assert set(model.checksums) == {
        f"{kind}/{atlas.name}{suffix}"
        for atlas in model.atlases
        for kind, suffix in (("atlases", ".nii.gz"), ("networks", ".safetensors"))
    }
    assert Plan.read(model.folder / "plan.json") == model.plan
    for atlas in model.atlases:
        assert (model.folder / "log" / f"{atlas.name}.csv").read_text().startswith("epoch,")


def test_a_new_subject_is_segmented_in_the_cohorts_own_label_values(scan: Volume, prediction: Prediction) -> None:
    reference = subject(100)[1]
    assert set(np.unique(prediction.labels.array)) <= set(LABELS.values())
    assert prediction.labels.grid is scan.grid
    for value in (2, 4):
        assert dice(prediction.labels.array == value, reference.array == value) > 0.85
    ml = prediction.record["volumes_ml"]["core"]
    assert ml == pytest.approx((prediction.labels.array == 4).sum() * np.prod(SPACING) / 1000, rel=1e-3)
    json.dumps(prediction.record, allow_nan=False)


@pytest.mark.parametrize("fusion", METHODS)
def test_every_fusion_finds_the_shapes(model: Model, answers: Answers, fusion: str) -> None:
    reference = subject(102)[1]
    prediction = Predictor(model).fuse(answers, PredictOptions(fusion=fusion))
    assert dice(prediction.labels.array > 0, reference.array > 0) > 0.85
    for record in prediction.record["atlases"]:
        found = record.get("sensitivity", {})
        assert set(found) == (set(LABELS) - {"background"} if fusion == "staple" else set())
        assert all(0 < value <= 1 for value in found.values())


@pytest.mark.parametrize("fusion", ["staple", "local"])
def test_the_object_fuses_as_it_is_asked_to(
    net: atlasnet.AtlasNet, model: Model, answers: Answers, fusion: str
) -> None:
    prediction = net.predict(subject(102)[0], fusion=fusion)
    assert prediction.record["fusion"] == fusion
    wanted = Predictor(model).fuse(answers, PredictOptions(fusion=fusion))
    np.testing.assert_array_equal(prediction.labels.array, wanted.labels.array)


@pytest.mark.parametrize("fusion", METHODS)
def test_a_fusion_does_not_depend_on_the_slabs(
    model: Model, answers: Answers, monkeypatch: pytest.MonkeyPatch, fusion: str
) -> None:
    predictor = Predictor(model)
    whole = predictor.fuse(answers, PredictOptions(fusion=fusion))
    monkeypatch.setattr("atlasnet.prediction.predictor.SLAB_VOXELS", 1)
    slices = predictor.fuse(answers, PredictOptions(fusion=fusion))
    np.testing.assert_array_equal(slices.labels.array, whole.labels.array)
    assert slices.record["atlases"] == whole.record["atlases"]


def test_the_record_has_the_volumes_that_each_atlas_alone_would_give(model: Model, answers: Answers) -> None:
    predictor = Predictor(model)
    record = predictor.fuse(answers).record
    alone = [predictor.fuse(replace(answers, atlases=(one,))).labels.array for one in answers.atlases]
    for name, value in (("core", 4), ("shell", 2)):
        ml = [np.count_nonzero(labels == value) * np.prod(SPACING) / 1000 for labels in alone]
        expected = {
            "minimum": min(ml),
            "mean": np.mean(ml),
            "maximum": max(ml),
            "standard_deviation": np.std(ml, ddof=1),
        }
        assert record["volumes_of_atlases_ml"][name] == pytest.approx(expected, abs=1e-3)
    assert len(alone) == 2


@pytest.mark.parametrize("fusion", BY_VOXEL)
def test_local_weights_that_nobody_measured_are_missed(model: Model, fusion: str) -> None:
    predictor = Predictor(model)
    answers = predictor.ask(subject(101)[0])
    with pytest.raises(InputError, match="fit=True"):
        predictor.fuse(answers, PredictOptions(fusion=fusion))


def test_a_scan_of_another_size_and_spacing_comes_back_on_its_own_grid(net: atlasnet.AtlasNet) -> None:
    image, reference = subject(102)
    fine = image.grid.with_spacing((1.2, 1.4, 2.3))
    prediction = net.predict(resample(image, fine))
    assert prediction.labels.grid.shape == fine.shape
    expected = resample(reference, fine, interpolation="label")
    assert dice(prediction.labels.array > 0, expected.array > 0) > 0.85


def test_probabilities_and_agreement_come_on_request(
    net: atlasnet.AtlasNet, scan: Volume, prediction: Prediction
) -> None:
    asked = net.predict(scan, probabilities=True, agreement=True)
    assert asked.probabilities is not None
    assert asked.agreement is not None
    assert asked.entropy is not None
    assert asked.probabilities.array.shape == (3, *scan.grid.shape)
    np.testing.assert_allclose(asked.probabilities.array.sum(0), 1, atol=2e-3)
    values = np.array([0, 2, 4])[asked.probabilities.array.argmax(0)]
    assert np.mean(values == asked.labels.array[0]) > 0.9999
    assert set(np.unique(asked.agreement.array)) <= {0.0, 0.5, 1.0}
    assert prediction.probabilities is None
    assert prediction.agreement is None
    np.testing.assert_array_equal(asked.labels.array, prediction.labels.array)


def test_a_zip_predicts_like_its_folder(
    net: atlasnet.AtlasNet, scan: Volume, prediction: Prediction, tmp_path: Path
) -> None:
    net.save(tmp_path / "model.zip")
    packed = atlasnet.AtlasNet.load(tmp_path / "model.zip")
    np.testing.assert_array_equal(packed.predict(scan).labels.array, prediction.labels.array)


def test_another_run_gives_the_same_bytes(cohort: Cohort, quick: Model, tmp_path: Path) -> None:
    assert fit(cohort, tmp_path / "m", QUICK).checksums == quick.checksums


def test_fitting_a_finished_model_again_touches_nothing(cohort: Cohort, model: Model) -> None:
    before = {path: path.stat().st_mtime_ns for path in model.folder.rglob("*") if path.is_file()}
    assert fit(cohort, model.folder, OPTIONS).checksums == model.checksums
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_changes_nothing_makes_no_other_model(cohort: Cohort, model: Model, kept: Path, tmp_path: Path) -> None:
    assert fit(cohort, model.folder, replace(OPTIONS, allow_module=True)).checksums == model.checksums
    short = replace(QUICK, epochs=None, preset=replace(Recipe.preset("default"), epochs=1))
    fitted = fit(cohort, tmp_path / "m", short, earlier=kept)
    assert fit(cohort, tmp_path / "m", replace(short, epochs=1)).checksums == fitted.checksums
    with pytest.raises(ModelError, match="another folder"):
        fit(cohort, tmp_path / "m", replace(short, epochs=2))


def test_a_finished_model_is_not_overwritten_by_another(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another folder"):
        fit(cohort, model.folder, FitOptions(atlases=1))
    grown = Cohort.read(write_cohort(tmp_path, range(4))).select(["s0", "s1", "s3"])
    with pytest.raises(ModelError, match=r"found more subjects s3; without s2; to mend it: .* with -o and --update"):
        fit(grown, model.folder, OPTIONS)


def test_a_training_says_what_it_takes(cohort: Cohort, kept: Path, tmp_path: Path) -> None:
    class Notes(SilentReporter):
        said: ClassVar[list[str]] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    options = replace(QUICK, atlases=("s0", "s1"), epochs=4)
    fit(cohort, tmp_path / "m", options, earlier=kept, execution=Execution(threads=1, reporter=Notes()))
    assert any(re.fullmatch(r"registering and mapping takes up to \d+ MiB of memory", text) for text in Notes.said)
    assert "epochs: 4 for a common one, 1 for each of 2" in Notes.said
    # Two of the common one's four epochs are done by then, and none of the others'.
    speed = r"networks: \d+\.\d s an epoch, \d+ slices? a second; 4 epochs left, about \d+ s"
    assert sum(re.fullmatch(speed, text) is not None for text in Notes.said) == 1


def test_what_the_cohort_declares_and_does_not_show_is_told(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path / "data", range(2))
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] |= {"shadow": 7}
    (folder / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "CT"}}))
    reporter = SilentReporter()
    forecast_fit(Cohort.read(folder), tmp_path / "m", QUICK, execution=Execution(threads=1, reporter=reporter))
    assert "no subject has the label shadow (7)" in reporter.warnings
    assert any("channel CT of 2 subjects hardly holds Hounsfield units" in text for text in reporter.warnings)


def test_an_edited_plan_is_used(cohort: Cohort, model: Model, tmp_path: Path) -> None:
    content = model.plan.to_json() | {"spacing": [3.0, 3.0, 4.0]}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    changed = fit(cohort, tmp_path, FitOptions(atlases=1, width=0.25, epochs=1, operator="identity"))
    assert changed.plan.spacing == (3.0, 3.0, 4.0)


def test_a_spacing_that_is_asked_for_is_planned_and_stays(
    cohort: Cohort, model: Model, kept: Path, tmp_path: Path
) -> None:
    asked = replace(QUICK, spacing=(5.0, 5.0, 6.0))
    fitted = fit(cohort, tmp_path / "m", asked, earlier=kept)
    assert fitted.plan == replace(model.plan, spacing=(5.0, 5.0, 6.0), context=fitted.plan.context)
    before = (tmp_path / "m" / "model.json").read_bytes()
    fit(cohort, tmp_path / "m", asked)
    fit(cohort, tmp_path / "m", QUICK)  # the plan says it
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    with pytest.raises(InputError, match=r"another spacing.*expected 7 x 7 x 7 mm; found 5 x 5 x 6 mm"):
        fit(cohort, tmp_path / "m", replace(QUICK, spacing=(7.0, 7.0, 7.0)))
    with pytest.raises(InputError, match="an updated model keeps its spacing"):
        fit(cohort, tmp_path / "n", replace(asked, atlases=2, operator=None, width=None), update=fitted)


def test_a_network_in_three_dimensions_sees_the_voxels_of_the_scans(cohort: Cohort, tmp_path: Path) -> None:
    flat, deep = (
        forecast_fit(cohort, tmp_path / "m", replace(QUICK, network=name)).plan.spacing for name in ("unet", "unet3d")
    )
    assert flat == pytest.approx((0.7 * SPACING[0], 0.7 * SPACING[1], SPACING[2]))
    assert deep == tuple(SPACING)
    asked = forecast_fit(cohort, tmp_path / "m", replace(QUICK, network="unet3d", spacing=flat))
    assert asked.plan.spacing == flat


def test_the_command_line_asks_for_the_voxels_of_the_scans(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "m" / "plan.json"
    assert main(["check", str(cohort.root), "--spacing", "scan", "--plan", str(plan), "--quiet"]) == 0
    assert Plan.read(plan).spacing == tuple(SPACING)
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--dry-run", "--spacing"]
    assert main([*words, "9"]) == 2
    assert "the plan that lies here has another spacing" in capsys.readouterr().err
    assert main([*words, "1", "2"]) == 2


def test_voxels_under_the_ignore_label_do_not_count(tmp_path: Path) -> None:
    cohort = Cohort.read(write_cohort(tmp_path / "data", range(2), ignore=9))
    model = fit(cohort, tmp_path / "m", QUICK)
    assert model.ignore_label == 9
    assert model.values == (0, 2, 4)
    cases = sorted((tmp_path / "m" / "work" / "mapped").rglob("s0.labels.npy"))
    mapped = np.load(cases[0])
    assert (mapped[: len(mapped) // 4] == 255).all()
    assert set(np.unique(mapped)) == {0, 1, 2, 255}


def test_an_image_file_may_be_an_atlas(cohort: Cohort, kept: Path, tmp_path: Path) -> None:
    write_volume(tmp_path / "template.mha", subject(50)[0])
    options = replace(QUICK, atlases=("s0", str(tmp_path / "template.mha")))
    model = fit(cohort, tmp_path / "m", options, earlier=kept)
    assert [(atlas.name, atlas.subject) for atlas in model.atlases] == [("s0", "s0"), ("template", None)]


def test_atlases_are_chosen_among_scans_that_nobody_annotated(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans, moved = tmp_path / "scans", tmp_path / "moved"
    for name, number in (("new", 50), ("other", 51), ("s0", 0)):
        write_volume(scans / f"{name}_0000.nii.gz", subject(number)[0])
    net = atlasnet.AtlasNet(
        atlases=7, atlas_images=scans, width=0.25, epochs=1, registration="identity", execution=Execution(threads=1)
    ).fit(cohort, tmp_path / "m")
    assert net.model is not None
    own = [(f"s{number}", f"s{number}") for number in range(3)]
    assert [(atlas.name, atlas.subject) for atlas in net.model.atlases] == [("new", None), ("other", None), *own]
    assert "s1 onto new" in net.report().read_text(encoding="utf-8")
    # The same scans elsewhere make the same model; another scan is another request.
    shutil.move(scans, moved)
    words = ["train", str(cohort.root), "-o", str(tmp_path / "m"), "--width", "0.25", "--epochs", "1", "--threads", "1"]
    words += ["--registration", "identity", "--atlas-images"]
    assert main([*words, str(moved), "--atlases", "7"]) == 0
    said = capsys.readouterr().err
    assert "7 atlases were asked for and there are 3 subjects and 2 further images" in said
    assert "the model is finished already; nothing was left" in said
    write_volume(moved / "other_0000.nii.gz", subject(52)[0])
    assert main([*words, str(moved), "--atlases", "7"]) == 2
    for wrong, found in (([str(moved), "--atlas", "s1"], "or chosen"), ([str(cohort.root)], "but the subjects")):
        assert main([*words, *wrong]) == 2
        assert found in capsys.readouterr().err


def test_a_choice_among_subjects_and_further_scans_spans_them_all(cohort: Cohort, tmp_path: Path) -> None:
    images = tuple(str(tmp_path / f"{name}_0000.nii.gz") for name in ("new", "other"))
    for path, number in zip(images, (50, 51), strict=True):
        write_volume(path, subject(number)[0])
    keyed = [keyed_subject(one, {"images": (one.name,)}) for one in cohort]
    wanted = AtlasSet(cohort, 2, WorkFolder(tmp_path / "work"), Execution(), images=images)
    assert wanted.known(keyed) is None
    everyone = {path.name.removesuffix("_0000.nii.gz"): path for s in cohort for path in s.images}
    everyone |= {"new": Path(images[0]), "other": Path(images[1])}
    chosen = choose_atlases({name: partial(read_volume, path) for name, path in everyone.items()}, 2)
    found = wanted.found(keyed)
    assert [source.name for source in found] == chosen
    assert wanted.known(keyed) == found


def test_a_subject_that_is_the_atlas_is_mapped_by_the_identity(cohort: Cohort, model: Model) -> None:
    atlas = model.atlases[0]
    grid = region_grid(working_grid(model.atlas_image(atlas).grid, model.plan), atlas.region, model.plan.slice_axis)
    labels = cohort[str(atlas.subject)].read_labels()
    classes = labels.replace(np.select([labels.array == 2, labels.array == 4], [1, 2], 0).astype(np.uint8))
    frame = to_sitk(Volume(np.zeros((1, *grid.shape), np.uint8), grid))
    expected = sitk.GetArrayFromImage(sitk.Resample(to_sitk(classes), frame, sitk.Transform(), sitk.sitkLabelLinear))
    cases = [np.load(path) for path in (model.folder / "work" / "mapped").rglob(f"{atlas.name}.labels.npy")]
    known = [case[case != IGNORED] == expected[case != IGNORED] for case in cases if case.shape == grid.shape]
    assert max(same.mean() for same in known) > 0.999  # ties go to either class


def test_another_number_of_channels_is_refused(net: atlasnet.AtlasNet) -> None:
    image, _ = subject(1)
    with pytest.raises(VolumeError, match="channels of the model"):
        net.predict(Volume(np.concatenate([image.array] * 2), image.grid))


def test_a_damaged_file_of_a_model_is_named(model: Model, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns("work"))
    weights = copy / "networks" / f"{model.atlases[0].name}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="checksum differs"):
        Model.load(copy)
    weights.unlink()
    with pytest.raises(ModelError, match="is absent"):
        Model.load(copy)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": 99}, "format 99.*train it again: atlasnet train DATA -o MODEL"),
        ({"format": 99, "atlasnet": "7.0.1"}, "format 99.*pip install 'atlasnet==7.0.1', which wrote it, or train"),
        ({"format": 99, "atlasnet": "7.0'; rm -r ."}, "format 99.*to mend it: train it again"),
        ({"atlases": [{"name": "../../etc", "subject": None, "quality": {}}]}, "not a file name"),
        ({"labels": None}, "not complete"),
        ({"plan": {}}, "cannot be used"),
    ],
)
def test_a_model_json_that_makes_no_sense_is_refused(
    model: Model, tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    content = json.loads((model.folder / "model.json").read_text()) | change
    del content["digest"]
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=problem):
        Model.load(tmp_path)


def test_a_model_json_that_was_changed_is_refused(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "m"
    shutil.copytree(model.folder, copy, ignore=shutil.ignore_patterns("work"))
    assert main(["model", "verify", str(copy)]) == 0
    content = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    content["labels"] |= {"core": LABELS["shell"], "shell": LABELS["core"]}
    (copy / "model.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(["model", "verify", str(copy)]) == 2
    assert "not as it was written" in capsys.readouterr().err
    text = json.dumps(content).replace('"core": 2', '"core": 1e999')
    (copy / "model.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match="not as it was written"):
        Model.load(copy)


def test_an_unfinished_model_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="this is not a model"):
        Model.load(tmp_path)
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="same atlasnet train command"):
        Model.load(tmp_path)
    with pytest.raises(ModelError, match="there is no model"):
        Model.load(tmp_path / "absent")


def test_an_archive_that_names_files_outside_itself_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.json", "{}")
    with pytest.raises(ModelError, match="outside itself"):
        Model.load(tmp_path / "evil.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ModelError, match="not a model archive"):
        Model.load(tmp_path / "text.zip")


def test_two_processes_do_not_share_a_work_folder(cohort: Cohort, tmp_path: Path) -> None:
    with WorkFolder(tmp_path / "work").locked(), pytest.raises(InputError, match="another process"):
        fit(cohort, tmp_path / "m", OPTIONS, work=tmp_path / "work")


def test_options_that_cannot_be_used_are_refused_before_any_work(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one atlas"):
        fit(cohort, tmp_path / "m", FitOptions(atlases=0))
    with pytest.raises(InputError, match="unknown network"):
        fit(cohort, tmp_path / "m", FitOptions(network="resnet"))
    with pytest.raises(InputError, match="unknown preset"):
        fit(cohort, tmp_path / "m", FitOptions(preset="best"))
    with pytest.raises(InputError, match="device"):
        fit(cohort, tmp_path / "m", FitOptions(), execution=Execution(device="cuda:99"))
    assert not (tmp_path / "m" / "networks").exists()


def test_a_subject_without_reference_is_named(cohort: Cohort, tmp_path: Path) -> None:
    shutil.copytree(cohort.root, tmp_path / "data")
    os.remove(tmp_path / "data" / "labelsTr" / "s2.nii.gz")
    with pytest.raises(CohortError, match="s2"):
        fit(Cohort.read(tmp_path / "data", labelled=False), tmp_path / "m", OPTIONS)


def test_an_oblique_scan_is_segmented_where_it_lies(net: atlasnet.AtlasNet) -> None:
    image, reference = subject(105)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    grid = Grid.from_parts((16, 34, 36), SPACING, np.zeros(3), turn)
    grid = Grid.from_parts(grid.shape, SPACING, image.grid.centre - grid.centre, turn)
    prediction = net.predict(resample(image, grid))
    expected = resample(reference, grid, interpolation="label")
    assert dice(prediction.labels.array > 0, expected.array > 0) > 0.85


def test_labels_written_by_the_command_line_are_those_of_the_object(
    net: atlasnet.AtlasNet, model: Model, tmp_path: Path
) -> None:
    from atlasnet.cli.main import main
    from atlasnet.volume import write_volume

    image, _ = subject(106)
    write_volume(tmp_path / "in" / "scan_0000.nii.gz", image)
    arguments = ["predict", str(tmp_path / "in"), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--agreement", "--probabilities"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scan.nii.gz",
        "scan.json",
        "scan_agreement.nii.gz",
        "scan_entropy.nii.gz",
        "scan_probabilities.nii.gz",
        "labels.label",
        "labels.ctbl",
    }
    written = read_volume(tmp_path / "out" / "scan.nii.gz")
    stored = read_volume(tmp_path / "in" / "scan_0000.nii.gz")
    np.testing.assert_array_equal(written.array, net.predict(stored).labels.array)
    np.testing.assert_allclose(written.grid.affine, stored.grid.affine, atol=1e-5)


def test_a_case_that_fails_does_not_stop_the_others(model: Model, tmp_path: Path) -> None:
    from atlasnet.cli.main import main
    from atlasnet.volume import write_volume

    write_volume(tmp_path / "in" / "b.nii.gz", subject(107)[0])
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"not an image")
    code = main(["predict", str(tmp_path / "in"), "-m", str(model.folder), "-o", str(tmp_path / "out"), "--quiet"])
    assert code == 1
    tables = {"labels.label", "labels.ctbl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b.nii.gz", "b.json", *tables}


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from atlasnet.cli.main import main
    from atlasnet.volume import write_volume

    write_volume(tmp_path / "scan.nii.gz", subject(108)[0])
    (tmp_path / "file").write_text("")
    arguments = ["predict", str(tmp_path / "scan.nii.gz"), "-m", str(model.folder), "--quiet", "-o"]
    assert main([*arguments, str(tmp_path / "file" / "out")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "scan.nhdr")]) == 2
    assert "no such image can be written" in capsys.readouterr().err


def test_training_fits_into_its_time_and_goes_on_with_the_same_number_of_epochs(
    cohort: Cohort, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(Recipe.preset("default"), epochs=100_000, iterations=2)
    options = replace(QUICK, epochs=None, preset=recipe, time_budget=1e6)
    # steps of 1e5 seconds, of which 9 fit after what came before, and an epoch has two
    monkeypatch.setattr("atlasnet.training.networks.AtlasNetworks.timed_step", lambda *_: (1e5, 3))
    model = fit(cohort, tmp_path / "m", options, earlier=kept)
    assert model.provenance["recipe"]["epochs"] == 4
    assert len((tmp_path / "m" / "log" / "s0.csv").read_text().splitlines()) == 1 + 4
    (tmp_path / "m" / "model.json").unlink()
    monkeypatch.setattr("atlasnet.training.networks.AtlasNetworks.timed_step", lambda *_: (1.0, 3))
    again = fit(cohort, tmp_path / "m", options)
    assert again.checksums == model.checksums


def test_more_time_than_needed_changes_nothing(cohort: Cohort, quick: Model, kept: Path, tmp_path: Path) -> None:
    timed = fit(cohort, tmp_path / "m", replace(QUICK, time_budget=1e5), earlier=kept)
    assert timed.checksums == quick.checksums


def test_too_little_time_is_refused(cohort: Cohort, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="time budget is too short"):
        fit(cohort, tmp_path / "m", replace(QUICK, time_budget=1e-6), earlier=kept)
    with pytest.raises(InputError, match="must be positive"):
        fit(cohort, tmp_path / "m", replace(QUICK, time_budget=0.0))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h0.5m3s", 3633), ("45", 45)]
)
def test_a_time_is_given_in_hours_minutes_and_seconds(text: str, seconds: float) -> None:
    args = parser().parse_args(["train", "data", "-o", "model", "--time-budget", text])
    assert args.time_budget == seconds


@pytest.mark.parametrize(
    "text", ["", "-3m", "5 days", "m", "infm", "nan", "0", "0h0m", "30m1h", "1h1h", "1 h", "1h30", "1e3s", "9" * 400]
)
def test_a_time_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "data", "-o", "model", f"--time-budget={text}"])
    assert "30m" in capsys.readouterr().err
