"""`Transform`: a spatial map with its inverse, and what one does with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlasnet.errors import TransformError
from atlasnet.transform.field import consistency, displacement_on
from atlasnet.transform.invert import inverse_grid, inverse_on, invert
from atlasnet.transform.jacobian import corner_jacobians, jacobian_summary
from atlasnet.transform.maps import AffineMap, DisplacementMap, FramedPoints, PointMap, compose
from atlasnet.transform.storage import load_maps, save_maps
from atlasnet.volume.grid import Grid
from atlasnet.volume.resample import torch_voxels, working_type
from atlasnet.volume.sampling import inside, lattice, sample, slabs
from atlasnet.volume.volume import Volume, require_volume
from atlasnet.wording import counted

OVERLAP_VOXELS = 1_000_000  # that are looked at, at regular distances, to say how far two images meet
SUFFIX = ".safetensors"
_MODES = ("linear", "nearest", "label")


@dataclass(frozen=True, eq=False)
class Transform:
    """A map between the spaces of two images, in both directions.

    Args:
        forward: takes points of the *target* into the *source*, so that the source is warped by sampling it at
            ``forward(voxel of the target)``.
        backward: takes points of the source into the target.
        residual: how far the two are from being each other's inverse, in mm: ``target`` is
            |backward(forward(p)) - p| over the target, ``source`` |forward(backward(p)) - p| over the source, each a
            mapping with ``mean``, ``p999`` (99.9th percentile) and ``max``. Empty where nobody measured; see
            `measured`.
    """

    forward: PointMap
    backward: PointMap
    residual: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __repr__(self) -> str:
        error = self.residual.get("target", {}).get("p999")
        known = "" if error is None else f", inverse within {error:.2g} mm"
        return f"Transform({self.forward!r}{known})"

    @classmethod
    def identity(cls) -> Transform:
        """The map that moves nothing."""
        return cls.affine(np.eye(4))

    @classmethod
    def affine(cls, matrix: ArrayLike) -> Transform:
        """An affine map of target points into the source; ``matrix`` is (4, 4), acting on LPS mm.

        Raises:
            TransformError: it is not an invertible affine matrix.
        """
        forward = AffineMap(np.asarray(matrix, dtype=np.float64))
        exact = {"mean": 0.0, "p999": 0.0, "max": 0.0}
        return cls(forward, forward.inverse, {"target": exact, "source": exact})

    @classmethod
    def from_displacement(
        cls, displacement: DisplacementMap, affine: ArrayLike | None = None, *, measure: bool = True
    ) -> Transform:
        """The map that moves a target point by ``displacement`` first and takes it into the source by ``affine`` then.

        The inverse of the field is computed here, on its grid enlarged by as much as the field pushes outwards.

        Args:
            displacement: a fold-free field on the target grid (see `atlasnet.transform.repair`).
            affine: (4, 4), acting on LPS mm; none is the identity.
            measure: look whether the field folds, and fill in the residual of the field and its inverse, over their own
                grids. It costs more than the inverse; leave it out for a field that `repair` gave, where `measured`
                follows.

        Raises:
            TransformError: ``affine`` is not invertible, or the field folds, so that it has no inverse.
        """
        linear = AffineMap(np.eye(4) if affine is None else np.asarray(affine, dtype=np.float64))
        if measure:
            _check_folds(displacement)
            inverse, residual = invert(displacement)
        else:
            inverse, residual = inverse_on(displacement, inverse_grid(displacement)), {}
        if affine is None:
            return cls(displacement, inverse, residual)
        return cls(compose(displacement, linear), compose(linear.inverse, inverse), residual)

    @property
    def inverse(self) -> Transform:
        """The same map with its directions swapped."""
        residual = {
            key: self.residual[other]
            for key, other in (("target", "source"), ("source", "target"))
            if other in self.residual
        }
        return Transform(self.backward, self.forward, residual)

    def then(self, other: Transform) -> Transform:
        """Apply this map's forward direction first and ``other``'s after it; nothing is sampled yet.

        The residual of a chain is not known from those of its links; `measured` fills it in.
        """
        return Transform(compose(self.forward, other.forward), compose(other.backward, self.backward))

    def measured(self, target: Grid, source: Grid) -> Transform:
        """The same map with its residual measured on both grids, over voxels whose image lies inside the other grid."""
        residual = {
            "target": consistency(self.forward, self.backward, target, source),
            "source": consistency(self.backward, self.forward, source, target),
        }
        return Transform(self.forward, self.backward, residual)

    def overlap(self, target: Grid, source: Grid) -> float:
        """The share of the target's voxels that read the source within its field of view, of a million at most."""
        step = max(1, math.ceil((target.voxels / OVERLAP_VOXELS) ** (1 / 3)))
        axes = [torch.arange((n - 1) % step // 2, n, step, dtype=torch.float32) for n in target.size.tolist()]
        points = torch.cartesian_prod(*axes)
        return float(inside(self.index_at(source, target, points), source.shape).double().mean())

    def to(self, device: torch.device | str) -> Transform:
        """The same map with its tensors on another device."""
        return Transform(self.forward.to(device), self.backward.to(device), self.residual)

    def index_slab(
        self, array_grid: Grid, grid: Grid, z0: int, z1: int, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Where slices ``z0 <= z < z1`` of ``grid`` (target) read an array on ``array_grid`` (source).

        Returns:
            Index points (z1 - z0, y, x, 3) in (x, y, z) order, float32: what `sample` and `inside` take.
        """
        place = device or self.forward.device or "cpu"
        return self.index_at(array_grid, grid, lattice(grid.shape, z0, z1, device=place))

    def index_at(self, array_grid: Grid, grid: Grid, points: Tensor) -> Tensor:
        """Where index points (..., 3) of ``grid`` (target), in (x, y, z) order, read an array on ``array_grid``."""
        return self.forward.advance(FramedPoints(points, grid.affine)).relative_to(array_grid.affine)

    def warp_slab(
        self,
        array: Tensor,
        array_grid: Grid,
        grid: Grid,
        z0: int,
        z1: int,
        *,
        interpolation: str = "linear",
        fill: float | None = None,
    ) -> Tensor:
        """Slices ``z0 <= z < z1`` of `warp`, without a `Volume` around them: for work that goes slab by slab.

        Args:
            array: (c, z, y, x) on ``array_grid``, on the device of this transform.
            array_grid: the source grid.
            grid: the target grid.
            z0: first slice.
            z1: one past the last slice.
            interpolation: see `warp`.
            fill: the value outside the array; None continues its edge.

        Returns:
            (c, z1 - z0, y, x).
        """
        return sample(
            array, self.index_slab(array_grid, grid, z0, z1, device=array.device), mode=interpolation, fill=fill
        )

    def warp(
        self,
        volume: Volume,
        grid: Grid,
        *,
        interpolation: str = "linear",
        fill: float | None = None,
        device: torch.device | str | None = None,
    ) -> Volume:
        """Bring a source volume onto a target grid, with one interpolation however many maps the transform chains.

        Args:
            volume: the source, (c, z, y, x).
            grid: the target grid.
            interpolation: ``"linear"``, ``"nearest"``, or ``"label"`` (the arg max over labels of their linearly
                interpolated one-hot maps, ties to the lower label).
            fill: the value of voxels that read outside the source's field of view, half a voxel beyond its outermost
                centres. None continues the edge; for ``"label"`` it means 0.
            device: where to compute; None is the CPU.

        Returns:
            A volume on ``grid``: for ``"linear"`` float32 (float64 from float64 or wide integers), else the source's
            type. Beyond input and output, memory is that of one channel and of a few slices.

        Raises:
            VolumeError: the source is an array without geometry.
            TransformError: no interpolation has that name, or where the result lies is no `Grid`.
        """
        require_volume(volume, "the source")
        if not isinstance(grid, Grid):
            raise TransformError(
                "where the result is to lie is not given as a Grid",
                found=type(grid).__name__,
                remedy="give that of the target: target.grid",
            )
        if interpolation not in _MODES:
            raise TransformError(f"no interpolation is called {interpolation!r}", expected=", ".join(_MODES))
        if interpolation == "label" and fill is None:
            fill = 0
        place = torch.device(device or "cpu")
        moved = self.to(place)
        dtype = working_type(volume.array.dtype) if interpolation == "linear" else volume.array.dtype
        result = np.empty((volume.channels, *grid.shape), dtype=dtype)
        for channel, out in zip(volume.array, result, strict=True):
            voxels = torch_voxels(channel.astype(dtype, copy=False))[None].to(place)
            for z0, z1 in slabs(grid.shape, device=place):
                part = moved.warp_slab(voxels, volume.grid, grid, z0, z1, interpolation=interpolation, fill=fill)
                out[z0:z1] = part[0].cpu().numpy()
        return Volume(result, grid)

    def map_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Where points of the target lie in the source; `inverse` takes those of the source into the target.

            in_source = transform.map_points(target.grid.to_world([(30, 20, 10)]))  # of a voxel (x, y, z)

        Points go the other way than voxels: `warp` brings the source onto the target by reading it at these points.

        Args:
            points: (..., 3), (x, y, z) in LPS mm.

        Returns:
            As many, float64.

        Raises:
            TransformError: they are not three numbers each.
        """
        try:
            given = np.array(points, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise TransformError("these are no points", expected="(..., 3) numbers", found=str(error)) from error
        if given.ndim == 0 or given.shape[-1] != 3:
            raise TransformError(
                "these are no points", expected="(..., 3): x, y and z in LPS mm of each", found=f"shape {given.shape}"
            )
        moved: NDArray[np.float64] = self.forward(torch.from_numpy(given).to(self.forward.device)).cpu().numpy()
        return moved

    def displacement(self, grid: Grid) -> Tensor:
        """forward(p) - p at the voxels of ``grid``: (3, z, y, x) float32, components (x, y, z) in LPS mm."""
        return displacement_on(self.forward, grid)

    def jacobian(self, grid: Grid) -> dict[str, float]:
        """How the forward map changes volume on ``grid``: see `atlasnet.transform.jacobian.jacobian_summary`."""
        return jacobian_summary(self.displacement(grid), grid)

    def save(self, path: str | Path) -> None:
        """Write both directions as safetensors with JSON metadata, atomically; `load` gives the same bits back.

        Raises:
            TransformError: the name does not end in .safetensors.
        """
        if Path(path).suffix.lower() != SUFFIX:
            raise TransformError(
                "a transform is not stored under this name",
                path=path,
                expected=f"a name that ends in {SUFFIX}",
                remedy="for a file that ITK, SimpleITK and ANTs read: atlasnet.transform.write_itk_transform",
            )
        save_maps(path, {"forward": self.forward, "backward": self.backward}, self.residual)

    @classmethod
    def load(cls, path: str | Path) -> Transform:
        """Read what `save` wrote.

        Raises:
            TransformError: the file is absent, damaged, or not such a transform.
        """
        maps, residual = load_maps(path)
        return cls(maps["forward"], maps["backward"], residual)


def _check_folds(field: DisplacementMap) -> None:
    """Refuse a field whose inverse would be one of several answers.

    Raises:
        TransformError: it folds.
    """
    corners = corner_jacobians(field.displacement, field.grid)
    if not bool((corners > 0).all()):
        raise TransformError(
            "the displacement field folds, and has no inverse",
            expected="corner Jacobians above 0 at every voxel",
            found=f"{float(corners.min()):.3g} at least, {counted(int((corners <= 0).sum()), 'voxel')} not above 0",
            remedy="smooth it there: atlasnet.transform.repair",
        )
