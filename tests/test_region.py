"""The region in which networks work: where training subjects have structures, cut out in training and in prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlasnet.cohort import Cohort
from atlasnet.cohort.plan import MARGIN
from atlasnet.errors import InputError, ModelError
from atlasnet.execution import Execution, SilentReporter, write_json
from atlasnet.prediction import Predictor
from atlasnet.training.fit import fit
from atlasnet.training.mapping import working_grid
from atlasnet.training.model import Model
from atlasnet.training.options import FitOptions
from atlasnet.training.overview import STRUCTURE, Overview
from atlasnet.training.recipe import Recipe
from atlasnet.training.region import Region
from atlasnet.training.store import IGNORED
from atlasnet.volume import Grid, write_volume
from synthetic import LABELS, dice, subject, write_cohort

RECIPE = replace(Recipe.preset("default"), epochs=4, iterations=20, passes=0.0, batch_slices=8, learning_rate=6e-3)
WIDE = (14, 56, 60)  # in slices of 112 x 120 mm the shapes are about 40 mm wide


def seen_in(maps: list[NDArray[np.uint8]], margin: int, *, partly: bool = False) -> Region:
    """The region of a grid that is as coarse as its overview."""
    overview = Overview(Grid.from_parts(maps[0].shape, (1.0, 1.0, 1.0)), (1, 1, 1))
    return overview.region(maps, "z", (margin,) * 3, partly=partly)


@pytest.mark.parametrize("seed", range(20))
def test_the_box_holds_every_structure_and_its_margin(seed: int) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(3, 12, 3))
    maps = [np.where(random.random(shape) < 0.01, STRUCTURE, 0).astype(np.uint8) for _ in range(3)]
    maps[0].flat[random.integers(maps[0].size)] = STRUCTURE
    margin = int(random.integers(0, 4))
    region = seen_in(maps, margin)
    places = np.concatenate([np.argwhere(array) for array in maps])
    assert region.start == tuple(np.maximum(0, places.min(0) - margin))
    assert region.stop == tuple(np.minimum(shape, places.max(0) + 1 + margin))


def test_what_nobody_annotated_is_no_structure() -> None:
    labels = np.full((4, 5, 6), IGNORED, np.uint8)
    labels[2:] = 0
    assert seen_in([labels], 1) == Region((0, 0, 0), (4, 5, 6))
    labels[2, 3, 4] = STRUCTURE
    assert seen_in([labels], 1) == Region((1, 2, 3), (4, 5, 6))


def test_what_nobody_annotated_in_any_subject_may_be_a_structure() -> None:
    one, other = np.full((2, 12, 5, 6), IGNORED, np.uint8)
    one[:8:3], other[1:8:3] = 0, 0  # of the lower slices every third one, and the one above it
    one[3, 2, 2] = 1
    seen = Region((2, 1, 1), (5, 4, 4))
    assert seen_in([one, other], 1) == seen
    # A gap of one slice hides nothing that its neighbours do not show; the upper slices may.
    assert seen_in([one, other], 1, partly=True) == Region((2, 0, 0), (12, 5, 6))
    assert seen_in([one[:9], other[:9]], 1, partly=True) == seen
    assert seen_in([one, other, np.zeros_like(one)], 1, partly=True) == seen


def test_outside_the_box_all_is_background() -> None:
    region, shape = Region((1, 0, 2), (3, 4, 5)), (4, 4, 6)
    said = np.random.default_rng(0).random((2, 4, 4, 6)).astype(np.float16)
    whole = region.paste(region.crop(said), shape)
    inside = np.zeros(shape, bool)
    inside[1:3, 0:4, 2:5] = True
    np.testing.assert_array_equal(whole[:, inside], said[:, inside])
    assert (whole[0, ~inside] == 1).all()
    assert (whole[1:, ~inside] == 0).all()


def test_it_is_read_back_from_json() -> None:
    region = Region((0, 1, 2), (3, 4, 5))
    assert Region.from_json(json.loads(json.dumps(region.to_json()))) == region


@pytest.mark.parametrize(
    "value", [None, 3, [[0, 1]], [[0, 1], [0, 1], [0]], [[0, 1], [0, 1], [2, 2]], [[-1, 2]] * 3, "abc"]
)
def test_what_is_no_box_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="no box"):
        Region.from_json(value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("region")
    for seed in range(3):
        image, labels = subject(seed, shape=WIDE)
        write_volume(folder / "data" / "imagesTr" / f"s{seed}_0000.nii.gz", image)
        write_volume(folder / "data" / "labelsTr" / f"s{seed}.nii.gz", labels)
    names = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(folder / "data" / "dataset.json", names)
    options = FitOptions(atlases=("s0",), width=0.25, preset=RECIPE)
    return fit(Cohort.read(folder / "data"), folder / "model", options)


def test_networks_work_where_the_structures_are(model: Model) -> None:
    (atlas,) = model.atlases
    assert atlas.region is not None
    labels = subject(0, shape=WIDE)[1]  # the atlas is its own best-mapped subject
    grid = working_grid(labels.grid, model.plan)
    places = grid.to_index(labels.grid.to_world(np.argwhere(labels.array[0])[:, ::-1]))[:, ::-1]
    assert (atlas.region.start <= np.maximum(0, places.min(0) - MARGIN)).all()
    assert (atlas.region.stop >= np.minimum(grid.shape, places.max(0) + 1 + MARGIN)).all()
    assert atlas.region != Region.whole(grid.shape)
    size = np.subtract(atlas.region.stop, atlas.region.start)
    assert model.seen_mm(atlas) == pytest.approx(size[::-1] * model.plan.spacing, abs=0.06)
    cases = list((model.folder / "work" / "mapped").rglob("*.labels.npy"))
    assert len(cases) == 3
    assert {np.load(case).shape for case in cases} == {tuple(size)}  # no more is mapped
    image, reference = subject(101, shape=WIDE)
    prediction = Predictor(model).predict(image)
    assert dice(prediction.labels.array > 0, reference.array > 0) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_the_box_around_two_holds_both_and_is_the_smallest(seed: int) -> None:
    random = np.random.default_rng(seed)
    low = random.integers(0, 9, (2, 3))
    high = low + random.integers(1, 9, (2, 3))
    one, other = (Region(tuple(a), tuple(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    assert one.united(other) == other.united(one) == Region(tuple(low.min(0)), tuple(high.max(0)))


def updated(model: Model, folder: Path, region: Region | None, **options: Any) -> Region | None:
    """The region of the model's atlas after an update with one new case alone, where it was ``region`` before."""
    image, labels = subject(7, shape=WIDE)
    write_volume(folder / "data" / "imagesTr" / "new_0000.nii.gz", image)
    write_volume(folder / "data" / "labelsTr" / "new.nii.gz", labels)
    names = {"channel_names": {"0": "MR"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii.gz"}
    write_json(folder / "data" / "dataset.json", names)
    before = replace(model, atlases=(replace(model.atlases[0], region=region),))
    quick = FitOptions(preset=replace(RECIPE, epochs=1, iterations=1), **options)
    found = fit(Cohort.read(folder / "data"), folder / "model", quick, update=before, work=model.folder / "work")
    return found.atlases[0].region


def test_a_network_that_goes_on_works_where_it_has_learnt_and_where_new_cases_have_structures(
    model: Model, tmp_path: Path
) -> None:
    corner = Region((0, 0, 0), (3, 4, 5))
    new = updated(model, tmp_path / "anew", corner, sharing="independent")  # knows nothing of the corner
    assert new is not None
    assert new.start > (0, 0, 0)
    assert updated(model, tmp_path / "on", corner) == new.united(corner)
    assert updated(model, tmp_path / "everywhere", None) is None


def test_a_region_beyond_the_atlas_is_refused_before_an_update(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not lie in its image"):
        updated(model, tmp_path, Region((0, 0, 0), (15, 56, 60)))
    assert not (tmp_path / "model" / "networks").exists()


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_region_lies_along_the_slice_axis(model: Model, axis: str) -> None:
    turned = replace(model, plan=replace(model.plan, slice_axis=axis))
    region = Region((2, 5, 7), (12, 13, 14))
    turned = replace(turned, atlases=(replace(model.atlases[0], region=region),))
    ((answer, _),) = Predictor(turned).ask(subject(101, shape=WIDE)[0]).atlases
    assert answer is not None
    asked = np.argwhere(answer.probabilities.numpy()[0] < 1) + answer.start
    box = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (1, 2, 0)}[axis]  # which side of the box is along z, y and x
    assert (asked.min(0) >= [region.start[side] for side in box]).all()
    assert (asked.max(0) < [region.stop[side] for side in box]).all()
    assert len(asked) > 0.5 * np.prod(np.subtract(region.stop, region.start))


def test_a_region_beyond_the_atlas_is_refused(model: Model) -> None:
    large = replace(model, atlases=(replace(model.atlases[0], region=Region((0, 0, 0), (15, 56, 60))),))
    with pytest.raises(ModelError, match="does not lie in its image"):
        Predictor(large)


def test_a_model_without_regions_is_asked_everywhere(model: Model, tmp_path: Path) -> None:
    model.export(tmp_path / "m.zip")
    assert Model.load(tmp_path / "m.zip").atlases == model.atlases
    content = json.loads((model.folder / "model.json").read_text(encoding="utf-8"))
    del content["atlases"][0]["region"], content["digest"]
    old = tmp_path / "old"
    for name in model.checksums:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).symlink_to(model.folder / name)
    write_json(old / "model.json", content)
    ((answer, _),) = Predictor(Model.load(old)).ask(subject(101, shape=WIDE)[0]).atlases
    assert answer is not None
    assert (answer.probabilities[0] < 1).float().mean() > 0.9


def test_with_every_other_slice_annotated_the_region_is_that_of_all_of_them(model: Model, tmp_path: Path) -> None:
    for seed in range(3):
        image, labels = subject(seed, shape=WIDE)
        labels.array[:, seed % 2 :: 2] = 7
        write_volume(tmp_path / "data" / "imagesTr" / f"s{seed}_0000.nii.gz", image)
        write_volume(tmp_path / "data" / "labelsTr" / f"s{seed}.nii.gz", labels)
    names = {"channel_names": {"0": "MR"}, "labels": {**LABELS, "ignore": 7}, "numTraining": 3}
    write_json(tmp_path / "data" / "dataset.json", names | {"file_ending": ".nii.gz"})
    quick = FitOptions(atlases=("s0",), width=0.25, preset=replace(RECIPE, epochs=1, iterations=1))
    region, whole = (
        fit(Cohort.read(tmp_path / "data"), tmp_path / "model", quick).atlases[0].region,
        model.atlases[0].region,
    )
    assert region is not None
    assert whole is not None
    assert np.abs(np.subtract(region.to_json(), whole.to_json())).max() <= 2


def test_a_region_that_is_far_larger_than_planned_is_told_of(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = SilentReporter()
    quick = FitOptions(atlases=("s0",), width=0.25, preset=replace(RECIPE, epochs=1, iterations=1))
    data = Cohort.read(model.folder.parent / "data")
    for limit, told in ((1e9, 0), (1e4, 1)):
        monkeypatch.setattr("atlasnet.training.transformer.MANY_VOXELS", limit)
        place = tmp_path / f"{limit:g}"
        fit(data, place, quick, work=tmp_path / "work", execution=Execution(reporter=reporter))
        assert sum("million voxels of every subject" in text for text in reporter.warnings) == told


def test_without_a_registration_networks_see_everything(tmp_path: Path) -> None:
    plain = Cohort.read(write_cohort(tmp_path / "plain", range(2)))
    centred = FitOptions(atlases=("s0",), width=0.25, preset=RECIPE, operator="centre", minimum_quality=0.0)
    assert fit(plain, tmp_path / "centred", centred).atlases[0].region is None
