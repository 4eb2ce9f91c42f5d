from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from atlasnet.errors import VolumeError
from atlasnet.volume.sampling import apply_affine, inside, lattice, sample, slabs


def random_points(count: int, shape: tuple[int, int, int], seed: int = 0, beyond: float = 2.0) -> torch.Tensor:
    high = np.array(shape[::-1]) - 1 + beyond
    return torch.from_numpy(np.random.default_rng(seed).uniform(-beyond, high, (count, 3))).float()


def scipy_linear(array: np.ndarray, points: torch.Tensor) -> np.ndarray:
    return ndimage.map_coordinates(array.astype(float), points.double().numpy().T[::-1], order=1, mode="nearest")


@pytest.mark.parametrize("shape", [(7, 9, 11), (1, 8, 6), (4, 1, 1), (1, 1, 1)])
def test_linear_sampling_agrees_with_scipy_inside_and_outside(shape):
    array = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    points = random_points(5000, shape)
    values = sample(torch.from_numpy(array), points)
    for channel, got in zip(array, values, strict=True):
        np.testing.assert_allclose(got.numpy(), scipy_linear(channel, points), atol=2e-5)


def test_linear_sampling_is_good_to_a_ten_thousandth_of_a_voxel_on_a_long_axis():
    ramp = torch.arange(1000.0).reshape(1, 1, 1, 1000)
    points = torch.zeros(4000, 3)
    points[:, 0] = torch.linspace(0, 999, 4000)
    assert (sample(ramp, points)[0] - points[:, 0]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_half_precision_are_read_at_places_of_single_precision(dtype):
    ramp = torch.arange(256.0).to(dtype).reshape(1, 1, 1, 256)  # exact in both
    points = torch.zeros(2000, 3)
    points[:, 0] = torch.linspace(0, 255, 2000)
    assert (sample(ramp, points)[0] - points[:, 0]).abs().max() < 1e-4


def test_nearest_sampling_rounds_halves_upwards_and_keeps_the_type():
    array = torch.arange(5, dtype=torch.int16).reshape(1, 1, 1, 5)
    points = torch.tensor([[0.5, 0, 0], [1.5, 0, 0], [1.49, 0, 0], [-3.0, 0, 0], [9.0, 0, 0]])
    values = sample(array, points, mode="nearest")
    assert values.dtype == torch.int16
    assert values.tolist() == [[1, 2, 1, 0, 4]]


@pytest.mark.parametrize("mode", ["linear", "nearest", "label"])
def test_fill_starts_half_a_voxel_beyond_the_outermost_centres(mode):
    array = torch.full((1, 3, 3, 3), 7.0)
    # Both faces belong to it, lest a mirrored array lose other voxels.
    points = torch.tensor([[-0.5, 1, 1], [-0.51, 1, 1], [1, 2.5, 1], [1, 2.51, 1], [1, 1, 40]])
    assert sample(array, points, mode=mode, fill=-1).tolist() == [[7, -1, 7, -1, -1]]
    assert inside(points, (3, 3, 3)).tolist() == [True, False, True, False, False]


def test_label_sampling_is_the_arg_max_of_interpolated_one_hot_maps():
    shape = (6, 7, 8)
    labels = np.random.default_rng(2).choice([0, 2, 5, 9], shape).astype(np.int16)
    points = random_points(20000, shape, seed=3)
    shares = np.stack([scipy_linear(labels == value, points) for value in (0, 2, 5, 9)])
    ranked = np.sort(shares, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-3
    expected = np.array([0, 2, 5, 9])[shares.argmax(0)]
    got = sample(torch.from_numpy(labels)[None], points, mode="label")[0].numpy()
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(got[clear], expected[clear])


@pytest.mark.parametrize("order", [(4, 1), (1, 4)])
def test_a_tie_between_labels_goes_to_the_lower(order):
    array = torch.tensor(order, dtype=torch.int32).reshape(1, 1, 1, 2)
    assert sample(array, torch.tensor([[0.5, 0.0, 0.0]]), mode="label").item() == 1


def test_labels_of_several_channels_are_those_of_each_however_many_points_are_taken_at_a_time(monkeypatch):
    shape = (5, 6, 7)
    labels = torch.from_numpy(np.random.default_rng(4).integers(0, 4, (2, *shape), dtype=np.uint8))
    points = random_points(1000, shape)
    alone = torch.cat([sample(channel[None], points, mode="label") for channel in labels])
    monkeypatch.setattr("atlasnet.volume.sampling.POINTS_AT_ONCE", 96)
    assert torch.equal(sample(labels, points, mode="label"), alone)


def test_the_result_does_not_depend_on_the_number_of_threads():
    array = torch.randn(2, 12, 13, 14, generator=torch.Generator().manual_seed(0))
    points = random_points(30001, (12, 13, 14))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = sample(array, points)
        torch.set_num_threads(3)
        three = sample(array, points)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_slabs_cover_every_slice_once(z, y, x, points):
    covered = [k for z0, z1 in slabs((z, y, x), points) for k in range(z0, z1)]
    assert covered == list(range(z))


def test_the_lattice_lists_index_points_x_first():
    points = lattice((5, 3, 4), 2, 4)
    assert points.shape == (2, 3, 4, 3)
    assert points[1, 2, 3].tolist() == [3, 2, 3]


def test_points_of_the_lattice_lie_component_by_component_and_stay_so():
    points = lattice((5, 3, 4), 2, 4)
    turned = np.array([[0.0, 1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1]])
    for moved in (points, apply_affine(np.diag([2.0, 3, 4, 1]), points), apply_affine(turned, points)):
        assert all(component.is_contiguous() for component in moved.unbind(-1))


def test_apply_affine_agrees_with_homogeneous_multiplication():
    rng = np.random.default_rng(4)
    matrix = np.eye(4)
    matrix[:3] = rng.standard_normal((3, 4))
    points = rng.standard_normal((6, 5, 3))
    expected = (np.concatenate([points, np.ones((6, 5, 1))], -1) @ matrix.T)[..., :3]
    np.testing.assert_allclose(apply_affine(matrix, torch.from_numpy(points)).numpy(), expected, atol=1e-12)
    scaling = np.diag([2.0, 3.0, -1.0, 1.0])
    np.testing.assert_allclose(apply_affine(scaling, torch.from_numpy(points)).numpy(), points * [2, 3, -1], atol=1e-12)


def test_wrong_shapes_and_modes_are_refused():
    with pytest.raises(VolumeError, match="index points"):
        sample(torch.zeros(3, 3, 3), torch.zeros(1, 3))
    with pytest.raises(VolumeError, match="index points"):
        sample(torch.zeros(1, 3, 3, 3), torch.zeros(1, 2))
    with pytest.raises(VolumeError, match="cubic"):
        sample(torch.zeros(1, 3, 3, 3), torch.zeros(1, 3), mode="cubic")
