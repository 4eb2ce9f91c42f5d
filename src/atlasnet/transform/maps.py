"""Point maps: functions from patient space to patient space, in LPS mm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.errors import TransformError
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import POINTS_AT_ONCE, apply_affine, linear_part, sample

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FramedPoints:
    """Points kept in the index coordinates of some lattice: world = ``frame`` applied to ``index``.

    World coordinates of several hundred millimetres would cost float32 a digit; index coordinates and float64 matrices
    between them do not.

    Args:
        index: (..., 3), (x, y, z) order.
        frame: (4, 4), index to LPS mm.
    """

    index: Tensor
    frame: Float

    def relative_to(self, frame: Float) -> Tensor:
        """The same points (..., 3) in the coordinates of another lattice."""
        if np.array_equal(frame, self.frame):
            return self.index
        change = np.linalg.inv(frame) @ self.frame
        # Rounding noise off the diagonal would move no point but cost a full matrix product.
        change[:3, :3][np.abs(change[:3, :3]) < 1e-13] = 0
        return apply_affine(change, self.index)


class PointMap(ABC):
    """A map of patient space."""

    def __call__(self, points: Tensor) -> Tensor:
        """Map LPS mm points (..., 3), in their own precision and on their device."""
        moved = self.advance(FramedPoints(points, np.eye(4)))
        return moved.relative_to(np.eye(4))

    @abstractmethod
    def advance(self, points: FramedPoints) -> FramedPoints:
        """Map points that carry their own frame; what chains of maps use."""

    @property
    @abstractmethod
    def device(self) -> torch.device | None:
        """Where the tensors of the map are; None for a map without any, which takes points from everywhere."""

    @abstractmethod
    def to(self, device: torch.device | str) -> PointMap:
        """The same map with its tensors on another device."""


@dataclass(frozen=True, eq=False)
class AffineMap(PointMap):
    """An affine map.

    Args:
        matrix: (4, 4), acting on (x, y, z, 1) in LPS mm.

    Raises:
        TransformError: the matrix is not an invertible affine one.
    """

    matrix: Float

    def __repr__(self) -> str:
        moved = ", ".join(f"{mm:.1f}" for mm in self.matrix[:3, 3])
        return f"AffineMap(offset ({moved}) mm, scales volume by {np.linalg.det(self.matrix[:3, :3]):.3g})"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-9:
            raise TransformError(
                "not an affine matrix", expected="(4, 4), finite, last row 0 0 0 1", found=f"{np.array2string(matrix)}"
            )
        if abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
            raise TransformError("an affine map must be invertible", found=f"{np.array2string(matrix)}")
        matrix[3] = (0, 0, 0, 1)
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def inverse(self) -> AffineMap:
        """The inverse map, exact to float64."""
        return AffineMap(np.linalg.inv(self.matrix).astype(np.float64))

    def advance(self, points: FramedPoints) -> FramedPoints:
        """Change the frame; the coordinates stay as they are."""
        return FramedPoints(points.index, self.matrix @ points.frame)

    @property
    def device(self) -> None:
        """None: a matrix goes where the points are."""

    def to(self, device: torch.device | str) -> AffineMap:
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class DisplacementMap(PointMap):
    """A dense displacement field: p goes to p + u(p).

    u is linear between voxel centres; outside the lattice of centres it is that of the nearest point of the lattice.

    Args:
        displacement: (3, z, y, x), components (x, y, z) in LPS mm; stored as float32.
        grid: where the voxels lie.

    Raises:
        TransformError: the field has another shape than its grid, or is not finite.
    """

    displacement: Tensor
    grid: Grid

    def __repr__(self) -> str:
        return f"DisplacementMap({self.grid!r})"

    def __post_init__(self) -> None:
        field = torch.as_tensor(self.displacement)
        check_field(field, self.grid)
        field = field.to(torch.float32).contiguous()
        if not bool(torch.isfinite(field.sum(dtype=torch.float64))):
            raise TransformError("the displacement field is not finite", expected="a number at every voxel")
        object.__setattr__(self, "displacement", field)

    def advance(self, points: FramedPoints) -> FramedPoints:
        """Move points by the field, ending in the frame of its grid."""
        index = points.relative_to(self.grid.affine)
        moved = sample(self.displacement, index).movedim(0, -1).to(index.dtype)
        return FramedPoints(index + apply_affine(linear_part(np.linalg.inv(self.grid.affine)), moved), self.grid.affine)

    @property
    def device(self) -> torch.device:
        """Where the field is."""
        return self.displacement.device

    def to(self, device: torch.device | str) -> DisplacementMap:
        """The same field on another device."""
        moved = self.displacement.to(device)
        return self if moved is self.displacement else DisplacementMap(moved, self.grid)


@dataclass(frozen=True, eq=False)
class BSplineMap(PointMap):
    """A free-form deformation: p goes to p + the tensor product of cubic B-splines over a lattice of control points.

    Rueckert et al., "Nonrigid registration using free-form deformations", IEEE TMI 18(8), 1999. As in ITK the lattice
    includes the control points outside the region that the spline describes, one before and one after along each axis:
    the spline is defined between the second and the last but one control point, and outside it continues the
    displacement of the nearest point of that region (ITK's has no displacement there).

    Args:
        coefficients: (3, z, y, x) of the control points, components (x, y, z) in LPS mm; at least 4 along each axis.
        grid: where the control points lie.

    Raises:
        TransformError: the coefficients have another shape than their grid, are too few, or are not finite.
    """

    coefficients: Tensor
    grid: Grid

    def __repr__(self) -> str:
        return f"BSplineMap(control points on {self.grid!r})"

    def __post_init__(self) -> None:
        field = torch.as_tensor(self.coefficients)
        if tuple(field.shape) != (3, *self.grid.shape) or min(self.grid.shape) < 4:
            raise TransformError(
                "the control points do not fit their grid",
                expected=f"(3, z, y, x) = {(3, *self.grid.shape)}, at least 4 along each axis",
                found=str(tuple(field.shape)),
            )
        field = field.to(torch.float32).contiguous()
        if not bool(torch.isfinite(field).all()):
            raise TransformError("the control points are not finite", expected="a number at every control point")
        object.__setattr__(self, "coefficients", field)

    def advance(self, points: FramedPoints) -> FramedPoints:
        """Move points by the spline, ending in the frame of the control grid."""
        index = points.relative_to(self.grid.affine)
        flat = index.reshape(-1, 3)
        moved = torch.cat([self._displacement(part) for part in torch.split(flat, POINTS_AT_ONCE // 2)])
        to_index = linear_part(np.linalg.inv(self.grid.affine))
        return FramedPoints(index + apply_affine(to_index, moved).reshape(index.shape), self.grid.affine)

    def _displacement(self, index: Tensor) -> Tensor:
        """Displacements (n, 3) in mm at index points (n, 3)."""
        size = index.new_tensor(self.grid.size)
        index = torch.minimum(index.clamp(min=1), size - 2)
        before = torch.minimum(index.floor(), size - 3)  # the second of the four control points along each axis
        weights = _cubic_weights((index - before).T.contiguous())  # (4, 3, n)
        first = before.to(torch.int32) - 1
        _, y, x = self.grid.shape
        values = self.coefficients.reshape(3, -1).to(index.dtype)  # (3, control points)
        result = torch.zeros((3, len(index)), dtype=index.dtype, device=index.device)
        for c in range(4):
            for b in range(4):
                row = ((first[:, 2] + c) * y + first[:, 1] + b) * x + first[:, 0]
                plane = weights[c, 2] * weights[b, 1]
                for a in range(4):
                    result.addcmul_(plane * weights[a, 0], values.index_select(1, row + a))
        return result.T

    @property
    def device(self) -> torch.device:
        """Where the coefficients are."""
        return self.coefficients.device

    def to(self, device: torch.device | str) -> BSplineMap:
        """The same spline on another device."""
        moved = self.coefficients.to(device)
        return self if moved is self.coefficients else BSplineMap(moved, self.grid)


@dataclass(frozen=True, eq=False)
class CompositeMap(PointMap):
    """Several maps one after the other, the first applied first.

    Nested composites are flattened and neighbouring affine maps multiplied, so that chains stay short.

    Args:
        parts: the maps; none is the identity.
    """

    parts: tuple[PointMap, ...]

    def __repr__(self) -> str:
        return " then ".join(map(repr, self.parts)) or "identity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _simplified(self.parts))

    def advance(self, points: FramedPoints) -> FramedPoints:
        """Apply every part in turn."""
        for part in self.parts:
            points = part.advance(points)
        return points

    @property
    def device(self) -> torch.device | None:
        """Where the parts are; they are all on one device."""
        return next((part.device for part in self.parts if part.device is not None), None)

    def to(self, device: torch.device | str) -> CompositeMap:
        """The same chain on another device."""
        return CompositeMap(tuple(part.to(device) for part in self.parts))


def check_field(displacement: Tensor, grid: Grid) -> None:
    """Whether a displacement field lies on a grid.

    Raises:
        TransformError: it is not (3, z, y, x) of the grid's size.
    """
    if tuple(displacement.shape) != (3, *grid.shape):
        raise TransformError(
            "the displacement field does not fit its grid",
            expected=f"(3, z, y, x) = {(3, *grid.shape)}",
            found=str(tuple(displacement.shape)),
        )


def compose(*maps: PointMap) -> PointMap:
    """The map that applies ``maps`` one after the other, the first first; the part itself if only one is left."""
    parts = _simplified(maps)
    return parts[0] if len(parts) == 1 else CompositeMap(parts)


def _simplified(maps: Sequence[PointMap]) -> tuple[PointMap, ...]:
    parts: list[PointMap] = []
    for part in (p for m in maps for p in (m.parts if isinstance(m, CompositeMap) else (m,))):
        if parts and isinstance(part, AffineMap) and isinstance(parts[-1], AffineMap):
            parts[-1] = AffineMap(part.matrix @ parts[-1].matrix)
        else:
            parts.append(part)
    return tuple(parts)


def _cubic_weights(t: Tensor) -> Tensor:
    """The four cubic B-spline weights (4, ...) of control points -1, 0, 1, 2 at fraction ``t`` in [0, 1]."""
    s = 1 - t
    return torch.stack([s**3, 3 * t**3 - 6 * t**2 + 4, 3 * s**3 - 6 * s**2 + 4, t**3]) / 6
