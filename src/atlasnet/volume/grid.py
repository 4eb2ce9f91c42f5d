"""`Grid`: where the voxels of an array lie in the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atlasnet.errors import VolumeError

GRID_TOLERANCE = 0.05
"""Voxels by which the corners of one and the same grid may lie apart in two headers, which tools round."""

_RIGHT_ANGLE = 2e-3  # cosine up to which two axes are at right angles, but for rounding

Float = NDArray[np.float64]

_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS, and back


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres in patient space.

    Arrays on a grid are indexed (z, y, x). World points are (x, y, z) in millimetres, LPS, as in ITK. ``affine`` takes
    the *reversed* array index (x, y, z, 1) to the world, so its columns are ITK's direction times spacing and its last
    one the origin.

    Args:
        shape: voxels along (z, y, x).
        affine: (4, 4), index (x, y, z, 1) to LPS mm; `from_ras` takes that of NIfTI.

    Raises:
        VolumeError: the shape has not three axes, or the affine is not of that form: finite, its axes of a length above
            0 and at right angles to each other.
    """

    shape: tuple[int, int, int]
    affine: Float

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        _check(self.shape, affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def from_parts(
        cls,
        shape: Sequence[int],
        spacing: ArrayLike = (1.0, 1.0, 1.0),
        origin: ArrayLike = (0.0, 0.0, 0.0),
        direction: ArrayLike | None = None,
    ) -> Grid:
        """Build from parts as ITK has them.

        Args:
            shape: voxels along (z, y, x).
            spacing: along (x, y, z), mm.
            origin: of voxel (0, 0, 0), (x, y, z) in LPS mm.
            direction: (3, 3), its columns the unit vectors of the index axes (x, y, z); None: the patient's axes.

        Raises:
            VolumeError: as for the class, or a spacing is not positive.
        """
        steps, origin = np.asarray(spacing, dtype=np.float64), np.asarray(origin, dtype=np.float64)
        axes = np.eye(3) if direction is None else np.asarray(direction, dtype=np.float64)
        if steps.shape not in ((), (3,)) or origin.shape not in ((), (3,)) or axes.size != 9:
            raise VolumeError(
                "a grid has three axes",
                expected="spacing and origin (x, y, z), a direction (3, 3)",
                found=f"shapes {steps.shape}, {origin.shape} and {axes.shape}",
                remedy="a 2-D image is one slice: shape (1, y, x), and a thickness as the third spacing",
            )
        if not (steps > 0).all():
            raise VolumeError(
                "the spacing is not positive",
                expected="millimetres above 0 along each axis; the direction says which way it runs",
                found=str(steps.tolist()),
            )
        affine = np.eye(4)
        affine[:3, :3] = axes.reshape(3, 3) * steps
        affine[:3, 3] = origin
        return cls(tuple(shape), affine)  # type: ignore[arg-type] # of another length it is refused

    @classmethod
    def from_ras(cls, shape: Sequence[int], affine: ArrayLike) -> Grid:
        """Build from ``shape`` (z, y, x) and NIfTI's affine (4, 4), index (x, y, z, 1) to RAS mm, as nibabel has it."""
        given = np.asarray(affine, dtype=np.float64)
        return cls(tuple(shape), _FLIP @ given if given.shape == (4, 4) else given)  # type: ignore[arg-type] # as above

    @property
    def ras(self) -> Float:
        """NIfTI's affine (4, 4), index (x, y, z, 1) to RAS mm."""
        return _FLIP @ self.affine

    @property
    def spacing(self) -> Float:
        """Distance between voxel centres along (x, y, z), mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def origin(self) -> Float:
        """World position of voxel (0, 0, 0), mm."""
        return self.affine[:3, 3].copy()

    @property
    def direction(self) -> Float:
        """(3, 3) matrix whose columns are the unit vectors of the index axes (x, y, z)."""
        return self.affine[:3, :3] / self.spacing

    @property
    def size(self) -> NDArray[np.int64]:
        """Voxels along (x, y, z): ITK's order."""
        return np.array(self.shape[::-1])

    @property
    def voxels(self) -> int:
        """How many voxels there are."""
        return int(np.prod(self.shape))

    @property
    def centre(self) -> Float:
        """World position of the middle of the field of view, mm."""
        return self.to_world((self.size - 1) / 2)

    def to_world(self, index: ArrayLike) -> Float:
        """Take index points (..., 3) in (x, y, z) order to LPS mm."""
        world: Float = _points(index) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return world

    def to_index(self, points: ArrayLike) -> Float:
        """Take LPS mm points (..., 3) to continuous index points in (x, y, z) order."""
        inverse = np.linalg.inv(self.affine)
        index: Float = _points(points) @ inverse[:3, :3].T + inverse[:3, 3]
        return index

    def corners(self) -> Float:
        """(8, 3) world positions of the outermost voxel centres, mm."""
        index = np.stack(np.meshgrid(*[(0, n - 1) for n in self.size], indexing="ij"), -1).reshape(-1, 3)
        return self.to_world(index)

    def with_spacing(self, spacing: ArrayLike) -> Grid:
        """The same field of view (edge to edge, not centre to centre) with another spacing (x, y, z; mm)."""
        wanted = np.asarray(spacing, dtype=np.float64)
        size = np.maximum(1, np.rint(self.size * self.spacing / wanted).astype(int))
        origin = self.to_world((self.size - 1) / 2 - (size - 1) / 2 * wanted / self.spacing)
        return Grid.from_parts(tuple(size[::-1].tolist()), wanted, origin, self.direction)

    def padded(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """Extend by whole voxels along (x, y, z); negative numbers crop."""
        size = self.size + np.asarray(before) + np.asarray(after)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(-np.asarray(before, dtype=np.float64))
        return Grid(tuple(size[::-1].tolist()), affine)

    def cropped(self, box: Sequence[slice]) -> Grid:
        """The voxels of an array (z, y, x) that a box of it holds."""
        sides = [*zip(box, self.shape, strict=True)][::-1]
        return self.padded([-side.start for side, _ in sides], [side.stop - count for side, count in sides])

    def matches(self, other: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Whether every corner lies within ``tolerance`` voxels of the other's: one grid but for header noise."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(other.to_index(self.corners()) - other.to_index(other.corners())).max() <= tolerance)

    def __repr__(self) -> str:
        def listed(values: Float) -> str:
            return "(" + ", ".join(f"{v:g}" for v in np.round(values, 4) + 0.0) + ")"

        text = f"shape={self.shape} zyx, spacing={listed(self.spacing)} mm, origin={listed(self.origin)} LPS mm"
        if np.abs(self.direction - np.eye(3)).max() > 5e-5:  # two grids may differ in nothing else
            text += f", direction={listed(self.direction.ravel())}"
        return f"Grid({text})"


def _points(values: ArrayLike) -> Float:
    """Points as numbers, three of each.

    Raises:
        VolumeError: they are not.
    """
    points = np.asarray(values, dtype=np.float64)
    if points.ndim == 0 or points.shape[-1] != 3:
        raise VolumeError("these are no points", expected="(..., 3): x, y and z of each", found=f"shape {points.shape}")
    return points


def _check(shape: tuple[int, ...], affine: Float) -> None:
    """Refuse a geometry that no image has; what files hold is refused with their names, before it comes here.

    Raises:
        VolumeError: see `Grid`.
    """
    if len(shape) != 3 or any(np.ndim(side) for side in shape):
        found = f"an array of shape {np.shape(shape)}" if any(np.ndim(side) for side in shape) else str(shape)
        raise VolumeError("a grid has three axes", expected="a shape (z, y, x) without channels", found=found)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.abs(affine[3] - (0, 0, 0, 1)).max() > 1e-9:
        raise VolumeError(
            "the affine of a grid cannot be used",
            expected="(4, 4), finite, last row 0 0 0 1, from index (x, y, z, 1) to LPS mm",
            found=str(affine.tolist()),
        )
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (lengths > 0).all():
        raise VolumeError(
            "the spacing is not positive",
            expected="millimetres above 0 along each axis",
            found=str(lengths.tolist()),
        )
    axes = affine[:3, :3] / lengths
    cosines = axes.T @ axes - np.eye(3)
    if np.abs(cosines).max() > _RIGHT_ANGLE:
        raise VolumeError(
            "the axes of the grid are sheared",
            expected="axes at right angles to each other",
            found=str(np.round(axes, 4).tolist()),
            remedy="resample the image onto a rectangular grid (gantry tilt), or correct the direction",
        )
