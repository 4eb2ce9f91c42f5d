"""Random changes of slices, against SciPy's interpolation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from atlasnet.training.augmentation import Draw, move, recolour
from atlasnet.training.loss import UNCOUNTED
from atlasnet.training.recipe import Augmentation

HEIGHT, WIDTH = 40, 56


def still(batch: int) -> Draw:
    return Draw.of(Augmentation(), batch, np.random.default_rng(0))


@pytest.fixture
def images() -> torch.Tensor:
    noise = np.random.default_rng(1).normal(size=(2, 3, HEIGHT, WIDTH))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 2, 2)).astype(np.float32))


@pytest.fixture
def target() -> torch.Tensor:
    return torch.randint(0, 3, (2, 1, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))


def test_nothing_drawn_changes_nothing(images: torch.Tensor, target: torch.Tensor) -> None:
    moved, classes = move(images, target, still(2))
    torch.testing.assert_close(moved, images, atol=1e-5, rtol=0)
    assert torch.equal(classes, target)
    torch.testing.assert_close(recolour(images, still(2)), images)


def test_a_shift_by_whole_pixels_moves_voxels_and_discounts_what_comes_in(
    images: torch.Tensor, target: torch.Tensor
) -> None:
    draw = replace(still(2), shift=np.array([[3 / WIDTH, 0.0], [0.0, -2 / HEIGHT]]))
    moved, classes = move(images, target, draw)
    torch.testing.assert_close(moved[0, :, :, :-3], images[0, :, :, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[0, :, :, -3:], images[0, :, :, -1:].expand(-1, -1, 3), atol=1e-4, rtol=0)
    assert torch.equal(classes[0, :, :, :-3], target[0, :, :, 3:])
    assert (classes[0, :, :, -3:] == UNCOUNTED).all()
    assert torch.equal(classes[1, :, 2:], target[1, :, :-2])
    assert (classes[1, :, :2] == UNCOUNTED).all()


def test_rotation_and_magnification_equal_those_of_scipy(images: torch.Tensor, target: torch.Tensor) -> None:
    angle, scale = np.deg2rad(9.0), 0.1
    draw = replace(still(2), angle=np.full(2, angle), scale=np.full(2, scale))
    moved, _ = move(images, target, draw)
    turn = np.exp(-scale) * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # (y, x)
    centre = (np.array([HEIGHT, WIDTH]) - 1) / 2
    for plane in range(3):
        expected = ndimage.affine_transform(
            images[0, plane].numpy(), turn, centre - turn @ centre, order=1, mode="nearest"
        )
        np.testing.assert_allclose(moved[0, plane], expected, atol=2e-4)


def test_slices_that_are_not_moved_keep_every_voxel(images: torch.Tensor, target: torch.Tensor) -> None:
    options = Augmentation(rotation=20, translation=0.1, scale=0.2)
    draw = replace(Draw.of(options, 2, np.random.default_rng(0)), moved=np.array([True, False]))
    moved, classes = move(images, target, draw)
    torch.testing.assert_close(moved[1], images[1], atol=1e-5, rtol=0)
    assert torch.equal(classes[1], target[1])
    assert not torch.equal(classes[0], target[0])


def test_image_and_classes_move_alike() -> None:
    disc = (np.hypot(*np.mgrid[-20:20, -28:28]) < 9).astype(np.int64)
    image, target = torch.from_numpy(disc[None, None]).float(), torch.from_numpy(disc[None, None])
    options = Augmentation(rotation=20, translation=0.1, scale=0.2)
    moved, classes = move(image, target, Draw.of(options, 1, np.random.default_rng(5)))
    assert ((moved > 0.5).long() != classes.clamp_min(0)).float().mean() < 0.01
    assert not torch.equal(classes, target)


def test_draws_stay_within_the_published_ranges() -> None:
    draw = Draw.of(Augmentation(rotation=10, translation=20 / 512), 5000, np.random.default_rng(0))
    assert np.rad2deg(np.abs(draw.angle)).max() == pytest.approx(10, rel=0.01)
    assert (np.abs(draw.shift) * 512).max(0) == pytest.approx([20, 20], rel=0.01)
    assert (draw.angle < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert not draw.scale.any()


def test_no_change_of_a_slice_follows_from_another() -> None:
    every = Augmentation(1, 1, 1, probability=0.5, contrast=1, brightness=1, gamma=1, noise=1)
    draw = Draw.of(every, 20_000, np.random.default_rng(0))
    colours = (draw.contrast, draw.brightness, draw.gamma, draw.noise)
    together = np.corrcoef([draw.moved, draw.angle, *draw.shift.T, draw.scale, *colours])
    assert np.abs(together - np.eye(9)).max() < 0.04
    assert draw.noise.min() >= 0


def test_contrast_keeps_the_mean_and_scales_the_spread(images: torch.Tensor) -> None:
    changed = recolour(images, replace(still(2), contrast=np.log([2.0, 0.5])))
    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(changed.std((1, 2, 3)) / images.std((1, 2, 3)), torch.tensor([2.0, 0.5]))


def test_gamma_keeps_the_extremes_and_the_order(images: torch.Tensor) -> None:
    changed = recolour(images, replace(still(2), gamma=np.array([0.4, -0.4])))
    torch.testing.assert_close(changed.amax((1, 2, 3)), images.amax((1, 2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.amin((1, 2, 3)), images.amin((1, 2, 3)), atol=1e-5, rtol=0)
    order = images[0].flatten().argsort()
    assert (changed[0].flatten()[order].diff() >= -1e-5).all()


def test_noise_has_the_drawn_spread_and_is_repeatable(images: torch.Tensor) -> None:
    draw = replace(still(2), noise=np.array([0.3, 0.0]))
    difference = recolour(images, draw) - images
    assert difference[0].std().item() == pytest.approx(0.3, rel=0.05)
    assert (difference[1] == 0).all()
    assert torch.equal(recolour(images, draw), recolour(images, draw))


def test_no_batch_has_the_noise_of_another(images: torch.Tensor) -> None:
    random = np.random.default_rng(0)
    first, second = (recolour(images, Draw.of(Augmentation(noise=1.0), 2, random)) - images for _ in range(2))
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.05
