"""Local weights against NumPy's correlation of every box."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from atlasnet.registration import fit_around, local_correlation, local_weight

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("at_once", [1, 150, 10_000])
def test_a_weight_follows_the_correlation_in_the_box_around_the_voxel(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "atlasnet.registration.local_fit.VOXELS_AT_ONCE", at_once
    )  # slabs of one slice, of two, and all
    image = RANDOM.normal(size=(2, 7, 8, 9))
    other = image + RANDOM.normal(size=image.shape) * np.linspace(0.2, 3, 9)
    found = local_weight(image, other)
    assert found.shape == (7, 8, 9)
    for z, y, x in ((2, 2, 2), (3, 4, 4), (4, 5, 6)):
        box = np.s_[:, z - 2 : z + 3, y - 2 : y + 3, x - 2 : x + 3]
        pairs = zip(image[box], other[box], strict=True)
        correlation = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
        np.testing.assert_allclose(found[z, y, x], (1 - correlation) ** -2, rtol=2e-3)
        softer = local_weight(image, other, power=0.5)[z, y, x]
        np.testing.assert_allclose(softer, (1 - correlation) ** -0.5, rtol=2e-3)


def test_equal_images_have_the_highest_weight_and_opposite_ones_the_lowest() -> None:
    image = RANDOM.normal(size=(1, 8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(local_weight(image, 3 * image + 2), 1e4, rtol=1e-3)
    np.testing.assert_allclose(local_weight(image, -image), 0.25, rtol=1e-3)


def test_a_flat_image_has_neither() -> None:
    image = RANDOM.normal(size=(1, 8, 8, 8))
    for value in (0.0, 5.0, 0.1, -1024.0):
        np.testing.assert_allclose(local_weight(image, np.full_like(image, value)), 1.0, atol=1e-3)


def test_a_place_that_is_flat_beside_others_that_are_not_has_neither() -> None:
    image, other = RANDOM.normal(size=(2, 1, 16, 8, 8)) + 1000
    other[:, :8] = 1000
    np.testing.assert_allclose(local_weight(image, other)[:6], 1.0, atol=1e-3)


def test_the_fit_is_the_mean_of_what_lies_within_three_steps_of_what_was_found() -> None:
    image, other = RANDOM.normal(size=(2, 1, 14, 15, 16))
    correlation = local_correlation(image, other)
    found = np.zeros((14, 15, 16), dtype=bool)
    found[0, 4, 15] = found[5:8, 6:9, 2:4] = True
    near = ndimage.distance_transform_cdt(~found, "taxicab") <= 3
    np.testing.assert_allclose(fit_around(correlation, found), correlation[near].mean())


def test_where_nothing_was_found_there_is_no_fit() -> None:
    assert fit_around(np.ones((3, 4, 5)), np.zeros((3, 4, 5), dtype=bool)) is None
