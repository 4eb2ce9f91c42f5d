"""Cleaning of label maps against SimpleITK and counted voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from atlasnet.prediction.postprocess import postprocess
from atlasnet.volume import Grid

SPACING = (0.5, 1.0, 2.0)


def grid(labels: NDArray[np.uint8]) -> Grid:
    return Grid.from_parts(labels.shape, SPACING)


def scattered(seed: int) -> NDArray[np.uint8]:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(12, 20, 24)), 1.2)
    return np.digitize(noise, np.quantile(noise, [0.75, 0.9])).astype(np.uint8)


def components(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """26-connected components of SimpleITK, 1 being the largest."""
    found = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return sitk.GetArrayFromImage(sitk.RelabelComponent(found)).astype(np.int64)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_component_of_each_label_is_simpleitks(seed: int) -> None:
    labels = scattered(seed)
    cleaned = postprocess(labels, grid(labels), largest_component=True)
    for label in (1, 2):
        found = components(labels == label)
        sizes = np.bincount(found.ravel())[1:]
        assert (sizes == sizes.max()).sum() == 1
        np.testing.assert_array_equal(cleaned == label, found == 1)


@pytest.mark.parametrize("minimum", [5.0, 20.0])
def test_components_below_the_minimum_size_are_those_of_simpleitk(minimum: float) -> None:
    labels = scattered(9)
    cleaned = postprocess(labels, grid(labels), minimum_size_mm3=minimum)
    for label in (1, 2):
        found = components(labels == label)
        large = np.flatnonzero(np.bincount(found.ravel()) * np.prod(SPACING) >= minimum)
        np.testing.assert_array_equal(cleaned == label, np.isin(found, large[large > 0]))


def test_a_component_of_exactly_the_minimum_size_stays() -> None:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[0, 0, :3] = 1
    labels[3, 5, :2] = 1
    cleaned = postprocess(labels, Grid.from_parts(labels.shape, (0.1, 0.1, 0.1)), minimum_size_mm3=0.003)
    assert cleaned.sum() == 3


def test_voxels_that_share_a_corner_belong_together() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[range(4), range(4), range(4)] = 1
    np.testing.assert_array_equal(postprocess(labels, grid(labels), largest_component=True), labels)


def test_a_region_is_cleaned_as_a_whole_and_what_lies_within_it_stays_in_it() -> None:
    # Background 0, edema 1, necrosis 2, enhancing 3: the whole tumour 1 + 2 + 3, its core 2 + 3, the enhancing part 3.
    line = [0, 1, 1, 3, 2, 1, 3, 3, 1, 0, 0, 1, 2, 0, 0, 3, 0]
    labels = np.array(line, dtype=np.uint8).reshape(1, 1, -1)
    tumour = [(1, 2, 3), (2, 3), (3,)]
    cleaned = postprocess(labels, grid(labels), largest_component=True, structures=tumour)
    # The whole keeps its one large part; of the core, 3 2 and 3 3 are as large; of the enhancing part the larger stays,
    # and the other is necrosis.
    assert cleaned.ravel().tolist() == [0, 1, 1, 2, 2, 1, 3, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    one = np.array([0, 1, 1, 3, 1, 2, 2, 3, 1, 0], dtype=np.uint8).reshape(1, 1, -1)
    cleaned = postprocess(one, grid(one), largest_component=True, structures=tumour)
    assert cleaned.ravel().tolist() == [0, 1, 1, 1, 1, 2, 2, 3, 1, 0]
    # By labels, the parts of the tumour would tear each other.
    alone = postprocess(one, grid(one), largest_component=True)
    assert alone.ravel().tolist() == [0, 1, 1, 3, 0, 2, 2, 3, 0, 0]
    small = postprocess(labels, grid(labels), minimum_size_mm3=2 * np.prod(grid(labels).spacing), structures=tumour)
    assert small.ravel().tolist() == [0, 1, 1, 2, 2, 1, 3, 3, 1, 0, 0, 1, 1, 0, 0, 0, 0]


def test_structures_are_cleaned_from_the_outside_in() -> None:
    # The larger part of 3 lies in the smaller part of the whole.
    labels = np.array([3, 3, 3, 0, 1, 1, 2, 3, 3, 1, 1, 1, 1]).reshape(1, 1, -1)
    cleaned = postprocess(labels, grid(labels), largest_component=True, structures=[(3,), (1, 2, 3)])
    assert cleaned.ravel().tolist() == [0, 0, 0, 0, 1, 1, 2, 3, 3, 1, 1, 1, 1]


def test_of_labels_beside_a_structure_that_lie_in_as_many_others_the_lowest_takes_its_place() -> None:
    labels = np.array([3, 3, 1, 1, 2, 2, 3]).reshape(1, 1, -1)
    cleaned = postprocess(labels, grid(labels), largest_component=True, structures=[(3,), (1, 2, 3)])
    assert cleaned.ravel().tolist() == [3, 3, 1, 1, 2, 2, 1]


def test_the_input_is_left_as_it_is() -> None:
    labels = scattered(2)
    before = labels.copy()
    postprocess(labels, grid(labels), largest_component=True)
    np.testing.assert_array_equal(labels, before)


def test_without_a_request_nothing_changes() -> None:
    labels = scattered(3)
    np.testing.assert_array_equal(postprocess(labels, grid(labels)), labels)


def test_the_result_follows_the_axes_even_where_components_tie() -> None:
    labels = scattered(4)
    labels[:, :3] = 0
    labels[0, 0, 0] = labels[-1, 0, -1] = 3
    cleaned = postprocess(labels, grid(labels), largest_component=True)
    assert (cleaned == 3).sum() == 2
    for axes in itertools.permutations(range(3)):
        turned = np.flip(labels.transpose(axes), (0, 2))
        expected = np.flip(cleaned.transpose(axes), (0, 2))
        np.testing.assert_array_equal(postprocess(turned, grid(turned), largest_component=True), expected)
