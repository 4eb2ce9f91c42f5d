"""The metrics against independent implementations."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import pywt
import torch
from scipy import ndimage

from atlasnet.registration import lattice
from atlasnet.registration.label_space import LabelSpace
from atlasnet.registration.lattice import Lattice
from atlasnet.registration.similarity import (
    METRICS,
    AlignedPair,
    agreement,
    local_contrast,
    self_similarity,
    unary_costs,
    weighted_costs,
)
from atlasnet.registration.similarity.boxes import VOXELS_AT_ONCE, box_sums
from atlasnet.registration.similarity.cross_correlation import NOISE
from atlasnet.registration.similarity.mutual_information import BINS, joint_histogram
from atlasnet.registration.similarity.pair import expected_difference
from atlasnet.registration.similarity.wavelet import decompose

EVERY = sorted(METRICS)


def texture(shape, seed, sigma=1.5):
    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    values = (values - values.min()) / (values.max() - values.min())
    return torch.tensor(values, dtype=torch.float32)


def pair(target, source, radii=(0, 0, 0), support=4, counted=None, covered=None):
    """``source`` is padded already."""
    target, source = (v if v.ndim == 4 else v[None] for v in (target, source))
    image = Lattice(tuple(target.shape[1:]), (1.0, 1.0, 1.0))
    control = Lattice(
        tuple(max(1, n // support) for n in image.shape), tuple(float(support) if n > 1 else 1.0 for n in image.shape)
    )
    return bound(target, source, LabelSpace(radii), image, control, counted, covered)


def bound(target, source, labels, image, control, counted=None, covered=None):
    everything = torch.ones(target.shape[1:], dtype=torch.bool), torch.ones(source.shape[1:], dtype=torch.bool)
    counted, covered = everything[0] if counted is None else counted, everything[1] if covered is None else covered
    return AlignedPair(
        target,
        source,
        counted,
        covered,
        contrast(target, counted),
        contrast(source, covered),
        described(target, counted),
        described(source, covered),
        labels,
        image,
        control,
        (((0.0, 1.0), (0.0, 1.0)),) * len(target),
    )


def contrast(values, mask):
    radii = tuple(min(2, n - 1) for n in values.shape[1:])
    return local_contrast(values, mask[None].float(), radii)


def described(values, mask):
    return (
        self_similarity(values, mask[None].float(), tuple(min(1, n - 1) for n in values.shape[1:]))
        if values[0].numel() > 1
        else None
    )


def chosen(costs, radii, name):
    """The displacements (x, y, z) that the control points prefer."""
    flat = costs.reshape(costs.shape[0] * costs.shape[1] * costs.shape[2], -1)
    if name in ("mi", "ncc"):
        # the histogram of a wrong alignment is only the beginning of an answer, and a product of contrasts grows where
        # the source has much of it: true on the whole, not at every point
        flat = flat.sum(1, keepdim=True)
    return {tuple(v.tolist()) for v in LabelSpace(radii).displacements(flat.argmin(0)).T.int()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("label", [(0, 0, 0), (2, -1, 1), (-2, 2, 0)])
def test_the_true_displacement_costs_least(name, label):
    large = texture((28, 28, 28), 0)
    radii = (2, 2, 2)
    start = [4 - value for value in label]
    target = large[4:24, 4:24, 4:24]
    source = large[tuple(slice(s - 2, s + 22) for s in start)]
    assert chosen(unary_costs(pair(target, source, radii), {name: 1.0}), radii, name) == {label[::-1]}


@pytest.mark.parametrize("name", EVERY)
def test_equal_images_agree_perfectly(name):
    # at bin centres, where a linear Parzen window puts an intensity into one bin
    image = (texture((16, 16, 16), 1) * (BINS - 1)).round() / (BINS - 1)
    # that of cross-correlation is 1 over all voxels, of which the supports weigh those near the edge less
    assert agreement(pair(image, image))[name] == pytest.approx(1, abs=0.1 if name == "ncc" else 0.05)


def test_mutual_information_of_equal_images_is_below_1_where_bins_share_intensities():
    image = texture((16, 16, 16), 1)
    found = agreement(pair(image, image))
    assert 0.5 < found["mi"] < 0.8
    assert found["sad"] == found["dwt"] == 1


def ball(radius):
    places = np.indices((32, 32, 32)) - 15.5
    return torch.tensor(np.sqrt((places**2).sum(0)) < radius)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("counted", "tolerance"),
    [
        pytest.param(None, 0.02, id="all"),
        pytest.param(ball(15), 0.02, id="44 %"),
        pytest.param(ball(10), 0.03, id="13 %"),
        pytest.param(ball(15) & ~ball(12), 0.03, id="shell of 22 %"),
        pytest.param(torch.rand((32, 32, 32), generator=torch.Generator().manual_seed(9)) < 0.04, 0.07, id="4 %"),
    ],
)
@pytest.mark.parametrize("kind", ["counted", "covered"])
def test_unrelated_images_agree_by_nothing(name, counted, tolerance, kind):
    images = [torch.rand((32, 32, 32), generator=torch.Generator().manual_seed(s)) for s in range(2)]
    # of other intensities, which a difference to the 0 beyond the mask would see
    images[0], images[1] = images[0] / 2 + 0.3, images[1] / 2 + 0.4
    assert agreement(pair(*images, **{kind: counted}))[name] == pytest.approx(0, abs=tolerance)


def test_unrelated_images_that_hardly_vary_under_a_small_mask_agree_by_nothing():
    # there one is brighter than the other, and all steps to what lies beyond the mask show that
    smooth = [
        ndimage.gaussian_filter(np.random.default_rng(s).normal(size=(32, 32, 32)), 3, mode="wrap") for s in range(48)
    ]
    images = [torch.tensor(0.5 + v / v.std() / 8, dtype=torch.float32).clamp(0, 1) for v in smooth]
    found = [agreement(pair(*two, counted=ball(2.5))) for two in zip(images[::2], images[1::2], strict=True)]
    for name in ("sad", "dwt"):
        assert np.mean([each[name] for each in found]) == pytest.approx(0, abs=0.08)


def test_mutual_information_is_that_of_the_joint_histogram():
    generator = np.random.default_rng(2)
    # intensities at bin centres, where linear windows put everything into one bin
    target = generator.integers(0, BINS, 20**3)
    source = np.clip(target + generator.integers(-1, 2, 20**3), 0, BINS - 1)
    joint = np.histogram2d(target, source, bins=BINS, range=[[-0.5, 15.5]] * 2)[0] / 20**3
    steps = [torch.tensor(v * 4) for v in (target, source)]
    np.testing.assert_allclose(joint_histogram(*steps).numpy(), joint, atol=1e-12)
    rows, columns = joint.sum(1), joint.sum(0)
    product = np.outer(rows, columns)
    mixed = 0.95 * joint + 0.05 * product
    information = (joint * np.log(mixed / product)).sum()
    entropy = min(-(p * np.log(p)).sum() for p in (rows, columns))
    images = [torch.tensor(v.reshape(20, 20, 20) / 15, dtype=torch.float32) for v in (target, source)]
    # one control point whose support is nearly flat over the image is the plain mean
    image = Lattice((20, 20, 20), (1.0, 1.0, 1.0))
    one = Lattice((1, 1, 1), (1e6, 1e6, 1e6))
    flat = bound(images[0][None], images[1][None], LabelSpace((0, 0, 0)), image, one)
    assert agreement(flat)["mi"] == pytest.approx(information / entropy, abs=1e-4)


def test_local_contrast_is_that_of_box_filters():
    values = texture((14, 12, 10), 3)
    mean, square = (ndimage.uniform_filter(v, (5, 3, 5)) for v in (values.numpy(), values.numpy() ** 2))
    expected = (values.numpy() - mean) / np.sqrt(square - mean**2 + NOISE**2)
    found = local_contrast(values[None], None, (2, 1, 2))[0]
    inner = (slice(2, -2), slice(1, -1), slice(2, -2))
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-4)


def test_boxes_of_an_image_of_many_slabs_are_those_of_filters_that_end_with_the_image():
    radii, shape = (2, 3, 1), (9, 200, 230)
    assert shape[0] * shape[1] * shape[2] > 3 * VOXELS_AT_ONCE
    values, mask = texture(shape, 3), (texture(shape, 4) > 0.4)[None].float()

    def box(array):
        kernel = [np.ones(2 * radius + 1) for radius in radii]
        for axis, weights in enumerate(kernel):
            array = ndimage.convolve1d(array, weights, axis=axis, mode="constant")
        return array

    weight = mask[0].double().numpy()
    np.testing.assert_allclose(box_sums(mask, radii)[0], box(weight), atol=1e-4)
    total, array = box(weight).clip(1e-3), values.double().numpy()
    mean = box(array * weight) / total
    deviation = np.sqrt((box(array**2 * weight) / total - mean**2).clip(0) + NOISE**2)
    found = local_contrast(values[None], mask, radii)[0]
    np.testing.assert_allclose(found, (array - mean) / deviation * weight, atol=2e-4)


def test_local_contrast_does_not_see_what_is_masked():
    values, mask = texture((10, 10, 10), 4), torch.zeros(1, 10, 10, 10)
    mask[..., :6] = 1
    other = torch.where(mask[0] > 0, values, 0.3)
    found = [local_contrast(v[None], mask, (2, 2, 2)) for v in (values, other)]
    assert torch.allclose(*found, atol=1e-5)
    assert not found[0][..., 6:].any()


def test_the_self_similarity_is_that_of_its_definition():
    values = texture((12, 13, 14), 5).numpy()
    neighbours = [np.eye(3, dtype=int)[axis] * sign for axis in range(3) for sign in (-1, 1)]
    distances = []
    for i, p in enumerate(neighbours):
        for q in neighbours[i + 1 :]:
            if not (p + q).any():
                continue
            # np.roll by -p reads p further on; its wrapped border is left out below
            difference = np.roll(values, -p, (0, 1, 2)) - np.roll(values, -q, (0, 1, 2))
            distances.append(ndimage.uniform_filter(difference**2, 3))
    distances = np.stack(distances) - np.min(distances, axis=0)
    expected = np.exp(-distances / distances.mean(0))
    found = self_similarity(torch.from_numpy(values)[None], None, (1, 1, 1)).numpy()
    assert found.shape == (12, 12, 13, 14)
    inner = (slice(None), *[slice(2, -2)] * 3)
    np.testing.assert_allclose(found[inner], expected[inner], atol=1e-3)


def test_the_self_similarity_does_not_see_the_sign_of_contrast():
    values = texture((10, 10, 10), 6)[None]
    torch.testing.assert_close(self_similarity(1 - values, None, (1, 1, 1)), self_similarity(values, None, (1, 1, 1)))
    assert len(self_similarity(values[:, :1], None, (0, 1, 1))) == 4


def test_cross_correlation_is_that_of_the_contrasts_over_the_support():
    target, source = texture((12, 10, 8), 3), texture((12, 10, 8), 4)
    image = pair(target, source)
    costs = unary_costs(image, {"ncc": 1.0})[0, 0, 0]
    ours, theirs = image.target_contrast[0].numpy(), image.source_contrast[0].numpy()
    along_z, along_y, along_x = (m.numpy() for m in lattice.support(image.image, image.control))
    for k, j, i in itertools.product(*(range(n) for n in image.control.shape)):
        product = np.einsum("z,y,x,zyx->", along_z[k], along_y[j], along_x[i], ours * theirs)
        expected = product / np.sqrt((ours**2).mean() * (theirs**2).mean())
        assert 1 - float(costs[k, j, i]) == pytest.approx(expected, abs=1e-4)


def test_cross_correlation_does_not_see_brightness_and_contrast():
    image = texture((12, 12, 12), 5)
    itself, other = (agreement(pair(image, v))["ncc"] for v in (image, 0.2 + 0.5 * image))
    assert other > 0.99 * itself > 0.8


@pytest.mark.parametrize("shape", [(8, 12, 16), (7, 9, 6), (1, 8, 10)])
def test_haar_coefficients_are_those_of_pywavelets(shape):
    values = np.random.default_rng(6).normal(size=shape)
    axes = tuple(axis for axis, n in enumerate(shape) if n > 1)
    coefficients = pywt.wavedecn(values, "haar", mode="symmetric", level=2, axes=axes)
    ours = decompose(torch.tensor(values))
    for level, details in enumerate(reversed(coefficients[1:])):
        expected = {tuple(np.round(np.sort(v.ravel()), 9)) for v in details.values()}
        bands = ours[level] if level == 0 else ours[level][:-1]
        assert {tuple(np.round(np.sort(v.ravel()), 9)) for v in bands.numpy()} == expected
    np.testing.assert_allclose(ours[-1][-1].numpy(), coefficients[0], atol=1e-12)


def test_wavelet_metric_is_the_l1_distance_of_pywavelets_coefficients():
    target, source = texture((16, 16, 16), 7), texture((16, 16, 16), 8)
    image = Lattice((16, 16, 16), (1.0, 1.0, 1.0))
    flat = bound(target[None], source[None], LabelSpace((0, 0, 0)), image, Lattice((1, 1, 1), (1e6, 1e6, 1e6)))

    def bands(values):
        approximation, *details = pywt.wavedecn(values.numpy().astype(float), "haar", level=2)
        return [approximation.ravel(), *(v.ravel() for level in details for v in level.values())]

    distance = sum(np.abs(a - b).sum() for a, b in zip(bands(target), bands(source), strict=True))
    unrelated = sum(
        np.abs(a[:, None] - b[None, :]).mean() * len(a) for a, b in zip(bands(target), bands(source), strict=True)
    )
    assert 1 - agreement(flat)["dwt"] == pytest.approx(distance / unrelated, rel=0.02)


def test_expected_difference_is_the_mean_over_all_pairs():
    generator = np.random.default_rng(9)
    a, b = generator.normal(size=400), generator.gamma(2, size=300)
    expected = np.abs(a[:, None] - b[None, :]).mean()
    assert expected_difference(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", EVERY)
def test_what_does_not_count_costs_nothing_and_what_is_not_covered_costs_one(name):
    target, source = texture((16, 16, 16), 10), texture((16, 16, 16), 11)
    nowhere = torch.zeros((16, 16, 16), dtype=torch.bool)
    masked = unary_costs(pair(target, source, counted=nowhere), {name: 1.0})
    uncovered = unary_costs(pair(target, source, covered=nowhere), {name: 1.0})
    assert torch.allclose(masked, torch.zeros_like(masked), atol=1e-5)
    assert torch.allclose(uncovered, torch.ones_like(uncovered), atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_intensities_outside_the_mask_do_not_matter(name):
    target, source = texture((16, 16, 16), 12), texture((18, 18, 18), 13)
    counted = torch.zeros((16, 16, 16), dtype=torch.bool)
    counted[:, :, :9] = True
    other = torch.where(counted, target, torch.rand(16, 16, 16, generator=torch.Generator().manual_seed(0)))
    costs = [unary_costs(pair(t, source, (1, 1, 1), counted=counted), {name: 1.0}) for t in (target, other)]
    assert torch.allclose(*costs, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_where_the_source_is_not_covered_does_not_matter(name):
    target, source = texture((16, 16, 16), 12), texture((18, 18, 18), 13)
    covered = torch.zeros((18, 18, 18), dtype=torch.bool)
    covered[:, :, :11] = True
    known = pair(target, source, (1, 1, 1), covered=covered)
    anything = torch.rand(18, 18, 18, generator=torch.Generator().manual_seed(0))
    other = replace(
        known,
        **{
            part: torch.where(covered, getattr(known, part), anything)
            for part in ("source", "source_contrast", "source_descriptor")
        },
    )
    assert torch.allclose(*(unary_costs(images, {name: 1.0}) for images in (known, other)), atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_channels_are_averaged(name):
    target, source = texture((12, 12, 12), 14), texture((14, 14, 14), 15)
    one = unary_costs(pair(target, source, (1, 1, 1)), {name: 1.0})
    twice = pair(torch.stack([target, target]), torch.stack([source, source]), (1, 1, 1))
    assert torch.allclose(unary_costs(twice, {name: 1.0}), one, atol=1e-5)


def test_only_the_ratio_of_the_weights_matters():
    target, source = texture((12, 12, 12), 16), texture((14, 14, 14), 17)
    bound = pair(target, source, (1, 1, 1))
    single = {name: unary_costs(bound, {name: 3.0}) for name in EVERY}
    mixed = unary_costs(bound, {"mi": 2.0, "ncc": 6.0, "sad": 0.0})
    assert torch.allclose(mixed, 0.25 * single["mi"] + 0.75 * single["ncc"], atol=1e-5)


def test_the_costs_of_several_metrics_are_the_sum_of_theirs_whether_weights_are_numbers_or_one_per_control_point():
    covered = torch.ones(14, 14, 14, dtype=torch.bool)
    covered[:, :, :4] = False
    bound = pair(texture((12, 12, 12), 16), texture((14, 14, 14), 17), (1, 1, 1), covered=covered)
    weights = dict(zip(EVERY, (0.1, 0.3, 0.2, 0.25, 0.15), strict=True))
    own = sum(weight * unary_costs(bound, {name: 1.0}) for name, weight in weights.items())
    at_points = {name: torch.full(bound.control.shape, weight) for name, weight in weights.items()}
    for mixture in (weights, at_points, weights | {"mi": at_points["mi"]}):
        assert torch.allclose(weighted_costs(bound, mixture), own, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_two_dimensional_images_are_compared(name):
    large = texture((1, 40, 40), 18)
    costs = unary_costs(pair(large[:, 4:36, 4:36], large[:, 3:39, 1:37], (0, 2, 2)), {name: 1.0})
    assert chosen(costs, (0, 2, 2), name) == {(1, -1, 0)}


@pytest.mark.parametrize("name", EVERY)
def test_constant_images_cost_the_same_everywhere(name):
    flat = torch.full((12, 12, 12), 0.5)
    costs = unary_costs(pair(flat, torch.full((14, 14, 14), 0.5), (1, 1, 1)), {name: 1.0})
    assert torch.isfinite(costs).all()
    assert float(costs.max() - costs.min()) < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_air_gains_nothing_by_leaving_the_field_of_view(name):
    # A body of texture with flat air on all sides, on itself; the source ends with the target.
    image = torch.zeros((20, 20, 20))
    image[6:14, 6:14, 6:14] = 0.2 + 0.8 * texture((8, 8, 8), 19)
    covered = torch.zeros((24, 24, 24), dtype=torch.bool)
    covered[2:22, 2:22, 2:22] = True
    around = torch.nn.functional.pad(image, (2,) * 6)
    costs = unary_costs(pair(image, around, (2, 2, 2), covered=covered), {name: 1.0})
    # The control points at the corners see nothing but air, and a part of it leaves with every label but the middle.
    at_corners = costs[..., [0, 0, -1], [0, -1, -1], [0, 0, -1]]
    assert float((at_corners - at_corners[2, 2, 2]).min()) > -0.01
