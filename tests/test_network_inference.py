"""Class probabilities of whole volumes, against networks whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from atlasnet.errors import InputError
from atlasnet.network import UNet, probabilities
from atlasnet.network import inference as inference_module
from atlasnet.network.weights import channels_last


class Copy(nn.Module):
    """Logits are a channel of the input and its negative."""

    context = 0

    def __init__(self, spatial_dims: int = 2, context: int = 0, channel: int = 0, divisibility: int = 8) -> None:
        super().__init__()
        self.spatial_dims, self.context, self.divisibility, self.channel = spatial_dims, context, divisibility, channel

    def forward(self, x: Tensor) -> Tensor:
        assert all(side % self.divisibility == 0 for side in x.shape[2:])
        value = x[:, self.channel]
        return torch.stack([value, -value], 1)


class Unsure(nn.Module):
    """Says class 0 in the middle half of a block along z, and class 1 near its ends, beyond which it sees nothing."""

    spatial_dims, context, divisibility = 3, 0, 8

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.full_like(x[:, 0], -20.0)
        middle[:, x.shape[2] // 4 : -x.shape[2] // 4] = 20.0
        return torch.stack([middle, -middle], 1)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 11, 21, 13)).astype(np.float32)


def expected(values: np.ndarray) -> np.ndarray:
    return softmax(np.stack([values, -values]), axis=0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_padding_is_cut_off_again(image: np.ndarray, spatial_dims: int) -> None:
    np.testing.assert_allclose(probabilities(Copy(spatial_dims), image), expected(image[0]), atol=1e-6)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
def test_the_outermost_slice_stands_for_its_missing_neighbours(image: np.ndarray, offset: int) -> None:
    neighbour = image[0, np.clip(np.arange(11) + offset, 0, 10)]
    found = probabilities(Copy(context=2, channel=offset + 2), image, batch=3)
    np.testing.assert_allclose(found, expected(neighbour), atol=1e-6)


def test_channels_of_a_slice_lie_side_by_side() -> None:
    image = np.random.default_rng(1).normal(size=(2, 5, 8, 8)).astype(np.float32)
    found = probabilities(Copy(context=1, channel=3), image)  # slice 0 of -1..1, channel 1
    np.testing.assert_allclose(found, expected(image[1]), atol=1e-6)


def test_overlapping_blocks_agree_with_the_whole(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_module, "BLOCK_VOXELS", 24 * 14 * 4)
    found = probabilities(Copy(3, divisibility=2), image, batch=2)
    np.testing.assert_allclose(found, expected(image[0]), atol=1e-6)


def test_of_blocks_that_overlap_the_one_is_believed_that_has_a_voxel_in_its_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference_module, "BLOCK_VOXELS", 16**3)
    found = probabilities(Unsure(), np.zeros((1, 40, 8, 8), np.float32))
    assert found[0, 4:-4].min() > 0.55
    assert max(found[0, :4].max(), found[0, -4:].max()) < 0.01


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_the_batch_does_not_change_the_result(image: np.ndarray, batch: int) -> None:
    torch.manual_seed(0)
    network = channels_last(UNet(1, 3, width=0.5, depth=2))
    np.testing.assert_allclose(
        probabilities(network, image, batch=batch), probabilities(network, image, batch=3), atol=1e-5
    )


def test_probabilities_are_float32_and_sum_to_one(image: np.ndarray) -> None:
    torch.manual_seed(0)
    found = probabilities(UNet(1, 4, width=0.5, depth=3), image)
    assert found.dtype == np.float32
    assert found.shape == (4, 11, 21, 13)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)


def test_a_single_pixel_is_classified() -> None:
    assert probabilities(UNet(1, 2, width=0.5, depth=3), np.ones((1, 1, 1, 1), np.float32)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 0, 4, 4)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be classified"):
        probabilities(Copy(), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("told", "wanted"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, None)],
)
def test_a_processor_that_computes_in_bfloat16_trains_in_it(
    told: dict[str, bool], wanted: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    assert inference_module.reduced_precision(torch.device("cpu"), 2) == wanted
    assert inference_module.reduced_precision(torch.device("cpu"), 3) is None


def test_a_torch_that_does_not_tell_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert inference_module.reduced_precision(torch.device("cpu"), 2) is None


def test_probabilities_do_not_depend_on_what_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = channels_last(UNet(1, 3, width=0.25))
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    found = []
    for can in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: {"avx512_bf16": can})
        found.append(probabilities(module, image).tobytes())
    assert found[0] == found[1]
