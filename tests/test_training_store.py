"""Mapped cases on disk, and which of their slices are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlasnet.errors import CohortError, VolumeError
from atlasnet.network.spec import Traits
from atlasnet.training.batches import (
    epoch_batches,
    epoch_random,
    load_blocks,
    load_slices,
    network_inputs,
    typical_sample,
)
from atlasnet.training.loss import UNCOUNTED
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import IGNORED, MappedCase, SliceTable


def make(name: str, shape: tuple[int, int, int] = (6, 10, 7), channels: int = 1, seed: int = 0) -> MappedCase:
    random = np.random.default_rng(seed)
    image = random.normal(size=(channels, *shape)).astype(np.float16)
    return MappedCase(name, image, random.integers(0, 3, shape, dtype=np.uint8))


def test_a_case_comes_back_as_a_memory_map(tmp_path: Path) -> None:
    case = make("a", channels=2)
    case.save(tmp_path)
    opened = MappedCase.open(tmp_path, "a")
    assert isinstance(opened.image, np.memmap)
    np.testing.assert_array_equal(opened.image, case.image)
    np.testing.assert_array_equal(opened.labels, case.labels)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_an_image_that_is_not_normalised_is_refused(tmp_path: Path, value: float) -> None:
    image = np.zeros((1, 2, 3, 4), np.float32)
    image[0, 1, 1, 1] = value
    with pytest.raises(VolumeError, match="not normalised"):
        MappedCase("a", image, np.zeros((2, 3, 4), np.uint8)).save(tmp_path)
    assert not any(tmp_path.iterdir())


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(VolumeError, match="cannot be trained on"):
        MappedCase("a", np.zeros((1, 2, 3, 4), np.float32), np.zeros((2, 3, 5), np.uint8))


def test_a_truncated_case_is_refused_by_name(tmp_path: Path) -> None:
    make("a").save(tmp_path)
    path = tmp_path / "a.image.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CohortError, match=r"a\.image\.npy"):
        MappedCase.open(tmp_path, "a")


def test_slices_without_an_annotated_voxel_are_left_out() -> None:
    case = make("a")
    case.labels[[1, 4]] = IGNORED
    case.labels[2] = IGNORED
    case.labels[2, 0, 0] = 1
    table = SliceTable.of([make("b", seed=1), case], 3)
    assert [(int(c), int(z)) for c, z in zip(table.case, table.z, strict=True)] == [
        *((0, z) for z in range(6)),
        *((1, z) for z in (0, 2, 3, 5)),
    ]
    assert table.counts[7].tolist() == [0, 1, 0]


def test_nothing_annotated_is_refused() -> None:
    case = make("a")
    case.labels[:] = IGNORED
    with pytest.raises(CohortError, match="no slice"):
        SliceTable.of([case], 3)


def test_a_class_that_the_network_lacks_is_refused() -> None:
    with pytest.raises(CohortError, match=r"indices below 2.*found 2"):
        SliceTable.of([make("a")], 2)


def test_one_pass_deals_every_slice_once() -> None:
    table = SliceTable.of([make("a"), make("b", seed=1)], 3)
    batches = list(epoch_batches(table, Recipe.preset("publication"), 5, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(12))
    assert [len(batch) for batch in batches] == [4, 4, 4]


@pytest.mark.parametrize(("slices", "sizes"), [(3, [2, 2]), (5, [2, 1])])
def test_one_pass_deals_as_many_blocks_as_hold_every_slice(slices: int, sizes: list[int]) -> None:
    table = SliceTable.of([make("a"), make("b", seed=1)], 3)
    batches = list(epoch_batches(table, Recipe.preset("publication"), 2, np.random.default_rng(0), slices=slices))
    assert [len(batch) for batch in batches] == sizes
    assert len(set(np.concatenate(batches))) == sum(sizes)


def test_an_epoch_is_a_function_of_seed_key_and_number() -> None:
    def draw(*of: object) -> float:
        return float(epoch_random(*of).random())  # type: ignore[arg-type]  # a tuple of the three

    assert draw(1, "a", 2) == draw(1, "a", 2)
    assert len({draw(1, "a", 2), draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3)}) == 4


def test_rare_foreground_slices_are_drawn_more_often() -> None:
    case = make("a", (30, 4, 4))
    case.labels[:] = 0
    case.labels[3] = 1
    case.labels[10:20] = 2
    recipe = Recipe.preset("default")
    batches = list(epoch_batches(SliceTable.of([case], 3), recipe, 12, np.random.default_rng(0)))
    assert all(len(batch) == 12 for batch in batches)
    share = np.mean([(batch == 3).mean() for batch in batches])
    assert share == pytest.approx(recipe.foreground / 2 + (1 - recipe.foreground) / 30, abs=0.04)


def test_where_no_slice_holds_a_structure_every_slice_is_dealt() -> None:
    case = make("a")
    case.labels[:] = 0
    recipe = replace(Recipe.preset("default"), iterations=2, passes=0.0, batch_slices=4)
    batches = list(epoch_batches(SliceTable.of([case], 3), recipe, 3, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(6))


def test_slices_of_different_size_are_padded_with_edge_and_uncounted_voxels() -> None:
    cases = [make("a", (4, 9, 7)), make("b", (5, 6, 12), seed=1)]
    table = SliceTable.of(cases, 3)
    images, target = network_inputs(*load_slices(cases, table, np.array([0, 8]), Traits(2, 1, 4)))
    assert images.shape == (2, 3, 12, 12)
    assert target.shape == (2, 1, 12, 12)
    np.testing.assert_array_equal(images[1, 1, :6], cases[1].image[0, 4])
    np.testing.assert_array_equal(images[1, 2], images[1, 1])  # the last slice repeats
    np.testing.assert_array_equal(images[1, 0, 6:], np.broadcast_to(cases[1].image[0, 3, 5], (6, 12)))
    np.testing.assert_array_equal(target[0, 0, :9, :7], cases[0].labels[0])
    assert (target[0, 0, 9:] == UNCOUNTED).all()
    assert (target[0, 0, :, 7:] == UNCOUNTED).all()


def test_a_block_holds_the_slice_that_it_was_drawn_for() -> None:
    cases = [make("a", (9, 8, 8))]
    table = SliceTable.of(cases, 3)
    images, target = network_inputs(
        *load_blocks(cases, table, np.array([7]), Traits(3, 0, 4), np.random.default_rng(0))
    )
    assert images.shape == (1, 1, 12, 8, 8)
    np.testing.assert_array_equal(images[0, 0, :9], cases[0].image[0])
    np.testing.assert_array_equal(target[0, :9], cases[0].labels)
    assert (target[0, 9:] == UNCOUNTED).all()


def test_a_block_of_a_deep_case_holds_its_slice_at_any_of_its_places() -> None:
    z = np.arange(13)
    whole = np.broadcast_to(z[:, None, None], (13, 512, 512))
    cases = [MappedCase("a", whole[None].astype(np.float16), (whole % 3).astype(np.uint8))]
    table, random = SliceTable.of(cases, 3), np.random.default_rng(0)
    starts: dict[int, set[int]] = {row: set() for row in (0, 6, 12)}
    for row, found in starts.items():
        for _ in range(40):
            images, labels = load_blocks(cases, table, np.array([row]), Traits(3, 0, 1), random)
            seen = images[0, 0, :, 0, 0].numpy().astype(int)
            np.testing.assert_array_equal(seen, np.arange(seen[0], seen[0] + 8))
            np.testing.assert_array_equal(labels[0, :, 0, 0], seen % 3)
            found.add(int(seen[0]))
    assert starts == {0: {0}, 6: {0, 1, 2, 3, 4, 5}, 12: {5}}


def test_a_block_is_counted_with_the_slices_that_it_shows() -> None:
    assert typical_sample([make("a", (9, 8, 8)), make("b", (4, 6, 5))], Traits(3, 0, 4)) == (12 * 8 * 8, 9)
    assert typical_sample([make("a", (9, 8, 8)), make("b", (4, 6, 10))], Traits(2, 1, 4)) == (8 * 12, 1)


def test_what_stands_for_a_class_in_a_slice_is_that_of_its_case() -> None:
    cases = [make("a"), replace(make("b", seed=1), hidden=((2, 0),))]
    cases[1].labels[cases[1].labels == 2] = 0
    table = SliceTable.of(cases, 3)
    shown = table.shown_at(np.array([0, 11, 6]))
    assert shown is not None
    assert shown.tolist() == [[0, 1, 2], [0, 1, 0], [0, 1, 0]]
    assert SliceTable.of([make("a")], 3).shown_at(np.array([0])) is None


def test_a_batch_is_as_precise_as_the_most_precise_of_its_cases() -> None:
    half, single = make("a"), make("b", seed=1)
    single = replace(single, image=single.image.astype(np.float32) + np.float32(1e-5))
    cases, rows = [half, single], np.array([0, 11])
    table = SliceTable.of(cases, 3)
    images, _ = load_slices(cases, table, rows, Traits(2, 0, 1))
    np.testing.assert_array_equal(images[1, 0], single.image[0, 5])
    blocks, _ = load_blocks(cases, table, rows, Traits(3, 0, 1), np.random.default_rng(0))
    np.testing.assert_array_equal(blocks[1], single.image)
