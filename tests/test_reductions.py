"""Sums and products against NumPy's, and bit for bit on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from atlasnet.execution.reductions import CHUNK, batched_product, ordered_sum
from atlasnet.registration.label_space import LabelSpace
from atlasnet.volume.sampling import along_axes

THREADS = (1, 2, 3, 5, 16)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def on_threads(work: Callable[[], Tensor]) -> list[Tensor]:
    results = []
    for threads in THREADS:
        torch.set_num_threads(threads)
        results.append(work())
        assert torch.get_num_threads() == threads
    return results


@pytest.mark.parametrize(
    ("shape", "kept"),
    [((), 0), ((0,), 0), ((2, 0), 1), ((5, 7), 0), ((5, 7), 1), ((3, 40, 50, 61), 0), ((3, 40, 50, 61), 1),
     ((1, 4 * CHUNK), 1), ((CHUNK + 1,), 0), ((2, 2), 2)],
)  # fmt: skip
def test_a_sum_is_numpys(shape: tuple[int, ...], kept: int) -> None:
    values = random(*shape)
    wanted = values.double().numpy().sum(tuple(range(kept, len(shape))))
    found = ordered_sum(values, kept=kept)
    assert found.dtype == values.dtype
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", [(70_001,), (48, 62, 62), (3, 33, 42, 42), (200, 100, 97)])
def test_a_sum_is_the_same_bits_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    values = random(*shape) - 0.3
    for turned in (values, values.movedim(0, -1)):
        first, *others = on_threads(lambda turned=turned: ordered_sum(turned))  # type: ignore[misc] # bound at once
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("lead", "shape"),
    [((), (7, 23, 63)), ((), (63, 49, 50)), ((3,), (33, 42, 42)), ((), (1, 90, 80)), ((2, 1, 3), (12, 15, 14))],
)
def test_products_along_the_axes_are_numpys_and_the_same_bits_on_any_number_of_threads(
    lead: tuple[int, ...], shape: tuple[int, int, int]
) -> None:
    array = random(*lead, *shape)
    z, y, x = (random(n // 3 + 2, n) for n in shape)
    first, *others = on_threads(lambda: along_axes((z, y, x), array))
    wanted = np.einsum("az,by,cx,...zyx->...abc", *(m.double().numpy() for m in (z, y, x, array)), optimize=True)
    np.testing.assert_allclose(first.numpy(), wanted, rtol=1e-5)
    assert all(torch.equal(first, other) for other in others)


def test_products_of_interleaved_channels_are_the_same_bits_on_any_number_of_threads() -> None:
    array = random(1, 85, 85, 9).movedim(-1, 0)
    matrices = (random(1, 1), random(27, 85), random(27, 85))
    first, *others = on_threads(lambda: along_axes(matrices, array))
    assert all(torch.equal(first, other) for other in (*others, along_axes(matrices, array.contiguous())))


def test_a_product_of_nothing_is_nothing() -> None:
    assert batched_product(random(0, 3, 4), random(0, 4, 5)).shape == (0, 3, 5)


def test_expectations_are_the_same_bits_on_any_number_of_threads() -> None:
    costs, space = random(5, 5, 5, 12, 14, 15), LabelSpace((2, 2, 2))
    first, *others = on_threads(lambda: space.expectation(costs, 0.02))
    assert all(torch.equal(first, other) for other in others)
