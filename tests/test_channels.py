"""Channels of one image on grids of their own, against SimpleITK, and how each verb tells of them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from atlasnet.cli.main import main
from atlasnet.cohort import Cohort, Subject, check_cohort
from atlasnet.errors import VolumeError
from atlasnet.execution import Execution
from atlasnet.training.fit import fit
from atlasnet.training.options import FitOptions
from atlasnet.training.recipe import Recipe
from atlasnet.volume import Grid, Volume, read_labels, read_volume, write_volume
from synthetic import subject

CENTRE = np.array([12.0, -30.0, 500.0])
FIRST = (14, 22, 18)
OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()
SAID = "channel T2 has a grid of its own, and is brought onto that of T1 by the headers"


def centred(shape: tuple[int, ...], spacing: tuple[float, ...], direction: np.ndarray | None = None) -> Grid:
    """A grid whose middle is `CENTRE`."""
    direction = np.eye(3) if direction is None else direction
    middle = direction @ ((np.array(shape[::-1]) - 1) / 2 * spacing)
    return Grid.from_parts(shape, spacing, CENTRE - middle, direction)


def read(folder: Path, first: Volume, second: Volume) -> Volume:
    """Both as the channels of one image."""
    write_volume(folder / "a_0000.nii", first)
    write_volume(folder / "a_0001.nii", second)
    return Subject("a", (folder / "a_0000.nii", folder / "a_0001.nii"), channels=2).read_image()


@pytest.mark.parametrize("turned", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_a_channel_lies_where_simpleitk_puts_it_in_all_48_orientations(tmp_path: Path, turned: np.ndarray) -> None:
    random = np.random.default_rng(0)
    first = Volume(random.integers(-900, 900, FIRST).astype(np.int16), centred(FIRST, (1.2, 1.0, 1.5)))
    for axes, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        own = centred((7, 9, 8), (3.0, 2.6, 3.4), turned @ np.eye(3)[:, axes] * np.array(signs))
        second = Volume(random.normal(size=own.shape).astype(np.float32), own)
        found = read(tmp_path, first, second)
        assert found.grid.matches(first.grid, 1e-4)
        np.testing.assert_array_equal(found.array[0], first.array[0])
        moving, fixed = (sitk.ReadImage(str(tmp_path / f"a_000{n}.nii")) for n in (1, 0))
        extrapolate = True  # beyond its field of view the edge continues
        theirs = sitk.Resample(moving, fixed, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, extrapolate)
        seen = sitk.Resample(sitk.Cast(moving * 0 + 1, sitk.sitkFloat32), fixed, sitk.Transform(), sitk.sitkLinear)
        within = sitk.GetArrayFromImage(seen) > 0.99
        assert within.mean() > 0.6
        np.testing.assert_allclose(found.array[1][within], sitk.GetArrayFromImage(theirs)[within], atol=2e-3)


def test_a_finer_channel_is_smoothed_before_it_is_thinned_out(tmp_path: Path) -> None:
    own = centred((60, 80, 80), (0.5, 0.5, 0.5))
    first = Volume(np.zeros((12, 16, 16), np.int16), centred((12, 16, 16), (2.0, 2.0, 2.0)))
    z, y, x = np.meshgrid(*[np.arange(n) for n in own.shape], indexing="ij")
    ramp = own.to_world(np.stack([x, y, z], -1).reshape(-1, 3)) @ [1.0, -2.0, 0.5]
    stripes = np.where(x % 2, 50.0, -50.0)  # finer than the first channel can show
    found = read(tmp_path, first, Volume((ramp.reshape(own.shape) + stripes).astype(np.float32), own)).array[1]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in (16, 16, 12)], indexing="ij"), -1).reshape(-1, 3)
    expected = (first.grid.to_world(index) @ [1.0, -2.0, 0.5]).reshape(16, 16, 12).transpose(2, 1, 0)
    np.testing.assert_allclose(found[3:-3, 3:-3, 3:-3], expected[3:-3, 3:-3, 3:-3], atol=0.5)


def test_channels_of_one_grid_stay_as_they_are_stored(tmp_path: Path) -> None:
    grid = centred(FIRST, (1.0, 1.0, 2.0))
    shifted = Grid.from_parts(grid.shape, grid.spacing, grid.origin + 0.03)  # headers are rounded
    values = np.random.default_rng(1).integers(-900, 900, FIRST).astype(np.int16)
    found = read(tmp_path, Volume(values, grid), Volume(values[::-1].copy(), shifted))
    assert found.array.dtype == np.int16
    np.testing.assert_array_equal(found.array[1], values[::-1])


def test_a_channel_of_another_place_is_refused(tmp_path: Path) -> None:
    first = Volume(np.zeros(FIRST, np.int16), centred(FIRST, (1.0, 1.0, 1.0)))
    below = Grid.from_parts(FIRST, (1.0, 1.0, 1.0), first.grid.origin - [0, 0, 9])
    remedy = "let the channel that shows least be the first"
    with pytest.raises(
        VolumeError, match=rf"a_0001.*of a_0000.*expected 50% or more; found 3\d%; to mend it: {remedy}"
    ):
        read(tmp_path, first, Volume(np.zeros(FIRST, np.int16), below))


def test_labels_that_lie_on_the_grid_of_a_further_channel_say_which_is_to_be_the_first(tmp_path: Path) -> None:
    cohort = Cohort.read(write_two_channels(tmp_path, range(2)))
    thick = read_volume(cohort["s0"].images[1]).grid
    write_volume(cohort["s0"].labels, Volume(np.ones(thick.shape, np.uint8), thick))
    remedy = r"to mend it: it lies on the grid of s0_0001\.nii\.gz: let that channel be the first"
    with pytest.raises(VolumeError, match=remedy):
        cohort["s0"].read_labels()
    assert [problem.subject for problem in check_cohort(cohort.root).errors if "s0_0001" in problem.text] == ["s0"]


@pytest.mark.parametrize("unplaced", [0, 1])
def test_a_channel_is_not_moved_by_a_header_that_says_nothing(tmp_path: Path, unplaced: int) -> None:
    first = Volume(np.zeros(FIRST, np.int16), centred(FIRST, (1.0, 1.0, 1.0)))
    second = Volume(np.zeros((7, 11, 9), np.int16), centred((7, 11, 9), (2.0, 2.0, 2.0)))
    read(tmp_path, first, second)
    path = tmp_path / f"a_000{unplaced}.nii"
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    files = tmp_path / "a_0000.nii", tmp_path / "a_0001.nii"
    with pytest.raises(VolumeError, match=rf"another grid than a_0000.*found none in {path.name}"):
        Subject("a", files, channels=2).read_image()


def write_two_channels(folder: Path, seeds: range, *, own: bool = True) -> Path:
    """Subjects with a second channel of thick slices and a smaller view, or with the same on the grid of the first."""
    for seed in seeds:
        first, labels = subject(seed)
        z, y, x = first.grid.shape
        thick = Grid.from_parts(
            (z // 2, y - 2, x - 2), first.grid.spacing * [1, 1, 2], first.grid.to_world((1.0, 1.0, 0.5))
        )
        second = Volume((200 - first.array[0, :, 1:-1, 1:-1]).reshape(z // 2, 2, y - 2, x - 2).mean(1), thick)
        files = [folder / "imagesTr" / f"s{seed}_000{number}.nii.gz" for number in (0, 1)]
        for file, volume in zip(files, (first, second), strict=True):
            write_volume(file, volume)
        if not own:
            second = Subject("", tuple(files), channels=2).read_image()
            write_volume(files[1], Volume(second.array[1], first.grid))
        write_volume(folder / "labelsTr" / f"s{seed}.nii.gz", labels)
    declared = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "core": 4, "shell": 2}}
    (folder / "dataset.json").write_text(json.dumps(declared))
    return folder


def test_a_model_is_that_of_channels_resampled_before_and_what_is_done_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, before = (write_two_channels(tmp_path / name, range(2), own=name == "own") for name in ("own", "before"))
    report = check_cohort(data)
    assert report.ok
    said = [problem.text for problem in report.warnings if SAID in problem.text]
    assert len(said) == 2
    assert all(text.endswith("; it shows 87% of what T1 shows") for text in said)
    assert not any(SAID in problem.text for problem in check_cohort(before).warnings)

    recipe = replace(Recipe.preset("default"), epochs=1, iterations=2, passes=0.0, batch_slices=4)
    options = FitOptions(atlases=("s0",), width=0.25, operator="affine", preset=recipe)
    models = [fit(Cohort.read(d), d / "model", options, execution=Execution(threads=1)) for d in (data, before)]
    weights = [next((model.folder / "networks").iterdir()).read_bytes() for model in models]
    assert weights[0] == weights[1]

    main(
        ["predict", str(data / "imagesTr"), "-m", str(models[0].folder), "-o", str(tmp_path / "out"), "--threads", "1"]
    )
    assert capsys.readouterr().err.count(SAID) == 2
    record = json.loads((tmp_path / "out/s1.json").read_text())
    assert any(SAID in text for text in record["warnings"])
    assert read_labels(tmp_path / "out/s1.nii.gz").grid.matches(read_volume(data / "imagesTr/s1_0000.nii.gz").grid)
