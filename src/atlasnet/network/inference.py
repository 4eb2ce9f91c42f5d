"""From a mapped image to class probabilities, in batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlasnet.errors import InputError
from atlasnet.network.slices import edge_indices, neighbours, padded_side
from atlasnet.network.spec import Traits
from atlasnet.network.weights import tensor_channels_last

# Of a 2-D batch when none is given: 1 slice of 512 x 512, and enough small ones to fill the cores; on a GPU more.
BATCH_PIXELS = 2**18
GPU_BATCH_PIXELS = 2**20
BLOCK_VOXELS = 2**21  # of a block for a 3-D network, so that its activations fit a workstation


def reduced_precision(device: torch.device, spatial_dims: int) -> torch.dtype | None:
    """The type for mixed precision: bfloat16, or float16 on older accelerators; None where it would be slower.

    On a CPU it is bfloat16 where AVX512-BF16 or AMX computes in it, in training alone: see `probabilities`. Whether it
    has one of them is asked and not measured, so that a machine never does the same training in two ways. Old versions
    of PyTorch do not tell: float32 then. So it is in three dimensions, where the gradient of a convolution of few
    voxels holds whatever was in memory before (oneDNN in PyTorch 2.13): no two trainings are alike, and some diverge.
    """
    if device.type == "cpu":
        if spatial_dims == 3:
            return None
        told: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return torch.bfloat16 if told.get("avx512_bf16") or told.get("amx_bf16") else None
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):  # not every GPU of a machine need be of one kind
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def mixed(device: torch.device, spatial_dims: int) -> AbstractContextManager[Any]:
    """Mixed precision where the device has it."""
    dtype = reduced_precision(device, spatial_dims)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def block_depth(plane: int, depth: int, divisibility: int) -> int:
    """Slices (padded) of one block for a 3-D network on slices of ``plane`` pixels, ``depth`` of them in the volume."""
    fits = max(2, BLOCK_VOXELS // plane // divisibility) * divisibility
    return min(fits, padded_side(depth, divisibility))


def probabilities(
    module: nn.Module, image: NDArray[Any], *, batch: int | None = None, device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """Class probabilities of every voxel.

    Sides that are no multiple of the network's divisibility are padded with their edge, and cut again. A 3-D network
    gets blocks that overlap by half along z and fade into each other. On a CPU all is computed in float32: networks
    take seconds of a scan's time, and what they say should not depend on the kind of processor.

    Args:
        module: a network with the attributes of `Traits`, on ``device``.
        image: (c, z, y, x), normalised; slices along z.
        batch: slices (blocks) at once; by default as many as suit the cores' caches, or fill a GPU.
        device: where ``module`` is.

    Returns:
        (classes, z, y, x) float32, summing to 1 over the classes.

    Raises:
        InputError: the image is not (c, z, y, x) or empty, or the batch is not positive.
    """
    if image.ndim != 4 or image.size == 0:
        raise InputError("the image cannot be classified", expected="(c, z, y, x)", found=f"shape {image.shape}")
    if batch is not None and batch < 1:
        raise InputError("the batch must be positive", found=str(batch))
    traits = Traits.of(module)
    where = torch.device(device)
    module.eval()
    with torch.inference_mode():
        run = _softmax_of(module, where, traits.spatial_dims)
        if traits.spatial_dims == 3:
            return _by_blocks(run, traits, image, batch)
        pixels = BATCH_PIXELS if where.type == "cpu" else GPU_BATCH_PIXELS
        return _by_slices(run, traits, image, batch, pixels)


def _softmax_of(
    module: nn.Module, device: torch.device, spatial_dims: int
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    def run(array: NDArray[Any]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32)
        with nullcontext() if device.type == "cpu" else mixed(device, spatial_dims):
            logits = module(tensor_channels_last(inputs))
        result: NDArray[np.float32] = torch.softmax(logits.float(), 1).cpu().numpy()
        return result

    return run


def _by_slices(
    run: Callable[[NDArray[Any]], NDArray[np.float32]],
    traits: Traits,
    image: NDArray[Any],
    batch: int | None,
    pixels: int,
) -> NDArray[np.float32]:
    _, depth, height, width = image.shape
    rows = edge_indices(height, padded_side(height, traits.divisibility))
    columns = edge_indices(width, padded_side(width, traits.divisibility))
    batch = batch or max(1, pixels // (len(rows) * len(columns)))
    result: NDArray[np.float32] | None = None
    for start in range(0, depth, batch):
        stop = min(depth, start + batch)
        around = neighbours(range(start, stop), traits.context, depth)  # (b, n)
        stack = image[:, around][..., rows, :][..., columns].transpose(1, 2, 0, 3, 4)  # (b, n, c, y, x)
        answer = run(stack.reshape(stop - start, -1, len(rows), len(columns)))
        if result is None:
            result = np.empty((answer.shape[1], depth, height, width), dtype=np.float32)
        result[:, start:stop] = answer.transpose(1, 0, 2, 3)[..., :height, :width]
    assert result is not None  # an image has slices, see `probabilities`
    return result


def _by_blocks(
    run: Callable[[NDArray[Any]], NDArray[np.float32]], traits: Traits, image: NDArray[Any], batch: int | None
) -> NDArray[np.float32]:
    _, depth, height, width = image.shape
    rows = edge_indices(height, padded_side(height, traits.divisibility))
    columns = edge_indices(width, padded_side(width, traits.divisibility))
    block = block_depth(len(rows) * len(columns), depth, traits.divisibility)
    last = max(0, depth - block)
    starts = sorted({*range(0, last, max(1, block // 2)), last})
    fade = np.minimum(np.arange(block), np.arange(block)[::-1]).astype(np.float32) + 1  # highest in a block's middle
    result: NDArray[np.float32] | None = None
    total = np.zeros(depth, dtype=np.float32)
    batch = batch or 1
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        slices = [np.minimum(np.arange(start, start + block), depth - 1) for start in group]
        answer = run(np.stack([image[:, z][..., rows, :][..., columns] for z in slices]))
        if result is None:
            result = np.zeros((answer.shape[1], depth, height, width), dtype=np.float32)
        for start, probability in zip(group, answer, strict=True):
            stop = min(depth, start + block)
            weight = fade[: stop - start]
            result[:, start:stop] += weight[:, None, None] * probability[:, : stop - start, :height, :width]
            total[start:stop] += weight
    assert result is not None  # an image has slices, see `probabilities`
    result /= total[:, None, None]
    return result
