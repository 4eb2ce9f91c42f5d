"""Local change of volume of a displacement field, and the smallest value that a fold-free field must keep above 0."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atlasnet.transform.maps import check_field
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import slabs

# Some forty arrays of a slab live at a time; few enough voxels keep them in the processor's cache.
VOXELS_AT_ONCE = 1 << 16


def corner_jacobians(displacement: Tensor, grid: Grid, *, outside: bool = False) -> Tensor:
    """The least of the 8 one-sided Jacobian determinants at every voxel.

    At a voxel each derivative can be taken towards the next or the previous voxel along each axis; the 8 combinations
    are the Jacobians that the linearly interpolated map has at that corner of the 8 cells that meet there. Where all
    are positive no cell is turned inside out at any corner. At the border only the cells that exist count. Karacali
    and Davatzikos, "Estimating topology preserving and smooth displacement fields", IEEE TMI 23(7), 2004.

    Args:
        displacement: (3, z, y, x), components (x, y, z) in LPS mm.
        grid: where the voxels lie; any direction.
        outside: count the cells beyond the border as well, where a `DisplacementMap` continues the nearest
        displacement.
            With them positive too, the map folds nowhere in space.

    Returns:
        (z, y, x) determinants of the map p + u(p), without unit.
    """
    return least_corners(in_voxels(displacement, grid), outside=outside)


def least_corners(voxels: Tensor, *, outside: bool) -> Tensor:
    """`corner_jacobians` of a field (3, z, y, x) in steps of the axes of its grid."""
    _, depth, height, width = voxels.shape
    result = voxels.new_empty(depth, height, width)
    for z0, z1 in slabs((depth, height, width), VOXELS_AT_ONCE, device=voxels.device):
        low, high = max(z0 - 1, 0), min(z1 + 1, depth)
        result[z0:z1] = _least_corner(voxels[:, low:high], slice(z0 - low, z1 - low), outside)
    return result


def jacobian_determinant(displacement: Tensor, grid: Grid) -> Tensor:
    """The Jacobian determinant of p + u(p) by central differences, one-sided at the border: (z, y, x).

    Arguments as for `corner_jacobians`.
    """
    voxels = in_voxels(displacement, grid)
    result = torch.empty(grid.shape, dtype=voxels.dtype, device=voxels.device)
    for z0, z1 in slabs(grid.shape, VOXELS_AT_ONCE, device=voxels.device):
        low, high = max(z0 - 1, 0), min(z1 + 1, grid.shape[0])
        part = voxels[:, low:high]
        columns = [(a + b) / 2 for a, b in (_one_sided(part, axis) for axis in (3, 2, 1))]
        # Averaging a copied one-sided difference with itself at the border leaves the one-sided difference.
        result[z0:z1] = _determinant(*columns)[z0 - low : z1 - low]
    return result


def jacobian_summary(displacement: Tensor, grid: Grid) -> dict[str, float]:
    """How a displacement field changes volume.

    Returns:
        ``minimum``, over voxels, of `corner_jacobians`; ``folded``, the share of voxels where it is not positive; and
        of `jacobian_determinant` the ``mean``, the ``maximum``, and ``log_sd``, the standard deviation of its logarithm
        over the voxels where it is positive.
    """
    corners = corner_jacobians(displacement, grid)
    central = jacobian_determinant(displacement, grid)
    positive = central[central > 0].double().log()
    return {
        "minimum": float(corners.min()),
        "folded": float((corners <= 0).double().mean()),
        "mean": float(central.double().mean()),
        "maximum": float(central.max()),
        "log_sd": float(positive.std(correction=0)) if len(positive) else 0.0,
    }


def in_voxels(displacement: Tensor, grid: Grid) -> Tensor:
    """The field (3, z, y, x) in steps of the grid's own axes: the determinant is the same, derivatives are differences.

    Raises:
        TransformError: the field does not fit its grid.
    """
    check_field(displacement, grid)
    return vectors_in_voxels(displacement, grid)


def vectors_in_voxels(vectors: Tensor, grid: Grid) -> Tensor:
    """Vectors (3, ...) in LPS mm in steps of a grid's own axes."""
    matrix = np.linalg.inv(grid.affine[:3, :3])
    to_index = vectors.new_tensor(matrix)
    if np.count_nonzero(matrix) == 3 and matrix.diagonal().all():
        # The same numbers as the product's, several times faster.
        return vectors * to_index.diagonal().reshape(3, *[1] * (vectors.ndim - 1))
    return (to_index @ vectors.reshape(3, -1)).view(vectors.shape)


def _one_sided(field: Tensor, axis: int, outside: bool = False) -> tuple[Tensor, Tensor]:
    """Differences to the next and from the previous voxel along ``axis``; at the border the one that exists, or 0."""
    n = field.shape[axis]
    if n == 1:
        return torch.zeros_like(field), torch.zeros_like(field)
    step = field.diff(dim=axis)
    last, first = step.narrow(axis, n - 2, 1), step.narrow(axis, 0, 1)
    if outside:
        last, first = torch.zeros_like(last), torch.zeros_like(first)
    return torch.cat([step, last], axis), torch.cat([first, step], axis)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """The vector product of fields of vectors (3, ...)."""
    return torch.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _determinant(dx: Tensor, dy: Tensor, dz: Tensor) -> Tensor:
    """det(I + du) from the three columns (3, z, y, x) of du, which are overwritten."""
    for axis, column in enumerate((dx, dy, dz)):
        column[axis] += 1
    return (dx * cross(dy, dz)).sum(0)


def _least_corner(field: Tensor, slab: slice, outside: bool) -> Tensor:
    """The least of the 8 determinants in a slab of slices of ``field``, which holds one slice more on either side."""
    within = field[:, slab]
    x, y = (torch.stack(_one_sided(within, axis, outside)) for axis in (3, 2))
    z = torch.stack([side[:, slab] for side in _one_sided(field, 1, outside)])
    return least_determinant(x, y, z)


def least_determinant(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The least of the 8 determinants of I + du, (...), of the columns of du on both sides of every axis.

    Each is (2, 3, ...), and overwritten.
    """
    for axis, sides in enumerate((x, y, z)):
        sides[:, axis] += 1
    # The 8 combinations are one array: (x, y, z sides, ...).
    x, y, z = x[:, None, None], y[:, None], z[None]

    def normal(j: int, k: int) -> Tensor:
        return (y[:, :, j] * z[:, :, k]).addcmul_(y[:, :, k], z[:, :, j], value=-1)

    determinant = x[:, :, :, 0] * normal(1, 2)
    determinant.addcmul_(x[:, :, :, 1], normal(2, 0)).addcmul_(x[:, :, :, 2], normal(0, 1))
    return determinant.flatten(0, 2).amin(0)
