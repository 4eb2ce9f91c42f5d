"""Choosing atlases, and finding those that are named."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from atlasnet.atlas import ChoiceSettings, choose_atlases, k_medoids, medoids, resolve_atlases, scans_beside
from atlasnet.cohort import Cohort
from atlasnet.errors import CohortError, InputError, VolumeError
from atlasnet.execution import Execution
from atlasnet.volume import Grid, Volume, write_volume

RUN = Execution(threads=1)


@given(st.integers(2, 7), st.integers(1, 7), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_no_other_medoids_are_nearer(n: int, count: int, seed: int) -> None:
    count = min(count, n)
    points = np.random.default_rng(seed).normal(size=(n, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    chosen = k_medoids(distances, count)
    best = min(sum(min(row[i] for i in some) for row in distances) for some in itertools.combinations(range(n), count))
    assert len(set(chosen)) == count
    assert distances[:, chosen].min(1).sum() == pytest.approx(best)


@given(st.integers(3, 7), st.integers(1, 7), st.integers(0, 10_000), st.sampled_from([1, medoids.EXACT_LIMIT]))
@settings(max_examples=60, deadline=None)
def test_medoids_that_are_kept_are_completed_by_the_best_others(n: int, count: int, seed: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    count = min(count, n)
    kept = random.permutation(n)[: random.integers(1, count + 1)].tolist()
    points = random.normal(size=(n, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medoids, "EXACT_LIMIT", limit)
        chosen = k_medoids(distances, count, kept)
    sets = [some for some in itertools.combinations(range(n), count) if set(kept) <= set(some)]
    costs = {some: sum(min(row[i] for i in some) for row in distances) for some in sets}
    assert tuple(chosen) in costs
    if limit > 1:
        assert costs[tuple(chosen)] == pytest.approx(min(costs.values()))


def test_partitioning_finds_the_clusters_where_there_are_too_many_sets_to_try() -> None:
    random = np.random.default_rng(3)
    centres = np.array([[0, 0], [30, 0], [0, 30], [30, 30], [60, 15]])
    labels = np.repeat(np.arange(5), 12)
    points = centres[labels] + random.normal(size=(60, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    assert (
        len(list(itertools.islice(itertools.combinations(range(60), 5), medoids.EXACT_LIMIT + 1))) > medoids.EXACT_LIMIT
    )
    chosen = k_medoids(distances, 5)
    assert sorted(labels[chosen].tolist()) == [0, 1, 2, 3, 4]
    for label, medoid in zip(labels[chosen], chosen, strict=True):
        members = np.flatnonzero(labels == label)
        assert medoid == members[distances[np.ix_(members, members)].sum(0).argmin()]


@pytest.mark.parametrize(
    ("distances", "count"),
    [
        (np.zeros((2, 3)), 1),
        (np.full((2, 2), np.nan), 1),
        (-np.ones((2, 2)), 1),
        (np.zeros((3, 3)), 0),
        (np.zeros((3, 3)), 4),
    ],
)
def test_distances_and_counts_without_sense_are_refused(distances: np.ndarray, count: int) -> None:
    with pytest.raises(InputError):
        k_medoids(distances, count)


def anatomy(kind: int, seed: int) -> Volume:
    """An ellipsoid with three organs: kind 0 is slender, organs above; kind 1 stout, organs below; noise differs."""
    random = np.random.default_rng(seed)
    shape, spacing = (30, 32, 32), 3.0
    grid = Grid.from_parts(shape, spacing, random.uniform(-200, 200, 3))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    place = (index - (np.array(shape) - 1) / 2) * spacing
    radius = np.array([(40, 26, 28), (30, 40, 42)][kind]) * random.uniform(0.97, 1.03, 3)
    image = 100.0 * (np.sum((place / radius) ** 2, -1) < 1)
    for angle in (0.3, 2.4, 4.5):
        height = 0.35 * radius[0] * (1 if kind == 0 else -1)
        centre = np.array([height, 0.5 * radius[1] * np.cos(angle + kind), 0.5 * radius[2] * np.sin(angle + kind)])
        image += 120.0 * (np.linalg.norm(place - centre, axis=-1) < 8)
    image = ndimage.gaussian_filter(image, 1) + random.normal(0, 3, shape)
    return Volume(image.astype(np.float32), grid)


def cohort_of(*kinds: int) -> dict[str, Callable[[], Volume]]:
    return {f"s{i}": partial(anatomy, kind, i) for i, kind in enumerate(kinds)}


def test_two_atlases_are_of_the_two_kinds_of_anatomy() -> None:
    kinds = (0, 0, 0, 0, 1, 1, 0)
    chosen = choose_atlases(cohort_of(*kinds), 2, execution=RUN)
    assert sorted(kinds[int(name[1:])] for name in chosen) == [0, 1]


@pytest.mark.parametrize("part", ["s0", "s6"])
@pytest.mark.parametrize("shape", [(15, 32, 32), (15, 16, 16)], ids=["half", "eighth"])
def test_a_scan_of_a_part_is_no_atlas_where_others_show_the_whole(part: str, shape: tuple[int, int, int]) -> None:
    kinds = (0, 0, 0, 1, 1, 0, 0, 1)
    volumes = cohort_of(*kinds)
    whole = volumes[part]()
    cut = whole.array[:, : shape[0], : shape[1], : shape[2]]
    volumes[part] = lambda: Volume(cut, Grid(shape, whole.grid.affine))
    chosen = choose_atlases(volumes, 2, execution=RUN)
    assert part not in chosen
    assert sorted(kinds[int(name[1:])] for name in chosen) == [0, 1]


def test_the_choice_does_not_depend_on_the_order_of_the_subjects() -> None:
    volumes = cohort_of(0, 1, 0, 1, 0)
    chosen = choose_atlases(volumes, 2, execution=RUN)
    assert choose_atlases(dict(reversed(volumes.items())), 2, execution=RUN) == chosen


def test_the_choice_does_not_depend_on_headers_pose() -> None:
    volumes = cohort_of(0, 1, 0, 1, 0)

    def moved(read: Callable[[], Volume]) -> Volume:
        volume = read()
        affine = volume.grid.affine.copy()
        affine[:3, 3] += (70, -30, 400)
        return Volume(volume.array, Grid(volume.grid.shape, affine))

    elsewhere = volumes | {"s2": partial(moved, volumes["s2"])}
    assert choose_atlases(elsewhere, 2, execution=RUN) == choose_atlases(volumes, 2, execution=RUN)


@pytest.mark.parametrize("flat", ["s0", "s1", "s2", "s3"])
def test_who_cannot_be_compared_is_named(flat: str) -> None:
    volumes = cohort_of(0, 1, 0, 1)
    empty = volumes[flat]()
    volumes[flat] = lambda: empty.replace(np.zeros_like(empty.array))
    with pytest.raises(VolumeError, match=f"{flat} .*is constant|with {flat}.*is constant"):
        choose_atlases(volumes, 2, execution=RUN)


def test_all_subjects_are_atlases_where_there_are_no_more_than_wanted() -> None:
    volumes = cohort_of(0, 1, 0)
    assert choose_atlases(volumes, 3) == choose_atlases(volumes, 9) == ["s0", "s1", "s2"]


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match="must be positive"):
        choose_atlases(cohort_of(0, 1), 0)
    with pytest.raises(InputError, match="no subjects"):
        choose_atlases({}, 1)
    with pytest.raises(InputError, match="voxels"):
        ChoiceSettings(voxels=1)


def test_hippocampi_give_distinct_atlases(data_folder: Path) -> None:
    from atlasnet.volume import read_volume

    paths = sorted((data_folder / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:5]
    chosen = choose_atlases({path.name: partial(read_volume, path) for path in paths}, 3, execution=RUN)
    assert len(set(chosen)) == 3
    assert set(chosen) <= {path.name for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cohort of two subjects with one channel, and an image outside."""
    for name in ("imagesTr/a_0000", "imagesTr/b_0000", "labelsTr/a", "labelsTr/b", "elsewhere/template"):
        write_volume(tmp_path / f"{name}.nii.gz", Volume(np.ones((2, 3, 4), np.uint8), Grid.from_parts((2, 3, 4))))
    return tmp_path


def test_an_atlas_is_a_subject_or_an_image_outside(folder: Path) -> None:
    outside = folder / "elsewhere" / "template.nii.gz"
    first, second = resolve_atlases(Cohort.read(folder), ["b", str(outside)])
    assert (first.name, first.subject, second.name, second.subject) == ("b", "b", "template", None)
    assert second.paths == (outside,)
    assert second.read().array.shape == first.read().array.shape == (1, 2, 3, 4)


def test_the_path_of_a_subjects_own_image_is_that_subject(folder: Path) -> None:
    (source,) = resolve_atlases(Cohort.read(folder), [folder / "imagesTr" / "a_0000.nii.gz"])
    assert (source.name, source.subject) == ("a", "a")


def test_every_unknown_atlas_is_named(folder: Path) -> None:
    with pytest.raises(CohortError, match=r"nowhere, void\.nii"):
        resolve_atlases(Cohort.read(folder), ["a", "nowhere", "void.nii"])
    with pytest.raises(CohortError, match="no atlas is named"):
        resolve_atlases(Cohort.read(folder), [])


def test_scans_beside_a_cohort_are_those_that_are_none_of_its_subjects(folder: Path) -> None:
    cohort, elsewhere = Cohort.read(folder), folder / "elsewhere"
    shutil.copy(elsewhere / "template.nii.gz", elsewhere / "b.nii.gz")  # called as a subject: passed over
    (elsewhere / "link.nii.gz").symlink_to(folder / "imagesTr" / "a_0000.nii.gz")
    assert scans_beside(cohort, elsewhere) == (str(elsewhere / "template.nii.gz"),)
    assert scans_beside(cohort.select(["a"]), folder) == (str(folder / "imagesTr" / "b_0000.nii.gz"),)
    with pytest.raises(CohortError, match="but the subjects themselves"):
        scans_beside(cohort, folder)
    (elsewhere / "template.nii.gz").rename(elsewhere / "template_0000.nii.gz")
    shutil.copy(elsewhere / "template_0000.nii.gz", elsewhere / "template_0001.nii.gz")
    (elsewhere / "b.nii.gz").unlink()
    (elsewhere / "link.nii.gz").unlink()
    with pytest.raises(CohortError, match="other channels than the cohort"):
        scans_beside(cohort, elsewhere)
    (folder / "empty").mkdir()
    with pytest.raises(CohortError, match="or scans in the folder; found an empty folder"):
        scans_beside(cohort, folder / "empty")


def test_names_must_differ(folder: Path) -> None:
    cohort = Cohort.read(folder)
    with pytest.raises(CohortError, match="named twice"):
        resolve_atlases(cohort, ["a", folder / "imagesTr" / "a_0000.nii.gz"])
    shutil.copy(folder / "elsewhere" / "template.nii.gz", folder / "elsewhere" / "b.nii.gz")
    with pytest.raises(CohortError, match="not that subject's"):
        resolve_atlases(cohort, [folder / "elsewhere" / "b.nii.gz"])


def test_an_outside_image_brings_the_files_of_all_channels(folder: Path) -> None:
    for name in ("imagesTr/a_0001", "imagesTr/b_0001", "elsewhere/other_0000"):
        shutil.copy(folder / "elsewhere" / "template.nii.gz", folder / f"{name}.nii.gz")
    cohort, path = Cohort.read(folder), folder / "elsewhere" / "other_0000.nii.gz"
    with pytest.raises(CohortError, match="lacks channels"):
        resolve_atlases(cohort, [path])
    shutil.copy(path, folder / "elsewhere" / "other_0001.nii.gz")
    (source,) = resolve_atlases(cohort, [path])
    assert source.name == "other"
    assert source.read().channels == 2
