"""What a registration takes in memory, from the sizes of the images alone: known before they are read."""

from __future__ import annotations

from atlasnet.registration.operator import Operator
from atlasnet.registration.pyramid import registration_grid
from atlasnet.registration.register import WITHOUT_SPACING
from atlasnet.registration.settings import MRFSettings
from atlasnet.volume import Grid

# Bytes, as measured with float32 images; other types take less, or the time of a conversion in which they take more.
SCAN_BYTES = 18
"""Per voxel and channel of an image at work: as it was read and turned, as networks see it, and as it is reduced."""
TARGET_BYTES = 32
"""Per voxel of a target: the displacement there, its Jacobians, and what they are made of; of a source, whose inverse
field is written, likewise."""
GRID_BYTES = 350
"""Per voxel of the grid on which images are registered."""
FIXED_BYTES = 2**28
"""Work spaces of libraries and threads, whatever the images."""
THREAD_BYTES = 72 * 2**20
"""Of every registration at a time, whatever the images: the stack of its thread and what glibc sets apart for it, most
of which is address space only."""


def registration_bytes(source: Grid, target: Grid, channels: int, operator: Operator, *, fields: bool = False) -> int:
    """The memory that a registration takes, beyond what the process has, the images included.

    Args:
        source: grid of the image that is warped.
        target: of that onto which it is.
        channels: of each.
        operator: registers.
        fields: whether displacement fields are written of both directions.
    """
    images = SCAN_BYTES * channels * (source.voxels + target.voxels)
    inverse = TARGET_BYTES * source.voxels if fields else 0
    return FIXED_BYTES + images + inverse + work_bytes(target, operator)


def work_bytes(target: Grid, operator: Operator) -> int:
    """What the search for a map onto a target takes beside the images."""
    grid = 0
    if operator.name not in WITHOUT_SPACING:
        settings = operator.settings()
        wanted = settings.get("spacing"), settings.get("voxels", MRFSettings().voxels)
        grid = registration_grid(target, *wanted).voxels
    return TARGET_BYTES * target.voxels + GRID_BYTES * grid
