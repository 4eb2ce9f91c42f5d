"""The inverse of a displacement field, by damped Newton steps on its linear interpolation."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from atlasnet.transform.field import consistency
from atlasnet.transform.jacobian import cross, in_voxels
from atlasnet.transform.maps import DisplacementMap, FramedPoints
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import apply_affine, lattice, slabs

# A point is solved when the map takes it this close to where it should, in voxels: well above float32's resolution of
# the coordinates of a 1000-voxel axis, well below what interpolating the inverse between its voxels costs.
TOLERANCE = 2e-3
NEWTON_STEPS = 40
# Linear interpolation changes its derivative at cell borders; longer steps than this would trust one cell's for many.
LONGEST_STEP = 3.0
# Below this many voxels a grid is solved without a coarser one first.
COARSEST = 1 << 15


def inverse_grid(field: DisplacementMap) -> Grid:
    """The field's grid enlarged, face by face, by as far as the field pushes that face outwards, and one voxel more.

    Outside its grid the field is that of the nearest point of it. Beyond the enlarged grid the same then holds for the
    inverse, so that an inverse known there is known everywhere.
    """
    steps = in_voxels(field.displacement, field.grid)
    before, after = [], []
    for axis in range(3):
        face, n = 2 - axis, field.grid.shape[2 - axis]
        low = float(-steps[axis].select(face, 0).min())
        high = float(steps[axis].select(face, n - 1).max())
        # A field that leaves its grid by more than the grid's size is no registration; do not let it fill the memory.
        before.append(min(int(np.ceil(max(low, 0))), n) + 1)
        after.append(min(int(np.ceil(max(high, 0))), n) + 1)
    return field.grid.padded(before, after)


def invert(field: DisplacementMap, grid: Grid | None = None) -> tuple[DisplacementMap, dict[str, dict[str, float]]]:
    """Invert p + u(p).

    Every voxel y of ``grid`` solves x + u(x) = y for the linearly interpolated u, by Newton steps with the exact
    derivative of the interpolation. A step that does not come closer is halved, so that this converges where |grad u|
    exceeds 1 and the fixed-point iteration of Chen et al. ("A simple fixed-point approach to invert a deformation
    field", Medical Physics 35(1), 2008) does not. The start is the inverse on a grid of twice the spacing, found in
    the same way. Points that still resist start again from the voxel that the map takes nearest to y.

    Args:
        field: a map without folds. Where it folds there are several answers and the one that was found is given.
        grid: where to sample the inverse; by default `inverse_grid`.

    Returns:
        The inverse, and the residual in mm: ``target``, |inverse(map(p)) - p| over the field's grid, and ``source``,
        |map(inverse(p)) - p| over ``grid``; each with ``mean``, ``p999``, ``max`` and the ``share`` of voxels counted
        (those whose image lies inside the other grid).
    """
    grid = grid or inverse_grid(field)
    inverse = inverse_on(field, grid)
    residual = {
        "target": consistency(field, inverse, field.grid, grid),
        "source": consistency(inverse, field, grid, field.grid),
    }
    return inverse, residual


def inverse_on(field: DisplacementMap, grid: Grid, near: DisplacementMap | None = None) -> DisplacementMap:
    """The inverse of `invert` at the voxels of ``grid``, without measuring how good it is.

    ``near`` is the inverse of a field that differs little, from which the search starts.
    """
    return _coarse_to_fine(field, in_voxels(field.displacement, field.grid), grid, near)


def _coarse_to_fine(
    field: DisplacementMap, steps: Tensor, grid: Grid, guess: DisplacementMap | None = None
) -> DisplacementMap:
    """The inverse at the voxels of ``grid``, started from a guess or else the inverse at every second of them."""
    if guess is None and grid.voxels > COARSEST:
        guess = _coarse_to_fine(field, steps, _halved(grid))
    to_index = np.linalg.inv(field.grid.affine) @ grid.affine
    result = torch.empty((3, *grid.shape), dtype=torch.float32, device=steps.device)
    for z0, z1 in slabs(grid.shape, device=steps.device):
        points = lattice(grid.shape, z0, z1, device=steps.device)
        goal = apply_affine(to_index, points).reshape(-1, 3).T.contiguous()  # (3, n)
        start = goal
        if guess is not None:
            start = guess.advance(FramedPoints(points, grid.affine)).relative_to(field.grid.affine)
            start = start.reshape(-1, 3).T.contiguous()
        moved = _solve(steps, goal, start) - goal
        to_world = moved.new_tensor(field.grid.affine[:3, :3])
        result[:, z0:z1] = (to_world @ moved).view(3, z1 - z0, *grid.shape[1:])
    return DisplacementMap(result, grid)


def _halved(grid: Grid) -> Grid:
    """Every second voxel, and one beyond where the last would be left out; an axis of up to two voxels stays."""
    step = np.where(grid.size > 2, 2, 1)
    affine = grid.affine.copy()
    affine[:3, :3] *= step
    z, y, x = (int(n) for n in (-(-(grid.size - 1) // step) + 1)[::-1])
    return Grid((z, y, x), affine)


def _solve(steps: Tensor, goal: Tensor, start: Tensor) -> Tensor:
    """Points x (3, n) with x + u(x) = goal, all in voxels of the field."""
    best, error = _newton(steps, goal, start)
    stubborn = (error > TOLERANCE).nonzero()[:, 0]
    if len(stubborn):
        again, its_error = _newton(steps, goal[:, stubborn], _nearest_image(steps, goal[:, stubborn]))
        better = its_error < error[stubborn]
        best[:, stubborn[better]] = again[:, better]
    return best


def _newton(steps: Tensor, goal: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Newton from ``start`` (3, n): the best points and the voxels (n,) by which they miss the goal."""
    best = start.clone()
    value, derivative = _interpolate(steps, best)
    missed = best + value - goal
    error = _length(missed)
    active = (error > TOLERANCE).nonzero()[:, 0]
    step = _newton_step([d.index_select(1, active) for d in derivative], missed.index_select(1, active))
    scale = torch.ones(len(active), device=goal.device)
    for _ in range(NEWTON_STEPS):
        if not len(active):
            break
        trial = best.index_select(1, active) + scale * step
        value, derivative = _interpolate(steps, trial)
        missed = trial + value - goal.index_select(1, active)
        trial_error = _length(missed)
        closer = trial_error < error.index_select(0, active)
        accepted = active[closer]
        best[:, accepted] = trial[:, closer]
        error[accepted] = trial_error[closer]
        # Full steps again as soon as halved ones succeed; a step so small that it changes nothing has got stuck.
        scale = torch.where(closer, (2 * scale).clamp(max=1), scale / 2)
        unsolved = ((error.index_select(0, active) > TOLERANCE) & (scale > 1e-4)).nonzero()[:, 0]
        moved = closer.index_select(0, unsolved)
        fresh = _newton_step([d.index_select(1, unsolved) for d in derivative], missed.index_select(1, unsolved))
        step = torch.where(moved, fresh, step.index_select(1, unsolved))
        active, scale = active.index_select(0, unsolved), scale.index_select(0, unsolved)
    return best, error


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(0).sqrt()


def _newton_step(derivative: list[Tensor], missed: Tensor) -> Tensor:
    """-(I + du)^-1 missed, (3, n), no longer than `LONGEST_STEP`; the fixed-point step where the matrix is singular.

    ``derivative`` holds du/dx, du/dy and du/dz, each (3, n).
    """
    a, b, c = (column.clone() for column in derivative)
    a[0] += 1
    b[1] += 1
    c[2] += 1
    bc, ca, ab = cross(b, c), cross(c, a), cross(a, b)
    determinant = (a * bc).sum(0)
    solved = torch.stack([(missed * v).sum(0) for v in (bc, ca, ab)]) / determinant
    step = -torch.where(determinant.abs() > 1e-3, solved, missed)
    return step * (LONGEST_STEP / _length(step).clamp(min=LONGEST_STEP))


def _interpolate(steps: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The field u (3, n) at points (3, n), and du/dx, du/dy, du/dz (3, n) each; u is constant outwards."""
    size = list(reversed(steps.shape[1:]))
    stride = [1, size[0], size[0] * size[1]]
    fraction, corner, wide = [], torch.zeros(x.shape[1], dtype=torch.int32, device=x.device), []
    for axis, n in enumerate(size):
        within = x[axis].clamp(0, n - 1)
        base = within.floor().clamp(max=max(n - 2, 0))
        fraction.append(within - base)
        corner += base.to(torch.int32) * stride[axis]
        # An axis of one voxel has no next one: stay on it, where the fraction is 0 as well.
        wide.append(stride[axis] if n > 1 else 0)
    flat = steps.reshape(3, -1)
    tx, ty, tz = fraction
    # The two ends along x of the four cell edges (y, z) = (0, 0), (1, 0), (0, 1), (1, 1).
    starts = [flat.index_select(1, corner + (b * wide[1] + c * wide[2])) for c in (0, 1) for b in (0, 1)]
    ends = [flat.index_select(1, corner + (wide[0] + b * wide[1] + c * wide[2])) for c in (0, 1) for b in (0, 1)]
    rise = [end - start for start, end in zip(starts, ends, strict=True)]
    edge = [torch.addcmul(start, tx, slope) for start, slope in zip(starts, rise, strict=True)]
    low, high = edge[1] - edge[0], edge[3] - edge[2]
    bottom, top = torch.addcmul(edge[0], ty, low), torch.addcmul(edge[2], ty, high)
    d_z = top - bottom
    d_y = torch.lerp(low, high, tz.expand_as(low))
    d_x = torch.lerp(
        torch.lerp(rise[0], rise[1], ty.expand_as(low)),
        torch.lerp(rise[2], rise[3], ty.expand_as(low)),
        tz.expand_as(low),
    )
    derivative = [d_x, d_y, d_z]
    for axis, n in enumerate(size):
        derivative[axis] = derivative[axis] * ((x[axis] >= 0) & (x[axis] <= n - 1))
    return torch.addcmul(bottom, tz, d_z), derivative


def _nearest_image(steps: Tensor, goal: Tensor) -> Tensor:
    """The voxels (3, n) that the map takes nearest to each goal."""
    z, y, x = steps.shape[1:]
    voxels = lattice((z, y, x), 0, z, device=steps.device).reshape(-1, 3)
    images = voxels + steps.reshape(3, -1).T
    margin = 4.0
    low, high = goal.min(1).values - margin, goal.max(1).values + margin
    near = ((images >= low) & (images <= high)).all(-1)
    if not bool(near.any()):
        return goal.clone()
    _, which = cKDTree(images[near].cpu().numpy()).query(goal.T.cpu().numpy())
    return voxels[near][torch.from_numpy(which).to(goal.device)].T.contiguous()
