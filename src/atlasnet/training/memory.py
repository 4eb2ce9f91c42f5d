"""What registering and mapping a cohort takes in memory, from the sizes of its scans alone."""

from __future__ import annotations

from collections.abc import Sequence

from atlasnet.registration import FIXED_BYTES, SCAN_BYTES, Operator, work_bytes
from atlasnet.volume import Grid

# Bytes per voxel: of a reference while it is mapped, and of an atlas's channel, which stays.
_REFERENCE, _ATLAS = 8, 4


def mapping_bytes(scans: Sequence[Grid], channels: int, atlases: int, operator: Operator) -> int:
    """The memory that mapping every scan onto atlases takes, beyond what the process has.

    The largest scans are taken for the atlases. What a step of a network takes does not depend on the scans: batches
    are bounded by the recipe.

    Args:
        scans: grids of the subjects.
        channels: of each.
        atlases: how many.
        operator: registers.
    """
    largest = sorted(scans, key=lambda grid: -grid.voxels)
    kept = _ATLAS * channels * sum(grid.voxels for grid in largest[:atlases])
    scan = (SCAN_BYTES * channels + _REFERENCE) * largest[0].voxels
    return FIXED_BYTES + kept + scan + max(work_bytes(grid, operator) for grid in largest[:atlases])
