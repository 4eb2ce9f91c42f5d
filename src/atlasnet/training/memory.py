"""What a training takes in memory: mapping a cohort, from the sizes of its scans alone, and a step of a network."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlasnet.network.slices import padded_side
from atlasnet.network.spec import Traits
from atlasnet.registration import FIXED_BYTES, SCAN_BYTES, Operator, work_bytes
from atlasnet.training.loss import segmentation_loss
from atlasnet.volume import Grid

# Bytes per voxel: of a reference while it is mapped, of an atlas's channel, which stays, and of a mapped channel, in
# the precision in which it is made and in that in which it is stored.
_REFERENCE, _ATLAS, _MAPPED = 8, 4, 4 + 2
# What a step holds beside the tensors that are kept for its way back, measured on the networks of the package: what is
# under way, in tensors as large as the largest, and the rest, in bytes.
_UNDER_WAY, _REST = 5, 80 * 2**20


def measuring_bytes(scans: Sequence[Grid], channels: int) -> int:
    """The memory that measuring each scan and its reference for a plan takes, beyond what the process has."""
    return FIXED_BYTES + (SCAN_BYTES * channels + _REFERENCE) * max(grid.voxels for grid in scans)


def mapping_bytes(
    scans: Sequence[Grid], channels: int, atlases: int, operator: Operator, spacing: Sequence[float] | None = None
) -> int:
    """The memory that mapping every scan onto atlases takes, beyond what the process has.

    The largest scans are taken for the atlases.

    Args:
        scans: grids of the subjects.
        channels: of each.
        atlases: how many.
        operator: registers.
        spacing: of the grid on which networks work (x, y, z; mm), where they see whole scans; None where they see a
            region, which is known, and for the plan's spacing small, when the subjects are registered.
    """
    largest = sorted(scans, key=lambda grid: -grid.voxels)
    kept = _ATLAS * channels * sum(grid.voxels for grid in largest[:atlases])
    scan = (SCAN_BYTES * channels + _REFERENCE) * largest[0].voxels
    mapped = 0
    if spacing is not None:
        mapped = (_MAPPED * channels + _REFERENCE) * largest[0].with_spacing(spacing).voxels
    return FIXED_BYTES + kept + scan + max(mapped, *(work_bytes(grid, operator) for grid in largest[:atlases]))


def step_bytes(
    module: nn.Module, traits: Traits, channels: int, voxels: int, shown: NDArray[np.int64] | None = None
) -> float:
    """The memory that a step of the optimiser takes on the CPU, beyond what the process has.

    The tensors that autograd keeps are counted on the smallest input of the network. Those that grow with the input are
    as large for another one as it has more voxels.

    Args:
        module: the network; it is left as it is.
        traits: what it declares.
        channels: of an image.
        voxels: of a whole batch, padding included.
        shown: (cases, classes) the class that stands for each, see `segmentation_loss`, where not all were annotated in
            all cases; the batch is taken to be of the case that has the fewest.
    """
    side = padded_side(1, traits.divisibility)
    trial = copy.deepcopy(module).cpu().train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*trial.parameters(), *trial.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    shape = (side,) * traits.spatial_dims
    if shown is not None:
        fewest = int((shown != np.arange(shown.shape[1])).sum(1).argmax())
        shown = shown[[fewest, fewest]]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = trial(torch.zeros(2, traits.input_channels(channels), *shape))
        target = torch.zeros(2, *shape, dtype=torch.int64)
        stands = None if shown is None else torch.from_numpy(shown)
        loss = segmentation_loss(logits, target, None, dice=True, shown=stands)
    weights = sum(parameter.nbytes for parameter in trial.parameters())
    growth = voxels / (2 * math.prod(shape))
    del loss  # the tensors lived as long as it did, hence no two at one address
    return growth * (sum(kept.values()) + _UNDER_WAY * max(kept.values())) + 2 * weights + _REST
