"""The block of voxels on which tissues are painted one over the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.phantom.solids import Points, Window

Array = NDArray[np.floating]

TISSUES = {
    "air": 0,
    "fat": 1,
    "muscle": 2,
    "bone": 3,
    "cartilage": 4,
    "lung": 5,
    "airway": 6,
    "vessel": 7,
    "heart": 8,
    "liver": 9,
    "stomach": 10,
    "spleen": 11,
    "mediastinum": 12,
    "table": 13,
    "canal": 14,
    "marrow": 15,
}

EVERYWHERE: Window = (slice(None), slice(None), slice(None))


@dataclass(frozen=True)
class Canvas:
    """HU and tissue of a block of voxels.

    Args:
        points: anatomical coordinates of the voxels.
        hu: (z, y, x) float32.
        tissue: (z, y, x) uint8, values of `TISSUES`.
        edge: width of the ramp from outside to inside a solid, mm: the partial volume effect.
    """

    points: Points
    hu: Array
    tissue: NDArray[np.uint8]
    edge: float

    def coverage(self, distance: Array) -> Array:
        """The share of each voxel that lies inside the solid at signed ``distance`` (mm)."""
        return np.asarray(np.clip(np.float32(0.5) - distance / np.float32(self.edge), 0, 1), np.float32)

    def paint(self, distance: Array, hu: Array | float, tissue: str, window: Window = EVERYWHERE) -> None:
        """Cover what is there with a solid given by its signed distance inside ``window``."""
        share, block = self.coverage(distance), self.hu[window]
        block += share * (hu - block)
        self.tissue[window][share > 0.5] = TISSUES[tissue]
