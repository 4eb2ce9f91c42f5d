"""The verb ``register``: its files as other software reads them."""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread
from scipy import ndimage

from atlasnet.cli import learn_metrics, register
from atlasnet.cli.main import parser
from atlasnet.cli.options import REGISTRATION_PRESETS, metric_settings
from atlasnet.cli.reporting import run_verb
from atlasnet.errors import AtlasNetError, InputError, TransformError, VolumeError
from atlasnet.execution import hold_folder
from atlasnet.registration.settings import PRESETS
from atlasnet.transform import Transform
from atlasnet.volume import Volume, read_volume, write_volume

FILES = {"warped.nii.gz", "transform.safetensors", "record.json"}


def write(path, array, spacing, origin, direction=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    sitk.WriteImage(image, str(path))


def call(*arguments):
    parser = argparse.ArgumentParser()
    register.add_arguments(parser)
    parser.set_defaults(run=register.run)
    return run_verb(parser.parse_args([*map(str, arguments), "--threads", "1"]))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A source in an odd orientation with labels, and a target on another grid."""
    folder = tmp_path_factory.mktemp("scans")
    noise = np.random.default_rng(0).normal(size=(30, 34, 38))
    image = sum(ndimage.gaussian_filter(noise, s) * s**1.5 for s in (1.5, 3.0))
    image = (1000 + 300 * image / image.std()).astype(np.int16)
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"))
    inside = (((index - np.array([14, 17, 19])[:, None, None, None]) / 11.0) ** 2).sum(0) < 1
    image = np.where(inside, image, 0).astype(np.int16)
    labels = np.where(inside, np.where(image > 1000, 7, 3), 0).astype(np.int16)
    turned = [[0, 0, -1], [-1, 0, 0], [0, 1, 0]]
    for name, array in (("source", image), ("labels", labels)):
        write(folder / f"{name}.nii.gz", array, (1.5, 1.5, 2.0), (40.0, 30.0, -20.0), turned)
    angle = np.deg2rad(8)
    oblique = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    moved = ndimage.zoom(ndimage.gaussian_filter(image.astype(np.float32), 0.4), (0.9, 1.0, 0.95), order=1)
    frame = np.asarray(oblique) @ np.asarray(turned)
    write(folder / "target.mha", moved.astype(np.float32), (1.5, 1.6, 2.1), (43.0, 27.0, -22.0), frame)
    return folder


@pytest.fixture(scope="module")
def result(scans):
    code = call(
        scans / "source.nii.gz", scans / "target.mha", "-o", scans / "out", "--fields", "--itk",
        "--source-labels", scans / "labels.nii.gz", "--quiet",
    )  # fmt: skip
    assert code == 0
    return scans / "out"


def itk_transform(path):
    return sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64))


def test_exactly_the_promised_files_are_written(result):
    extra = {"warped_labels.nii.gz", "displacement.nii.gz", "inverse_displacement.nii.gz"}
    extra |= {"transform.h5", "inverse_transform.h5"}
    assert {path.name for path in result.iterdir()} == FILES | extra


def test_simpleitk_gets_the_same_warped_image_from_the_field(scans, result):
    source, target = (sitk.ReadImage(str(scans / name)) for name in ("source.nii.gz", "target.mha"))
    field = itk_transform(result / "displacement.nii.gz")
    theirs = sitk.GetArrayFromImage(sitk.Resample(sitk.Cast(source, sitk.sitkFloat32), target, field))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "warped.nii.gz")))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=2.0)  # intensities up to about 2000, float32 coordinates


def test_simpleitk_reads_the_same_maps_from_the_transforms(scans, result):
    source, target = (sitk.ReadImage(str(scans / name), sitk.sitkFloat32) for name in ("source.nii.gz", "target.mha"))
    there, back = (sitk.ReadTransform(str(result / name)) for name in ("transform.h5", "inverse_transform.h5"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(source, target, there))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "warped.nii.gz")))
    np.testing.assert_allclose(ours, theirs, atol=2.0)
    stored = Transform.load(result / "transform.safetensors").inverse
    grid = read_volume(scans / "source.nii.gz").grid
    field = stored.displacement(grid).numpy()
    for z, y, x in np.random.default_rng(1).integers(0, grid.shape, (50, 3)):
        point = grid.to_world(np.array([x, y, z], dtype=float))
        np.testing.assert_allclose(back.TransformPoint(point.tolist()), point + field[:, z, y, x], atol=1e-3)


def test_results_lie_on_the_targets_grid_and_the_inverse_field_on_the_sources(scans, result):
    for name, reference in (
        ("warped.nii.gz", "target.mha"),
        ("warped_labels.nii.gz", "target.mha"),
        ("displacement.nii.gz", "target.mha"),
        ("inverse_displacement.nii.gz", "source.nii.gz"),
    ):
        image, expected = sitk.ReadImage(str(result / name)), sitk.ReadImage(str(scans / reference))
        assert image.GetSize() == expected.GetSize()
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(image, get)(), getattr(expected, get)(), atol=1e-4)


def test_labels_keep_their_values(result):
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(result / "warped_labels.nii.gz"))))) == {0, 3, 7}


def test_warped_labels_are_called_labels_and_a_warped_image_is_not(result):
    intents = {
        name: sitk.ReadImage(str(result / name)).GetMetaData("intent_code")
        for name in ("warped_labels.nii.gz", "warped.nii.gz")
    }
    assert intents == {"warped_labels.nii.gz": "1002", "warped.nii.gz": "0"}


def test_the_two_fields_undo_each_other(scans, result):
    forward, backward = (
        itk_transform(result / name) for name in ("displacement.nii.gz", "inverse_displacement.nii.gz")
    )
    target = sitk.ReadImage(str(scans / "target.mha"))
    index = np.random.default_rng(0).integers(6, 20, (200, 3))
    points = [target.TransformIndexToPhysicalPoint(i.tolist()) for i in index]
    missed = [np.linalg.norm(np.subtract(backward.TransformPoint(forward.TransformPoint(p)), p)) for p in points]
    assert np.mean(missed) < 0.2


def test_the_stored_transform_is_the_written_field(scans, result):
    target = read_volume(scans / "target.mha")
    stored = Transform.load(result / "transform.safetensors").displacement(target.grid).numpy()
    field = sitk.GetArrayFromImage(sitk.ReadImage(str(result / "displacement.nii.gz")))
    np.testing.assert_array_equal(np.moveaxis(field, -1, 0), stored)


def test_the_record_holds_what_the_documentation_promises(result):
    record = json.loads((result / "record.json").read_text())
    assert record["seconds"] > 0
    for level in record["levels"]:
        assert set(level) >= {"resolution", "control_spacing_mm", "labels", "seconds"}
    assert record["folded_share"] == 0
    assert record["jacobian_min"] > 0
    assert set(record["inverse_residual_mm"]) >= {"mean", "p999", "max"}
    assert record["similarity_after"]["ncc"] > record["similarity_before"]["ncc"]


def test_a_second_run_leaves_no_file_that_describes_the_first_map(scans):
    folder = scans / "again"
    common = [scans / "source.nii.gz", scans / "target.mha", "-o", folder, "--quiet", "--operator", "identity"]
    call(*common, "--fields", "--itk")
    call(*common)
    assert {path.name for path in folder.iterdir()} == FILES


def test_json_is_printed_for_machines(scans, capsys):
    call(
        scans / "source.nii.gz", scans / "target.mha", "-o", scans / "json", "--json", "--quiet", "--no-affine",
        "--metrics", "ncc,mi=0.5", "--spacing", 4, "--alpha", 0.2,
    )  # fmt: skip
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["metrics"] == {"ncc": 1.0, "mi": 0.5}
    assert record["settings"]["affine"] is False
    assert min(record["spacing_mm"]) == pytest.approx(4, rel=0.05)


def test_a_stored_map_is_applied_as_it_was(scans, result):
    folder = scans / "applied"
    call(
        scans / "source.nii.gz", scans / "target.mha", "-o", folder, "--quiet",
        "--source-labels", scans / "labels.nii.gz", "--transform", result / "transform.safetensors",
    )  # fmt: skip
    for name in ("warped.nii.gz", "warped_labels.nii.gz"):
        ours, first = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / name))) for f in (folder, result))
        np.testing.assert_array_equal(ours, first)
    record, first = (json.loads((f / "record.json").read_text()) for f in (folder, result))
    assert record["jacobian_min"] == first["jacobian_min"]
    assert record["similarity_after"] == first["similarity_after"]
    map_file = (result / "transform.safetensors").read_bytes()
    assert record["provenance"]["input_sha256"]["transform"] == hashlib.sha256(map_file).hexdigest()
    assert str(scans) not in (folder / "record.json").read_text()  # nor what a patient's files are called
    assert "source.nii.gz" not in (folder / "record.json").read_text()


def test_maps_of_other_software_are_applied_and_started_from(scans, result, capsys):
    words = [scans / "source.nii.gz", scans / "target.mha", "-o", scans / "given", "--json"]
    source, target = (sitk.ReadImage(str(scans / name)) for name in ("source.nii.gz", "target.mha"))
    affine = sitk.AffineTransform(3)
    affine.SetTranslation((1.0, -2.0, 3.0))
    sitk.WriteTransform(affine, str(scans / "0GenericAffine.mat"))
    for path, transform in (
        (scans / "0GenericAffine.mat", affine),
        (result / "displacement.nii.gz", itk_transform(result / "displacement.nii.gz")),
    ):
        call(*words, "--transform", path)
        theirs = sitk.GetArrayFromImage(sitk.Resample(sitk.Cast(source, sitk.sitkFloat32), target, transform))
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(scans / "given/warped.nii.gz")))
        np.testing.assert_allclose(ours, theirs, atol=2.0)
        record = json.loads(capsys.readouterr().out)
        assert record["provenance"]["input_sha256"]["transform"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["given_field"]["voxels_repaired"] == 0
    call(*words, "--initial", scans / "0GenericAffine.mat", "--spacing", 4)
    assert json.loads(capsys.readouterr().out)["similarity_after"]["ncc"] > 0.5


@pytest.mark.parametrize("option", ["--initial", "--transform"])
def test_a_map_that_leaves_the_images_apart_is_refused_by_name_before_any_work(scans, option):
    far = sitk.TranslationTransform(3, (5000.0, 0.0, 0.0))
    sitk.WriteTransform(far, str(scans / "far.tfm"))
    with pytest.raises(TransformError, match=r"far\.tfm: this map takes nothing of the target into the source"):
        call(scans / "source.nii.gz", scans / "target.mha", "-o", scans / "never", option, scans / "far.tfm")
    assert not (scans / "never").exists()


def test_headers_that_lie_apart_are_refused_where_nothing_aligns_the_images(scans):
    image = sitk.ReadImage(str(scans / "source.nii.gz"))
    image.SetOrigin((9000.0, 0.0, 0.0))
    sitk.WriteImage(image, str(scans / "away.nii.gz"))
    words = [scans / "away.nii.gz", scans / "target.mha", "-o", scans / "never", "--quiet"]
    with pytest.raises(TransformError, match=r"away\.nii\.gz: by their headers the images do not meet"):
        call(*words, "--no-affine")
    assert not (scans / "never").exists()
    assert call(*words[:2], "-o", scans / "near", "--quiet", "--operator", "affine") == 0


def test_a_registration_that_fails_leaves_no_folder(scans):
    constant = sitk.ReadImage(str(scans / "source.nii.gz")) * 0 + 7
    sitk.WriteImage(constant, str(scans / "constant.nii.gz"))
    with pytest.raises(AtlasNetError):
        call(scans / "constant.nii.gz", scans / "target.mha", "-o", scans / "never", "--quiet")
    assert not (scans / "never").exists()


def test_a_second_registration_into_one_folder_is_turned_away_and_changes_nothing(scans, result):
    before = {path.name: path.read_bytes() for path in result.iterdir()}
    words = [scans / "target.mha", scans / "source.nii.gz", "-o", result, "--preview", "--quiet"]
    with hold_folder(result), pytest.raises(InputError, match="another process works in this folder"):
        call(*words)
    assert {path.name: path.read_bytes() for path in result.iterdir()} == before


def test_what_a_killed_registration_had_begun_to_write_goes_with_the_next_one(scans):
    begun, other = scans / "anew" / ".warped.nii.gz.a1b2c3d4", scans / "anew" / ".warped.nii.gz.original"
    for folder, name in ((begun, "warped.nii.gz"), (other, "mine.nii.gz")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"half")
    words = (scans / "source.nii.gz", scans / "target.mha", "--operator", "identity", "--quiet")
    assert call(*words, "-o", scans / "anew") == 0
    assert {path.name for path in (scans / "anew").iterdir()} == FILES | {other.name}


def test_a_range_of_intensities_that_no_voxel_meets_is_refused_by_name(scans):
    words = [scans / "source.nii.gz", scans / "target.mha", "-o", scans / "never"]
    with pytest.raises(InputError, match=r"source\.nii\.gz: all voxels are alike within --mi-range"):
        call(*words, "--mi-range", 9000, 9500)
    assert not (scans / "never").exists()


def test_the_record_says_how_far_landmarks_are_missed_by_the_fit_and_after_it(scans, capsys):
    rng = np.random.default_rng(3)
    target = read_volume(scans / "target.mha").grid
    here = target.to_world(rng.uniform(6, 20, (6, 3)))
    there = np.add(here, (1.0, 2.0, 3.0))
    there[4] += (9.0, 0.0, 0.0)
    rows = [",".join(map(str, [*a, *b])) for a, b in zip(here, there, strict=True)]
    (scans / "points.csv").write_text("\n".join(rows))
    words = [scans / "source.nii.gz", scans / "target.mha", "-o", scans / "points", "--fields", "--spacing", 4]
    assert call(*words, "--landmarks", scans / "points.csv") == 0
    assert "landmarks missed by" in capsys.readouterr().out
    landmarks = json.loads((scans / "points/record.json").read_text())["landmarks"]
    # The rigid fit by another implementation: VTK's and ITK's closed form.
    fit = sitk.LandmarkBasedTransformInitializer(
        sitk.VersorRigid3DTransform(), here.ravel().tolist(), there.ravel().tolist()
    )
    field = itk_transform(scans / "points/displacement.nii.gz")
    for name, transform in (("fit_mm", fit), ("after_mm", field)):
        missed = [
            np.linalg.norm(np.subtract(transform.TransformPoint(a.tolist()), b))
            for a, b in zip(here, there, strict=True)
        ]
        assert landmarks[name]["each"] == pytest.approx(missed, abs=0.05)
        assert landmarks[name]["mean"] == pytest.approx(np.mean(missed), abs=0.05)
        assert landmarks[name]["max"] == pytest.approx(max(missed), abs=0.05)
    assert landmarks["fit_mm"]["worst"] == 5


@pytest.fixture(scope="module")
def channels(scans):
    """The scans and a second channel of each, as files of their own and as one file."""
    for name in ("source.nii.gz", "target.mha"):
        first = read_volume(scans / name)
        second = (500 - 0.3 * first.array).astype(np.float32)
        write_volume(scans / f"second_{name}", first.replace(second))
        both = np.concatenate([first.array.astype(np.float32), second])
        write_volume(scans / f"both_{name}", Volume(both, first.grid))
    return scans


def test_several_channels_are_registered_and_warped_together(channels, capsys):
    names = ("source.nii.gz", "target.mha")
    firsts, seconds, both = ([channels / f"{kind}{name}" for name in names] for kind in ("", "second_", "both_"))
    options = ["--spacing", 4, "--json", "--fields"]
    files = ["--source-channel", seconds[0], "--target-channel", seconds[1]]
    call(*firsts, "-o", channels / "files", *options, *files)
    hashes = json.loads(capsys.readouterr().out)["provenance"]["input_sha256"]
    assert hashes["source_channel_1"] == hashlib.sha256(seconds[0].read_bytes()).hexdigest()
    call(*both, "-o", channels / "one", *options, "--channels")
    warped = sitk.GetArrayFromImage(sitk.ReadImage(str(channels / "files/warped.nii.gz")))
    np.testing.assert_array_equal(warped, sitk.GetArrayFromImage(sitk.ReadImage(str(channels / "one/warped.nii.gz"))))
    target, field = sitk.ReadImage(str(firsts[1])), itk_transform(channels / "files/displacement.nii.gz")
    for path, ours in zip((firsts[0], seconds[0]), warped, strict=True):
        source = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
        least = float(sitk.GetArrayViewFromImage(source).min())
        theirs = sitk.GetArrayFromImage(sitk.Resample(source, target, field, sitk.sitkLinear, least))
        differs = np.abs(ours - theirs) > 2.0
        assert differs.mean() < 1e-3  # at the border of the field of view a voxel may fall on either side


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], r"both_source\.nii\.gz: the image is 4-D.*add --channels"),
        (["--channels", "--source-channel", "X"], "either files or series of their own or in one file"),
        (["--channels", "--mi-range", 0, 1500], "once for each channel; expected 2; found 1"),
        (["--channels", "--mi-range", 0, 1500, "--mi-range", 9000, 9500], "all voxels are alike"),
    ],
)
def test_channels_that_cannot_be_told_apart_are_refused_with_the_option_that_tells(channels, options, said):
    words = [channels / "both_source.nii.gz", channels / "both_target.mha", "-o", channels / "never", "--quiet"]
    with pytest.raises(InputError, match=said):
        call(*words, *options)
    assert not (channels / "never").exists()


def test_images_of_different_channels_are_refused_by_name(channels):
    words = [channels / "source.nii.gz", channels / "target.mha", "-o", channels / "never", "--quiet"]
    with pytest.raises(VolumeError, match=r"source\.nii\.gz: .*different channels.*--target-channel"):
        call(*words, "--source-channel", channels / "second_source.nii.gz")
    first = read_volume(channels / "source.nii.gz")
    beside = first.grid.padded((30, 0, 0), (-30, 0, 0))
    write_volume(channels / "beside.nii.gz", Volume(first.array, beside))
    with pytest.raises(VolumeError, match=r"beside\.nii\.gz: it shows too little of .* of source\.nii\.gz"):
        call(*words, "--source-channel", channels / "beside.nii.gz")


def test_a_channel_on_a_grid_of_its_own_is_told_by_its_file(channels, result, capsys):
    words = [channels / "source.nii.gz", channels / "target.mha", "-o", channels / "own_grid"]
    more = ["--source-channel", channels / "second_target.mha", "--target-channel", channels / "second_target.mha"]
    call(*words, *more, "--transform", result / "transform.safetensors")
    said = "warning: channel second_target.mha has a grid of its own, and is brought onto that of source.nii.gz"
    assert capsys.readouterr().err.count(said) == 1
    assert read_volume(channels / "own_grid/warped.nii.gz", channels=True).channels == 2


def test_a_map_that_is_applied_is_not_said_to_be_registered(scans, result, capsys):
    words = [scans / "source.nii.gz", scans / "target.mha", "-o", scans / "mapped"]
    call(*words, "--transform", result / "transform.safetensors")
    printed = capsys.readouterr()
    assert "mapped in" in printed.out
    assert "registered" not in printed.out


def test_an_initial_map_takes_the_place_of_the_affine_alignment(scans, result):
    affine = scans / "affine"
    call(scans / "source.nii.gz", scans / "target.mha", "-o", affine, "--quiet", "--operator", "affine")
    folder = scans / "initial"
    call(
        scans / "source.nii.gz", scans / "target.mha", "-o", folder, "--quiet",
        "--initial", affine / "transform.safetensors",
    )  # fmt: skip
    ours, first = (Transform.load(f / "transform.safetensors") for f in (folder, result))
    grid = read_volume(scans / "target.mha").grid
    assert np.abs(ours.displacement(grid).numpy() - first.displacement(grid).numpy()).max() < 1e-3


def test_the_command_line_names_every_preset():
    assert set(REGISTRATION_PRESETS) == set(PRESETS)


@pytest.mark.parametrize("name", ["fast", "fine", "publication"])
def test_presets_register_without_folds(scans, name):
    folder = scans / name
    call(scans / "source.nii.gz", scans / "target.mha", "-o", folder, "--quiet", "--preset", name, "--preview")
    record = json.loads((folder / "record.json").read_text())
    assert record["folded_share"] == 0
    assert record["similarity_after"]["ncc"] > record["similarity_before"]["ncc"]
    assert (record["metrics"].get("dwt", 0) > 0) == (name == "publication")
    height, width = imread(folder / "preview.png").shape[:2]
    assert width > height > 300


@pytest.mark.parametrize(
    "options",
    [
        ["--metrics", "ssd"],
        ["--metrics", "mi=much"],
        ["--metrics", "mi,ncc,mi=3"],
        ["--metrics", "mi=inf"],
        ["--metrics", "mi=nan"],
        ["--metrics", "mi="],
        ["--mi-range", 0, "inf"],
        ["--operator", "identity", "--alpha", 1],
        ["--operator", "affine", "--preset", "fast"],
        ["--transform", "T", "--alpha", 1],
        ["--spacing", 0],
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(scans, options):
    with pytest.raises(InputError):
        call(scans / "source.nii.gz", scans / "target.mha", "-o", scans / "never", *options)
    assert not (scans / "never").exists()


@pytest.mark.parametrize("name", REGISTRATION_PRESETS)
def test_every_preset_searches_on_all_levels_where_the_metric_that_refinements_follow_is_left_out(scans, name):
    folder = scans / f"discrete-{name}"
    options = ["--preset", name, "--metrics", "mi=1", "--no-affine", "--quiet", "--spacing", 4]
    call(scans / "source.nii.gz", scans / "target.mha", "-o", folder, *options)
    levels = json.loads((folder / "record.json").read_text())["levels"]
    assert [level["labels"] > 0 for level in levels] == [True] * len(levels)


def test_spaces_in_a_list_of_metrics_do_not_matter_and_an_empty_entry_is_quoted():
    assert metric_settings(" mi = 1, ncc=0.5 ") == {"metrics": {"mi": 1.0, "ncc": 0.5}}
    with pytest.raises(InputError, match=r"an entry of the list is empty.*found 'mi=1,,ncc=1'"):
        metric_settings("mi=1,,ncc=1")


def test_spaces_in_the_lists_of_learn_metrics_do_not_matter():
    words = [
        "learn-metrics",
        "data",
        "-o",
        "w.json",
        "--metrics",
        "mi, ncc",
        "--class",
        "lungs = 1, 2",
        "--class",
        "a=3",
    ]
    settings = learn_metrics._settings(parser().parse_args(words))
    assert settings.metrics == ("mi", "ncc")
    assert settings.groups == {"lungs": (1, 2), "a": (3,)}


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_mask_that_cannot_be_used_is_named(scans, tmp_path, which):
    volume = read_volume(scans / {"source": "source.nii.gz", "target": "target.mha"}[which])
    write_volume(tmp_path / "empty.nii.gz", Volume(np.zeros(volume.grid.shape, np.uint8), volume.grid))
    options = [f"--{which}-mask", tmp_path / "empty.nii.gz"]
    with pytest.raises(VolumeError, match=r"empty\.nii\.gz: the mask cannot be used"):
        call(scans / "source.nii.gz", scans / "target.mha", "-o", tmp_path / "o", *options)
    assert not (tmp_path / "o").exists()


def test_a_result_never_takes_the_place_of_what_is_read(scans, tmp_path):
    (tmp_path / "warped_labels.nii.gz").write_bytes((scans / "labels.nii.gz").read_bytes())
    words = (scans / "source.nii.gz", scans / "target.mha", "--operator", "identity", "--quiet")
    with pytest.raises(InputError, match="take the place of what was read"):
        call(*words, "-o", tmp_path, "--source-labels", tmp_path / "warped_labels.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["warped_labels.nii.gz"]
    (tmp_path / "report.html").write_text("somebody's own")
    assert call(*words, "-o", tmp_path) == 0
    assert (tmp_path / "report.html").read_text() == "somebody's own"


def test_the_record_says_how_well_each_label_fits(scans, result, capsys):
    target_labels = scans / "target_labels.nii.gz"
    carried = sitk.ReadImage(str(result / "warped_labels.nii.gz"))
    array = sitk.GetArrayFromImage(carried)
    array[: array.shape[0] // 2][array[: array.shape[0] // 2] == 3] = 7
    shifted = sitk.GetImageFromArray(array)
    shifted.CopyInformation(carried)
    sitk.WriteImage(shifted, str(target_labels))
    words = (scans / "source.nii.gz", scans / "target.mha", "-o", scans / "regions", "--target-labels", target_labels)
    transform = ("--transform", result / "transform.safetensors")
    assert call(*words, *transform, "--source-labels", scans / "labels.nii.gz") == 0
    regions = json.loads((scans / "regions" / "record.json").read_text())["regions"]
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(sitk.ReadImage(str(target_labels)), carried)
    assert set(regions) == {"3", "7"}
    for label, found in regions.items():
        assert found["dice"] == pytest.approx(measures.GetDiceCoefficient(int(label)), abs=1e-6)
        assert found["ncc"] > 0.3
    assert "label 7: mi" in capsys.readouterr().out
    with pytest.raises(VolumeError, match="not drawn on the voxels of the image"):
        call(*words[:3], scans / "o", "--target-labels", scans / "labels.nii.gz")


def test_labels_on_another_grid_are_refused_by_name(scans):
    write(scans / "other.nii.gz", np.zeros((4, 4, 4), np.int16), (1, 1, 1), (0, 0, 0))
    with pytest.raises(VolumeError, match=r"other\.nii\.gz"):
        call(
            scans / "source.nii.gz", scans / "target.mha", "-o", scans / "never",
            "--source-labels", scans / "other.nii.gz",
        )  # fmt: skip
    assert not (scans / "never").exists()


def test_labels_of_a_part_of_the_image_are_put_in_their_place(scans, result, tmp_path):
    """As 3D Slicer saves a segmentation: cropped to what is drawn."""
    labels = read_volume(scans / "labels.nii.gz")
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(labels.array[0]))
    write_volume(tmp_path / "part.nrrd", Volume(labels.array[0][box], labels.grid.cropped(box)))
    call(
        scans / "source.nii.gz", scans / "target.mha", "-o", tmp_path / "o", "--quiet",
        "--source-labels", tmp_path / "part.nrrd", "--transform", result / "transform.safetensors",
    )  # fmt: skip
    whole, part = (read_volume(folder / "warped_labels.nii.gz").array for folder in (result, tmp_path / "o"))
    assert part.any()
    np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("name", ["map.h5", "map.tfm", "field.nii.gz", "transform.safetensors"])
def test_the_name_of_a_file_is_none_of_a_folder(scans, tmp_path, name):
    with pytest.raises(InputError, match=r"name a folder; it gets transform\.safetensors, and with --fields"):
        call(scans / "source.nii.gz", scans / "target.mha", "-o", tmp_path / name)
    assert not [*tmp_path.iterdir()]


def test_a_file_in_place_of_the_folder_is_refused(scans):
    with pytest.raises(InputError, match="folder"):
        call(scans / "source.nii.gz", scans / "target.mha", "-o", scans / "source.nii.gz")
