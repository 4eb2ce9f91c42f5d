"""Between the labels: Gauss-Newton steps on the difference of local contrasts.

Where the discrete search has come within a voxel or two, the squared difference of two locally standardised images is
2 - 2 times their correlation and nearly quadratic in the displacement. Its minimum is found with one linear system per
step (Lucas and Kanade, "An iterative image registration technique", IJCAI 1981), over the supports of the control
points and with the penalty of the search on the total displacement. The gradient is the mean of the two images', which
makes a step second-order accurate (Benhimane and Malis, "Real-time image-based tracking of planes using efficient
second-order minimization", IROS 2004).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from atlasnet.execution.reductions import ordered_sum
from atlasnet.registration.propagation import Smoothness
from atlasnet.registration.similarity.pair import Supports, channel_mean

# A step is trusted no further than this, voxels: beyond, the images are not linear.
LONGEST_STEP = 0.7
# Rounds of conjugate gradients: what couples control points reaches a few of them far, the next step brings the rest.
ROUNDS = 15
# Share of the mean curvature added to every control point, which keeps a support without contrast well-posed.
DAMPING = 1e-2
# The entries of a symmetric 3 x 3 matrix, in the order in which curvature is stored.
UPPER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


@dataclass(frozen=True, eq=False)
class Step:
    """One step of `refine`.

    Args:
        coefficients: (3, cz, cy, cx) displacement of the control points, components (x, y, z), voxels.
        correlation: of the two contrasts before the step, in [-1, 1]; 0 where there is none.
    """

    coefficients: Tensor
    correlation: float


def refine(
    target: Tensor,
    source: Tensor,
    counted: Tensor,
    supports: Supports,
    smoothness: Smoothness,
    weight: float | Tensor = 1.0,
    *,
    masked: bool = False,
) -> Step:
    """One regularised Gauss-Newton step.

    Args:
        target: (c, z, y, x) local contrast.
        source: (c, z, y, x) that of the source as it is warped now.
        counted: (z, y, x) bool, voxels known in both.
        supports: of the control points over the voxels.
        smoothness: the quadratic penalty, with the displacement that the control points already have. Its truncation
            does not matter here: steps of less than a voxel do not jump.
        weight: of the images against the penalty, everywhere or (cz, cy, cx) at each control point.
        masked: whether a mask takes voxels of either image away; the contrast has no slope towards these.
    """
    seen = counted.to(target.dtype)
    target, source = _standardised(target, seen), _standardised(source, seen)
    difference = target - source
    known = counted if masked else None
    gradient = _gradient((target + source) / 2, known)
    curvature = weight * torch.stack([supports.mean(channel_mean(gradient[i] * gradient[j])) for i, j in UPPER])
    slope = weight * torch.stack([supports.mean(channel_mean(component * difference)) for component in gradient])
    factors = slope.new_tensor(smoothness.weights)
    coefficients = _solve(curvature, slope - _penalty_gradient(smoothness.offsets, factors), factors)
    length = coefficients.square().sum(0).sqrt()
    coefficients = coefficients * (LONGEST_STEP / length.clamp(min=LONGEST_STEP))
    return Step(coefficients, float(ordered_sum(channel_mean(target * source)) / ordered_sum(seen).clamp(min=1)))


def _standardised(contrast: Tensor, seen: Tensor) -> Tensor:
    """0 where it is not seen, mean square 1 elsewhere; without any contrast, 0."""
    contrast = contrast * seen
    power = ordered_sum(contrast.square(), kept=1)[:, None, None, None] / ordered_sum(seen).clamp(min=1)
    return contrast * power.clamp(min=1e-12).rsqrt().masked_fill(power <= 1e-12, 0.0)


def _gradient(image: Tensor, known: Tensor | None) -> list[Tensor]:
    """Derivatives of (c, z, y, x) along (x, y, z): central, one-sided at the border, 0 along a single voxel.

    With ``known`` (z, y, x), bool, its edge is a border like that of the image, and what is not known has none.
    """
    if known is not None:
        return [_gradient_within(image, known, axis) for axis in (3, 2, 1)]
    return [
        torch.gradient(image, dim=axis)[0] if image.shape[axis] > 1 else torch.zeros_like(image) for axis in (3, 2, 1)
    ]


def _gradient_within(image: Tensor, known: Tensor, axis: int) -> Tensor:
    """The mean of the differences along one axis of (c, z, y, x) to those neighbours that are ``known``."""
    count = image.shape[axis]
    both = known.narrow(axis - 1, 0, count - 1) & known.narrow(axis - 1, 1, count - 1)
    difference, sides = image.diff(dim=axis) * both, both.to(image.dtype)
    total, number = torch.zeros_like(image), torch.zeros_like(image[0])
    for first in (0, 1):
        total.narrow(axis, first, count - 1).add_(difference)
        number.narrow(axis - 1, first, count - 1).add_(sides)
    return total / number.clamp(min=1)


def _penalty_gradient(displacement: Tensor, factors: Tensor) -> Tensor:
    """The derivative of the penalty by (3, cz, cy, cx), the displacement of the control points.

    ``factors`` (3, 3) are the weights of `Smoothness`.
    """
    result, twice = torch.zeros_like(displacement), 2 * factors[..., None, None, None]
    for axis in range(3):
        count = displacement.shape[axis + 1]
        if count > 1:
            pull = twice[axis] * displacement.diff(dim=axis + 1)
            result.narrow(axis + 1, 0, count - 1).sub_(pull)
            result.narrow(axis + 1, 1, count - 1).add_(pull)
    return result


def _solve(curvature: Tensor, slope: Tensor, factors: Tensor) -> Tensor:
    """Solve (H + P) d = slope by conjugate gradients with the diagonal as preconditioner."""
    rows = curvature[[0, 3, 4, 3, 1, 5, 4, 5, 2]].unflatten(0, (3, 3))  # of xx, yy, zz, xy, xz, yz
    damping = DAMPING * ordered_sum(curvature[:3]) / curvature[:3].numel()

    def product(d: Tensor) -> Tensor:
        data: Tensor = rows[:, 0] * d[0] + rows[:, 1] * d[1] + rows[:, 2] * d[2]
        return data + damping * d + _penalty_gradient(d, factors)

    both_neighbours = 4 * factors.sum(0)
    diagonal = (curvature[:3] + damping + both_neighbours[:, None, None, None]).clamp(min=1e-12)
    solution, residual = torch.zeros_like(slope), slope
    direction = residual / diagonal
    descent = ordered_sum(residual * direction)
    for _ in range(ROUNDS):
        image = product(direction)
        advance = descent / ordered_sum(direction * image).clamp(min=1e-30)
        solution = solution + advance * direction
        residual = residual - advance * image
        scaled = residual / diagonal
        before, descent = descent, ordered_sum(residual * scaled)
        direction = scaled + (descent / before.clamp(min=1e-30)) * direction
    return solution
