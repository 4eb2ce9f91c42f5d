"""The phantom cohort: properties of a chest CT that hold for every seed."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from atlasnet.cohort.phantom import (
    LABELS,
    TISSUES,
    Rendering,
    phantom_grid,
    phantom_rendering,
    phantom_subject,
    write_phantom_cohort,
)
from atlasnet.cohort.phantom.build import Build
from atlasnet.cohort.phantom.lattice import Lattice
from atlasnet.cohort.phantom.tree import draw, grow
from atlasnet.errors import InputError
from atlasnet.execution import read_json

SHAPE = (40, 112, 112)
SEEDS = (0, 1, 2)


@cache
def subject(seed: int, *, disease: bool = True) -> Rendering:
    return phantom_rendering(seed, shape=SHAPE, disease=disease)


def mean_hu(rendering: Rendering, tissue: str) -> float:
    """Mean over the voxels of a tissue that touch no other tissue, where there are such, else over all."""
    mask = rendering.tissues.array[0] == TISSUES[tissue]
    core = ndimage.binary_erosion(mask)
    return float(rendering.image.array[0][core if core.sum() >= 20 else mask].mean())


@pytest.mark.parametrize(
    ("tissue", "low", "high"),
    [
        ("air", -1010, -980),
        ("fat", -125, -70),
        ("muscle", 0, 70),
        ("heart", 20, 70),
        ("liver", 40, 75),
        ("spleen", 35, 65),
        ("airway", -1010, -850),
        ("bone", 250, 900),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_tissue_has_the_density_that_ct_gives_it(seed: int, tissue: str, low: float, high: float) -> None:
    assert low < mean_hu(subject(seed), tissue) < high


@pytest.mark.parametrize("seed", SEEDS)
def test_healthy_lung_has_the_density_of_an_inflated_one(seed: int) -> None:
    rendering = subject(seed, disease=False)
    lung = ndimage.binary_erosion(rendering.labels.array[0] == LABELS["lung"], iterations=2)
    assert -900 < np.median(rendering.image.array[0][lung]) < -740


@pytest.mark.parametrize("seed", SEEDS)
def test_dependent_lung_is_denser(seed: int) -> None:
    rendering = subject(seed, disease=False)
    lung = ndimage.binary_erosion(rendering.labels.array[0] == LABELS["lung"], iterations=2)
    rows = np.nonzero(lung)[1]
    hu = rendering.image.array[0][lung]
    front, back = np.percentile(rows, [20, 80])
    assert np.median(hu[rows >= back]) > np.median(hu[rows <= front]) + 15


@pytest.mark.parametrize("seed", SEEDS)
def test_lung_volume_is_that_of_an_adult(seed: int) -> None:
    rendering = subject(seed)
    litres = (rendering.labels.array > 0).sum() * np.prod(rendering.labels.grid.spacing) / 1e6
    assert 2.0 < litres < 8.0


@pytest.mark.parametrize("seed", SEEDS)
def test_there_are_two_lungs_of_similar_size(seed: int) -> None:
    parts, _ = ndimage.label(subject(seed).labels.array[0] > 0)
    sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
    assert sizes[:2].sum() > 0.98 * sizes.sum()
    assert sizes[1] > 0.6 * sizes[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_right_lung_is_on_the_patients_right_and_the_heart_on_the_left(seed: int) -> None:
    rendering = subject(seed)
    tissues, grid = rendering.tissues.array[0], rendering.tissues.grid

    def across(tissue: str) -> float:
        return float(grid.to_world(np.argwhere(tissues == TISSUES[tissue])[:, ::-1])[:, 0].mean())

    assert across("liver") < 0 < across("heart") < across("spleen")


@pytest.mark.parametrize("seed", SEEDS)
def test_disease_changes_its_mask_and_leaves_the_healthy_lung_as_it_was(seed: int) -> None:
    ill, well = subject(seed), subject(seed, disease=False)
    labels = ill.labels.array[0]
    changed = ill.image.array[0] != well.image.array[0]
    assert changed[labels == LABELS["disease"]].mean() > 0.95
    assert not changed[labels == LABELS["lung"]].any()
    # Voxels that an edge of the lung cuts through show the disease in part; some slivers have no voxel of their own.
    assert changed[~ndimage.binary_dilation(labels > 0)].mean() < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_disease_lies_inside_the_lung_of_the_same_subject_when_healthy(seed: int) -> None:
    ill, well = subject(seed).labels.array, subject(seed, disease=False).labels.array
    assert set(np.unique(well)) == {LABELS["background"], LABELS["lung"]}
    np.testing.assert_array_equal(ill > 0, well > 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_disease_is_denser_lower_and_nearer_to_the_surface_than_healthy_lung(seed: int) -> None:
    rendering = subject(seed)
    labels, grid = rendering.labels.array[0], rendering.labels.grid
    depth = ndimage.distance_transform_edt(labels > 0, sampling=grid.spacing[::-1])
    sick, sound = labels == LABELS["disease"], labels == LABELS["lung"]
    assert rendering.image.array[0][sick].mean() > rendering.image.array[0][sound].mean() + 100
    assert np.nonzero(sick)[0].mean() < np.nonzero(sound)[0].mean()
    assert depth[sick].mean() < depth[sound].mean()


def test_disease_is_found_in_every_subject_and_never_takes_the_whole_lung() -> None:
    for seed in range(3, 10):
        labels = phantom_subject(seed, shape=(20, 48, 48))[1].array
        share = (labels == LABELS["disease"]).sum() / (labels > 0).sum()
        assert 0.02 < share < 0.6


def test_same_seed_gives_the_same_bytes() -> None:
    first, second = (phantom_subject(5, shape=(20, 64, 64)) for _ in range(2))
    assert [v.array.tobytes() for v in first] == [v.array.tobytes() for v in second]


@pytest.mark.slow
def test_number_of_threads_does_not_change_the_bytes() -> None:
    program = (
        "import sys; from atlasnet.cohort.phantom import phantom_subject; "
        "[sys.stdout.buffer.write(v.array.tobytes()) for v in phantom_subject(5, shape=(16, 64, 64))]"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


def test_subjects_differ_in_shape() -> None:
    lungs = [subject(seed).labels.array > 0 for seed in SEEDS]
    for i, first in enumerate(lungs):
        for second in lungs[:i]:
            assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.93


def test_the_subject_is_the_same_at_every_resolution() -> None:
    coarse = phantom_subject(7, shape=(20, 48, 48), spacing=(9.0, 9.0, 16.0))[1]
    fine = phantom_subject(7, shape=(39, 95, 95), spacing=(4.5, 4.5, 8.0))[1]
    np.testing.assert_allclose(fine.grid.origin, coarse.grid.origin)
    assert (fine.array[0, ::2, ::2, ::2] != coarse.array[0]).mean() < 1e-4


def test_image_and_labels_share_a_grid_of_the_asked_shape_and_spacing() -> None:
    image, labels = phantom_subject(0, shape=(16, 40, 56), spacing=(6.0, 7.0, 20.0))
    assert image.grid.shape == labels.grid.shape == (16, 40, 56)
    np.testing.assert_allclose(image.grid.spacing, (6.0, 7.0, 20.0))
    assert image.array.dtype == np.int16
    assert labels.array.dtype == np.uint8


def test_arms_down_show_beside_the_body() -> None:
    bodies = {}
    for arms_down in (False, True):
        rendering = phantom_rendering(3, shape=(24, 64, 64), spacing=(8.0, 8.0, 14.0), arms_down=arms_down)
        bodies[arms_down] = (rendering.tissues.array[0][4] > 0).any(0).sum()
    assert bodies[True] > bodies[False] + 4


def test_every_point_comes_back_from_the_anatomy_to_the_world() -> None:
    build = Build.draw(11)
    axes = [np.linspace(-150, 120, 5), np.linspace(-90, 90, 4), np.linspace(-180, 180, 6)]
    anatomy = np.stack([a.ravel() for a in build.to_anatomy(*axes)], -1)
    z, y, x = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    np.testing.assert_allclose(build.to_world(anatomy), np.stack([x, y, z], -1), atol=0.05)


def test_deformation_never_folds() -> None:
    axes = [np.linspace(-190, 150, 60), np.linspace(-130, 130, 50), np.linspace(-215, 215, 70)]
    for seed in range(20):
        x, y, z = Build.draw(seed).to_anatomy(*axes)
        gradients = [np.gradient(c, *axes)[::-1] for c in (x, y, z)]
        assert np.linalg.det(np.moveaxis(np.array(gradients), (0, 1), (-2, -1))).min() > 0.2


def test_lattice_agrees_with_itself_on_axes_and_at_points_and_with_scipy() -> None:
    lattice = Lattice.random(np.random.default_rng(0), 20.0, 60.0, fields=2)
    axes = [np.linspace(-50, 40, 4), np.linspace(-30, 55, 5), np.linspace(-60, 60, 6)]
    z, y, x = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))
    nodes = np.stack([z, y, x]) / 20 + (lattice.coefficients.shape[1] - 1) / 2
    for field, values, points in zip(
        lattice.coefficients, lattice.on_axes(*axes), lattice.at(np.stack([x, y, z], -1)).T, strict=True
    ):
        expected = ndimage.map_coordinates(field.astype(float), nodes, order=3, prefilter=False)
        np.testing.assert_allclose(values.ravel(), expected, atol=1e-5)
        np.testing.assert_allclose(points, expected, atol=1e-9)


def test_tree_reaches_every_target_and_obeys_murrays_law() -> None:
    rng = np.random.default_rng(1)
    targets = rng.uniform(-50, 50, (200, 3))
    tree = grow((0.0, 0.0, 60.0), targets, rng)
    tips = tree.position[tree.tips == 1]
    assert len(tips) == 200
    np.testing.assert_allclose(tips[np.lexsort(tips.T)], targets[np.lexsort(targets.T)])
    cubes = np.zeros(len(tree.parent))
    np.add.at(cubes, tree.parent[1:], tree.radius[1:] ** 3)
    inner = tree.tips > 1
    np.testing.assert_allclose(cubes[inner], tree.radius[inner] ** 3)


@pytest.mark.parametrize("radius", [0.4, 1.0, 4.0])
def test_drawn_tube_has_the_volume_of_its_cylinder(radius: float) -> None:
    segment = np.array([[-15.0, -2.0, 3.0, radius, 15.0, 4.0, -5.0, radius]], np.float32)
    axis = np.arange(-30, 30.5, 1.0, dtype=np.float32)
    share = draw(segment, (axis, axis, axis), 1.0) / 255
    length = float(np.linalg.norm(segment[0, 4:7] - segment[0, :3]))
    expected = np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3
    assert share.sum() == pytest.approx(expected, rel=0.2)


def test_written_cohort_has_nnunets_layout_and_can_be_read(tmp_path: Path) -> None:
    write_phantom_cohort(tmp_path, 2, shape=(12, 32, 32), test_subjects=1, seed=3)
    description = read_json(tmp_path / "dataset.json")
    assert description["labels"] == {"background": 0, "lung": 1, "disease": 2}
    assert description["channel_names"] == {"0": "CT"}
    images = sorted(p.name for p in (tmp_path / "imagesTr").iterdir())
    assert images == ["phantom_000_0000.nii.gz", "phantom_001_0000.nii.gz"]
    assert [p.name for p in (tmp_path / "labelsTs").iterdir()] == ["phantom_002.nii.gz"]
    image = sitk.ReadImage(tmp_path / "imagesTr" / images[0])
    labels = sitk.ReadImage(tmp_path / "labelsTr" / "phantom_000.nii.gz")
    assert image.GetSize() == labels.GetSize() == (32, 32, 12)
    assert image.GetPixelID() == sitk.sitkInt16
    np.testing.assert_allclose(image.GetOrigin(), labels.GetOrigin())
    assert (image.GetMetaData("intent_code"), labels.GetMetaData("intent_code")) == ("0", "1002")


def test_writing_a_cohort_again_keeps_the_cases_that_exist(tmp_path: Path) -> None:
    write_phantom_cohort(tmp_path, 2, shape=(12, 32, 32))
    kept, lost = (tmp_path / "labelsTr" / f"phantom_00{i}.nii.gz" for i in (0, 1))
    stamp, content = kept.stat().st_mtime_ns, sitk.GetArrayFromImage(sitk.ReadImage(lost))
    lost.unlink()
    write_phantom_cohort(tmp_path, 2, shape=(12, 32, 32))
    assert kept.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(lost)), content)


def test_a_folder_with_another_cohort_is_refused(tmp_path: Path) -> None:
    write_phantom_cohort(tmp_path, 1, shape=(12, 32, 32), seed=1)
    with pytest.raises(InputError, match="another cohort"):
        write_phantom_cohort(tmp_path, 1, shape=(12, 32, 32), seed=2)


@pytest.mark.parametrize("content", [None, "{", '{"labels": {"lung": 1}}'])
def test_nobody_is_told_to_delete_a_cohort_of_his_own(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "imagesTs").mkdir()
    if content is not None:
        (tmp_path / "dataset.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"to mend it: choose another folder$"):
        write_phantom_cohort(tmp_path, 1, shape=(12, 32, 32))
    assert not (tmp_path / "imagesTr").exists()


@pytest.mark.parametrize("shape", [(4, 64, 64), (32, 64), (32, 64, 1024)])
def test_an_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        phantom_grid(shape)


def test_an_impossible_spacing_is_refused() -> None:
    with pytest.raises(InputError, match="spacing"):
        phantom_grid((16, 32, 32), (1.0, 0.0, 1.0))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed"):
        phantom_subject(-1, shape=(16, 32, 32))
