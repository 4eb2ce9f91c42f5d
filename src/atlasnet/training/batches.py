"""Which slices a network sees when, and how they become tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.network.inference import block_depth
from atlasnet.network.slices import edge_indices, neighbours, padded_side
from atlasnet.network.spec import Traits
from atlasnet.training.loss import UNCOUNTED
from atlasnet.training.recipe import Recipe
from atlasnet.training.store import IGNORED, MappedCase, SliceTable

T = TypeVar("T")


def epoch_random(seed: int, key: str, epoch: int) -> np.random.Generator:
    """The random numbers of one epoch: a function of these three alone, so a resumed training draws the same."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}\n{key}\n{epoch}".encode()).digest()[:16], "big")
    return np.random.default_rng(entropy)


def typical_sample(cases: Sequence[MappedCase], traits: Traits) -> tuple[int, int]:
    """What a network sees of the largest case at once: voxels of a padded slice or block, and how many slices it has.

    A batch is sized by the one, the number of steps that show every slice by the other.
    """
    largest, slices = 0, 1
    for case in cases:
        depth, height, width = case.labels.shape
        plane = padded_side(height, traits.divisibility) * padded_side(width, traits.divisibility)
        planes = 1 if traits.spatial_dims == 2 else block_depth(plane, depth, traits.divisibility)
        if plane * planes > largest:
            largest, slices = plane * planes, min(planes, depth)
    return largest, slices


def epoch_batches(
    table: SliceTable, recipe: Recipe, batch: int, random: np.random.Generator, *, slices: int = 1
) -> Iterator[NDArray[np.intp]]:
    """Indices into ``table`` for every step of one epoch, of the slices or of the blocks of so many ``slices``.

    One pass deals each slice once, in batches that differ by one slice at most, and of blocks as many as hold together
    the slices of all. With a fixed number of iterations each
    batch takes ``recipe.foreground`` of its slices from those that hold a foreground class, drawn class by class, and
    the rest from a shuffled deck that is dealt again and again.
    """
    steps = recipe.steps(len(table), batch * slices)
    if recipe.iterations is None:
        yield from np.array_split(random.permutation(len(table))[: -(-len(table) // slices)], steps)
        return
    holders = [np.flatnonzero(table.counts[:, c]) for c in range(1, table.counts.shape[1])]
    holders = [slices for slices in holders if len(slices)]
    chosen = round(recipe.foreground * batch) if holders else 0
    deck = np.concatenate(
        [random.permutation(len(table)) for _ in range(-(-steps * (batch - chosen) // len(table)) or 1)]
    )
    for step in range(steps):
        classes = random.integers(len(holders), size=chosen) if chosen else np.empty(0, dtype=np.intp)
        drawn = [int(random.choice(holders[c])) for c in classes]
        rest = deck[step * (batch - chosen) : (step + 1) * (batch - chosen)]
        yield np.concatenate([np.asarray(drawn, dtype=np.intp), rest.astype(np.intp)])


def load_slices(
    cases: Sequence[MappedCase], table: SliceTable, rows: NDArray[np.intp], traits: Traits
) -> tuple[Tensor, Tensor]:
    """The slices ``rows`` of ``table`` for a 2-D network, padded to one size.

    Returns:
        Images (b, c * (2 * context + 1), y, x) as they are stored, padded with their edge; labels (b, 1, y, x) uint8,
        `IGNORED` in the padding. What a network takes is made of them by `network_inputs`.
    """
    chosen = [(cases[table.case[row]], int(table.z[row])) for row in rows]
    height, width, stored = _common([case for case, _ in chosen], traits)
    channels = chosen[0][0].image.shape[0]
    images = np.empty((len(rows), traits.input_channels(channels), height, width), dtype=stored)
    labels = np.full((len(rows), 1, height, width), IGNORED, dtype=np.uint8)
    for row, (case, z) in enumerate(chosen):
        depth, y, x = case.labels.shape
        around = neighbours([z], traits.context, depth)[0]
        stack = case.image[:, around].transpose(1, 0, 2, 3).reshape(-1, y, x)
        images[row] = _padded(stack, height, width)
        labels[row, 0, :y, :x] = case.labels[z]
    return torch.from_numpy(images), torch.from_numpy(labels)


def load_blocks(
    cases: Sequence[MappedCase],
    table: SliceTable,
    rows: NDArray[np.intp],
    traits: Traits,
    random: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Blocks for a 3-D network, each at a random position that holds the slice of its row.

    Returns:
        Images (b, c, z, y, x) and labels (b, z, y, x) uint8, padded as by `load_slices`.
    """
    chosen = [(cases[table.case[row]], int(table.z[row])) for row in rows]
    height, width, stored = _common([case for case, _ in chosen], traits)
    deepest = max(case.labels.shape[0] for case, _ in chosen)
    depth = block_depth(height * width, deepest, traits.divisibility)
    images = np.empty((len(rows), chosen[0][0].image.shape[0], depth, height, width), dtype=stored)
    labels = np.full((len(rows), depth, height, width), IGNORED, dtype=np.uint8)
    for row, (case, z) in enumerate(chosen):
        slices, y, x = case.labels.shape
        lowest, highest = max(0, z - depth + 1), max(0, min(z, slices - depth))
        start = int(random.integers(min(lowest, highest), highest + 1))
        stop = min(slices, start + depth)
        planes = np.minimum(np.arange(start, start + depth), slices - 1)
        images[row] = _padded(case.image[:, planes], height, width)
        labels[row, : stop - start, :y, :x] = case.labels[start:stop]
    return torch.from_numpy(images), torch.from_numpy(labels)


def network_inputs(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images in float32, and class indices int64, `UNCOUNTED` wherever a voxel does not count; on the device of both.

    A GPU makes them itself: a quarter of the bytes has to reach it.
    """
    return images.to(torch.float32), labels.to(torch.int64).masked_fill_(labels == IGNORED, UNCOUNTED)


def ahead(batches: Iterator[T]) -> Iterator[T]:
    """The same batches; a thread makes the next one while one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def _common(cases: Sequence[MappedCase], traits: Traits) -> tuple[int, int, np.dtype[Any]]:
    """The size (y, x) that slices of all these are padded to, and the type of the most precise of them."""
    height, width = (padded_side(max(case.labels.shape[a] for case in cases), traits.divisibility) for a in (1, 2))
    return height, width, np.result_type(*(case.image.dtype for case in cases))


def _padded(slices: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(..., y, x) continued with its edge to (..., height, width); as it is where it is as large."""
    y, x = slices.shape[-2:]
    if (y, x) == (height, width):
        return slices
    return slices[..., edge_indices(y, height), :][..., edge_indices(x, width)]
