"""The inverse of a displacement field, by damped Newton steps on its linear interpolation."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from atlasnet.transform.field import consistency
from atlasnet.transform.maps import DisplacementMap
from atlasnet.volume.grid import Grid
from atlasnet.volume.sampling import apply_affine, lattice, linear_part, sample, slabs

# A point is solved when the map takes it this close to where it should, in voxels: an order above float32's resolution
# of the coordinates of a 1000-voxel axis.
TOLERANCE = 1e-3
FIXED_POINT_STEPS = 3
NEWTON_STEPS = 40
# Linear interpolation changes its derivative at cell borders; longer steps than this would trust one cell's for many.
LONGEST_STEP = 3.0


def inverse_grid(field: DisplacementMap) -> Grid:
    """The field's grid enlarged, face by face, by as far as the field pushes that face outwards, and one voxel more.

    Outside its grid the field is that of the nearest point of it. Beyond the enlarged grid the same then holds for the
    inverse, so that an inverse known there is known everywhere.
    """
    steps = apply_affine(
        linear_part(np.linalg.inv(field.grid.affine)), field.displacement.movedim(0, -1)
    )  # (z, y, x, 3)
    before, after = [], []
    for axis in range(3):
        across = 2 - axis
        n = field.grid.shape[across]
        low = float(-steps.select(across, 0)[..., axis].min())
        high = float(steps.select(across, n - 1)[..., axis].max())
        # A field that leaves its grid by more than the grid's size is no registration; do not let it fill the memory.
        before.append(min(int(np.ceil(max(low, 0))), n) + 1)
        after.append(min(int(np.ceil(max(high, 0))), n) + 1)
    return field.grid.padded(before, after)


def invert(field: DisplacementMap, grid: Grid | None = None) -> tuple[DisplacementMap, dict[str, dict[str, float]]]:
    """Invert p + u(p).

    Every voxel y of ``grid`` solves x + u(x) = y for the linearly interpolated u: a few fixed-point steps
    x <- y - u(x) (Chen et al., "A simple fixed-point approach to invert a deformation field", Medical Physics 35(1), 2008),
    then, on the points that they leave, Newton steps with the exact derivative of the interpolation, halved while they do
    not come closer, which converges where |grad u| exceeds 1 too; points that still resist restart from the voxel that the
    map takes nearest to y.

    Args:
        field: a map without folds. Where it folds there are several answers and the one that was found is given.
        grid: where to sample the inverse; by default `inverse_grid`.

    Returns:
        The inverse, and the residual in mm: ``target``, |inverse(map(p)) - p| over the field's grid, and ``source``,
        |map(inverse(p)) - p| over ``grid``; each with ``mean``, ``p999``, ``max`` and the ``share`` of voxels counted (those whose
        image lies inside the other grid).
    """
    grid = grid or inverse_grid(field)
    to_index = np.linalg.inv(field.grid.affine)
    steps = apply_affine(linear_part(to_index), field.displacement.movedim(0, -1)).contiguous()  # (z, y, x, 3), voxels
    planes = steps.movedim(-1, 0).contiguous()
    result = torch.empty((3, *grid.shape), dtype=torch.float32, device=steps.device)
    for z0, z1 in slabs(grid.shape):
        goal = apply_affine(to_index @ grid.affine, lattice(grid.shape, z0, z1, device=steps.device)).reshape(-1, 3)
        found = _solve(steps, planes, goal)
        moved = apply_affine(linear_part(field.grid.affine), found - goal)
        result[:, z0:z1] = moved.T.reshape(3, z1 - z0, *grid.shape[1:])
    inverse = DisplacementMap(result, grid)
    residual = {
        "target": consistency(field, inverse, field.grid, grid),
        "source": consistency(inverse, field, grid, field.grid),
    }
    return inverse, residual


def _solve(steps: Tensor, planes: Tensor, goal: Tensor) -> Tensor:
    """Points x (n, 3) with x + u(x) = goal, all in voxels of the field."""
    x = goal.clone()
    active = torch.arange(len(goal), device=goal.device)
    for _ in range(FIXED_POINT_STEPS):
        missed = x[active] + sample(planes, x[active]).T - goal[active]
        keep = (missed.abs() > TOLERANCE).any(-1)
        active = active[keep]
        x[active] -= missed[keep]
    if len(active):
        best, error = _newton(steps, goal[active], x[active])
        stubborn = (error > TOLERANCE * 2).nonzero()[:, 0]
        if len(stubborn):
            again, its_error = _newton(steps, goal[active[stubborn]], _nearest_image(steps, goal[active[stubborn]]))
            better = its_error < error[stubborn]
            best[stubborn[better]] = again[better]
        x[active] = best
    return x


def _newton(steps: Tensor, goal: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Newton from ``start`` (n, 3): the best points and how far (n,) the map misses the goal there, in voxels."""
    best = start.clone()
    value, derivative = _interpolate(steps, best)
    missed = best + value - goal
    error = missed.norm(dim=-1)
    active = (error > TOLERANCE).nonzero()[:, 0]
    step = _newton_step(derivative[active], missed[active])
    length = torch.ones(len(active), 1, device=goal.device)
    for _ in range(NEWTON_STEPS):
        if not len(active):
            break
        trial = best[active] + length * step
        value, derivative = _interpolate(steps, trial)
        missed = trial + value - goal[active]
        trial_error = missed.norm(dim=-1)
        closer = trial_error < error[active]
        best[active[closer]] = trial[closer]
        error[active[closer]] = trial_error[closer]
        step[closer] = _newton_step(derivative[closer], missed[closer])
        length = torch.where(closer[:, None], (2 * length).clamp(max=1), length / 2)
        unsolved = (error[active] > TOLERANCE) & (length[:, 0] > 1e-4)
        active, step, length = active[unsolved], step[unsolved], length[unsolved]
    return best, error


def _newton_step(derivative: Tensor, missed: Tensor) -> Tensor:
    """-(I + du)^-1 missed by Cramer's rule, no longer than `LONGEST_STEP`; the fixed-point step where it is singular.

    ``derivative`` is (n, 3, 3): [point, axis of derivation, component].
    """
    rows = derivative.clone()
    rows.diagonal(dim1=1, dim2=2).add_(1)
    a, b, c = rows.unbind(1)
    bc, ca, ab = torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)
    determinant = (a * bc).sum(-1, keepdim=True)
    solved = torch.cat([(missed * v).sum(-1, keepdim=True) for v in (bc, ca, ab)], -1) / determinant
    step = -torch.where(determinant.abs() > 1e-3, solved, missed)
    return step * (LONGEST_STEP / step.norm(dim=-1, keepdim=True).clamp(min=LONGEST_STEP))


def _interpolate(steps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """u (n, 3) at points (n, 3) and its derivative (n, 3, 3): [point, axis of derivation, component]; constant outside."""
    size = torch.tensor(steps.shape[2::-1], device=x.device)
    last = (size - 1).to(x.dtype)
    within = torch.minimum(x.clamp(min=0), last)
    base = torch.minimum(within.floor(), (last - 1).clamp(min=0))
    t = within - base
    first = base.long()
    stride = torch.tensor([1, steps.shape[2], steps.shape[2] * steps.shape[1]], device=x.device)
    corner = (first * stride).sum(-1)
    # An axis of one voxel has no next one: stay on it, where the fraction is 0 as well.
    dx, dy, dz = torch.where(size > 1, stride, 0).tolist()
    flat = steps.reshape(-1, 3)
    tx, ty, tz = t[:, 0:1], t[:, 1:2], t[:, 2:3]
    values = [flat[corner + i] for i in (0, dx, dy, dy + dx, dz, dz + dx, dz + dy, dz + dy + dx)]
    along_x = [values[i + 1] - values[i] for i in (0, 2, 4, 6)]
    in_x = [values[2 * i] + tx * along_x[i] for i in range(4)]
    along_y = [in_x[1] - in_x[0], in_x[3] - in_x[2]]
    in_y = [in_x[0] + ty * along_y[0], in_x[2] + ty * along_y[1]]
    d_z = in_y[1] - in_y[0]
    d_y = along_y[0] + tz * (along_y[1] - along_y[0])
    x_low = along_x[0] + ty * (along_x[1] - along_x[0])
    x_high = along_x[2] + ty * (along_x[3] - along_x[2])
    d_x = x_low + tz * (x_high - x_low)
    derivative = torch.stack([d_x, d_y, d_z], 1)
    derivative *= ((x >= 0) & (x <= last)).to(x.dtype)[..., None]
    return in_y[0] + tz * d_z, derivative


def _nearest_image(steps: Tensor, goal: Tensor) -> Tensor:
    """The voxels (n, 3) that the map takes nearest to each goal."""
    z, y, x, _ = steps.shape
    voxels = lattice((z, y, x), 0, z, device=steps.device).reshape(-1, 3)
    images = voxels + steps.reshape(-1, 3)
    margin = 4.0
    near = ((images >= goal.min(0).values - margin) & (images <= goal.max(0).values + margin)).all(-1)
    if not bool(near.any()):
        return goal.clone()
    _, which = cKDTree(images[near].cpu().numpy()).query(goal.cpu().numpy())
    return voxels[near][torch.from_numpy(which).to(goal.device)]
