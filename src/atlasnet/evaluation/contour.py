"""Contours of masks and the distances between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from atlasnet.volume.volume import bounding_box

Mask = NDArray[np.bool_]
Float = NDArray[np.float64]

# A distance of exactly the tolerance counts as within it, whatever the rounding of a spacing such as 0.1 mm.
_ROUNDING = 1e-9


def contour(mask: Mask, ignored: Mask | None = None) -> Mask:
    """The voxels of ``mask`` that have a face neighbour outside it, as in MONAI and DeepMind's surface-distance.

    What lies beyond the array is outside the mask. Along an axis of length one there are no neighbours, so that a
    single slice has its 2-D contour.

    Args:
        mask: (z, y, x) or (y, x).
        ignored: voxels that nobody annotated, disjoint from ``mask``; whether the structure ends there is unknown, so
            that they make no contour.

    Returns:
        A mask of the same shape.
    """
    solid = np.pad(mask if ignored is None else mask | ignored, 1)
    centre = [slice(1, -1)] * mask.ndim
    inner = solid[tuple(centre)].copy()
    for axis, length in enumerate(mask.shape):
        if length == 1:
            continue
        for shifted in (slice(2, None), slice(0, -2)):
            inner &= solid[(*centre[:axis], shifted, *centre[axis + 1 :])]
    return mask & ~inner


@dataclass(frozen=True, eq=False)
class ContourDistances:
    """How far each contour voxel of one mask lies from the nearest contour voxel of the other, centre to centre.

    Args:
        from_prediction: (n,) one distance per contour voxel of the prediction.
        from_reference: (m,) one distance per contour voxel of the reference; both are empty unless both masks have one.
        agree_on_absence: neither mask has a contour, and they are equal: empty, or all that was annotated.
        one_has_contour: one of the masks has a contour, and the other none.
    """

    from_prediction: Float
    from_reference: Float
    agree_on_absence: bool = False
    one_has_contour: bool = False

    @classmethod
    def between(
        cls, prediction: Mask, reference: Mask, spacing: Sequence[float] | Float, ignored: Mask | None = None
    ) -> ContourDistances:
        """Measure two masks of one shape, (z, y, x) or (y, x).

        Args:
            prediction: what was found.
            reference: what is true.
            spacing: distance between voxel centres in the order of the array's axes; all distances have its unit.
            ignored: voxels that nobody annotated, disjoint from both masks.
        """
        box = bounding_box(prediction | reference)
        if box is None:
            return cls(np.empty(0), np.empty(0), agree_on_absence=True)
        hidden = None if ignored is None else ignored[box]
        scale = np.asarray(spacing, dtype=np.float64)
        ours = np.argwhere(contour(prediction[box], hidden)) * scale
        theirs = np.argwhere(contour(reference[box], hidden)) * scale
        if not len(ours) or not len(theirs):
            # Scribbles may have no neighbour that was annotated: masks without a contour can differ.
            return cls(np.empty(0), np.empty(0), np.array_equal(prediction, reference), bool(len(ours) or len(theirs)))
        return cls(_nearest(ours, theirs), _nearest(theirs, ours))

    @property
    def defined(self) -> bool:
        """Whether both masks have a contour."""
        return bool(self.from_prediction.size)

    def hausdorff(self, percentile: float = 100.0) -> float | None:
        """The larger of the two directed Hausdorff distances, each the given percentile (linearly interpolated).

        0 where both contours are absent and the masks equal, None where only one is, or they differ.
        """
        if not self.defined:
            return 0.0 if self.agree_on_absence else None
        return float(max(np.percentile(d, percentile) for d in (self.from_prediction, self.from_reference)))

    def average(self) -> float | None:
        """The average symmetric distance: the mean over the contour voxels of both masks together.

        0 where both contours are absent and the masks equal, None where only one is, or they differ.
        """
        if not self.defined:
            return 0.0 if self.agree_on_absence else None
        return float(np.concatenate([self.from_prediction, self.from_reference]).mean())

    def surface_dice(self, tolerance: float) -> float | None:
        """The share of the contour voxels of both masks that lie within ``tolerance`` of the other contour.

        The measure of Nikolov et al. (2018) with a contour voxel as the unit of area, as MONAI computes it by default.
        1 where both contours are absent and the masks equal, 0 where only one is, None where both are and they differ.
        """
        if not self.defined:
            return 1.0 if self.agree_on_absence else 0.0 if self.one_has_contour else None
        limit = tolerance * (1 + _ROUNDING)
        within = np.count_nonzero(self.from_prediction <= limit) + np.count_nonzero(self.from_reference <= limit)
        return float(within / (self.from_prediction.size + self.from_reference.size))


def _nearest(points: Float, others: Float) -> Float:
    """(n,) distance of each of ``points`` (n, d) to the nearest of ``others`` (m, d)."""
    return np.asarray(KDTree(others, leafsize=32).query(points)[0], dtype=np.float64)
