"""Refinement of an affine map between two levels, both images looking at each other.

The cost is 1 - NCC^2 (signed), averaged over both directions and over channels; by regressing one image's intensities
on the other's it is a least-squares problem, solved by Gauss-Newton with Levenberg-Marquardt damping. Counting both
directions makes the result (nearly) the inverse of that of the swapped pair and takes away the gain of shrinking one
image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlasnet.registration.affine_pyramid import Level, interpolate

Float = NDArray[np.float64]

STAGES = ("rigid", "similarity", "affine")
# Samples per unknown below which a direction is not trusted.
_SAMPLES_PER_PARAMETER = 8
# A step moves no corner by more than this many voxels.
_LONGEST_STEP = 6.0


@dataclass(frozen=True, eq=False)
class View:
    """One image made ready: what is read at mapped points, and its own voxels as points that read the other image."""

    level: Level
    readable: Tensor
    points: Tensor
    values: Tensor
    weight: Tensor
    total: float

    @property
    def volume(self) -> float:
        """Of what counts, mm^3 (mm^2 in the plane)."""
        return self.total * float(np.prod(self.level.spacing))

    @classmethod
    def of(cls, level: Level) -> View:
        """Prepare a level."""
        own = torch.nonzero(level.weight.reshape(-1) > 0.01).squeeze(1)
        weight = level.weight.reshape(-1)[own]
        return cls(
            level,
            torch.cat([level.image, level.gradient(), level.weight]),
            level.points()[own],
            level.image.flatten(1)[:, own],
            weight,
            float(weight.sum()),
        )


@dataclass(frozen=True)
class Penalty:
    """How implausible a strain is.

    Args:
        scale: standard deviation of the logarithm of size.
        shear: standard deviation of the logarithms of anisotropic stretches.
        weight: of one squared standard deviation, against a cost in [0, 2].
    """

    scale: float
    shear: float
    weight: float

    def normal(self, linear: Float) -> tuple[float, Float, Float]:
        """Value at a linear map (d, d), gradient (d * d) and Gauss-Newton matrix for updates linear @ (1 + update).

        The value is the squared length of the logarithmic strain, log(linear.T @ linear) / 2, in standard deviations.
        The derivative of the matrix logarithm is taken in its eigenvectors (Daleckii and Krein).
        """
        d = len(linear)
        metric = linear.T @ linear
        values, vectors = np.linalg.eigh(metric)
        logs = np.log(values)
        difference = values[:, None] - values
        close = np.abs(difference) < 1e-6 * values.max()
        quotients = np.where(
            close, 2 / (values[:, None] + values), (logs[:, None] - logs) / np.where(close, 1, difference)
        )
        units = np.eye(d * d).reshape(-1, d, d)
        changes = metric @ units + units.transpose(0, 2, 1) @ metric
        rates = 0.5 * vectors @ (quotients * (vectors.T @ changes @ vectors)) @ vectors.T
        residual = self._deviations((0.5 * (vectors * logs) @ vectors.T)[None])[0]
        slopes = self._deviations(rates)
        return float(residual @ residual), slopes @ residual, slopes @ slopes.T

    def _deviations(self, strains: Float) -> Float:
        """(n, 1 + d * d) weighted standard deviations of strains (n, d, d): size, then proportions."""
        d = strains.shape[-1]
        size = np.trace(strains, axis1=1, axis2=2)[:, None] / d
        shape = (strains - size[:, :, None] * np.eye(d)).reshape(len(strains), -1)
        return np.asarray(np.sqrt(self.weight) * np.concatenate([size / self.scale, shape / self.shear], axis=1))


@dataclass(frozen=True)
class Direction:
    """One image explained by the other: mean cost over the overlap, correlation, and the overlap.

    ``derivatives`` gives gradient and Hessian of the cost; they take as long as all else, and of a map that is no
    better than the one before nobody asks for them.
    """

    cost: float
    correlation: float
    overlap: float
    derivatives: Callable[[], tuple[Float, Float]]


@dataclass(frozen=True)
class Fit:
    """Where a refinement ended: (d + 1, d + 1) map in content frames, target to source.

    ``cost`` is what was minimised, ``correlation`` the mean NCC of both directions, ``overlap`` the larger of the
    shares of the two images that the other sees. ``missing`` is what a voxel out of view cost, ``unseen`` the mean of
    the shares that were, so that fits from several starts can be compared by one price.
    """

    matrix: Float
    cost: float
    correlation: float
    overlap: float
    iterations: int
    missing: float
    unseen: float

    def cost_at(self, missing: float) -> float:
        """The cost if a voxel out of view cost so much."""
        return self.cost + self.unseen * (missing - self.missing)


def basis(dims: int, stage: str) -> Float:
    """(d * (d + 1), k) directions of small updates: rows are entries (i, j) of the update, j = d the translation."""
    if stage == "affine":
        return np.eye(dims * (dims + 1))
    columns = [np.zeros((dims, dims + 1)) for _ in range(dims)]
    for i, column in enumerate(columns):
        column[i, dims] = 1
    for i in range(dims):
        for j in range(i):
            turn = np.zeros((dims, dims + 1))
            turn[i, j], turn[j, i] = 1, -1
            columns.append(turn)
    if stage == "similarity":
        columns.append(np.eye(dims, dims + 1))
    return np.stack([column.reshape(-1) for column in columns], 1)


def _look(fixed: View, moving: View, matrix: Float, pull: Float, sign: float, radius: float) -> Direction:
    """Explain ``fixed`` by ``moving`` read at ``matrix`` times the points of ``fixed``.

    Small updates act on target points, of which ``fixed`` has its own (``sign`` 1) or gets them by mapping (-1);
    ``pull`` takes derivatives of ``moving`` to target axes. Linear entries of an update are in units of 1 / ``radius``.
    """
    d, channels = fixed.level.dims, len(fixed.values)
    unknowns = d * (d + 1)
    tensor = fixed.level.tensor
    mapped = fixed.points @ tensor(matrix[:d, :d]).T + tensor(matrix[:d, d])
    index = moving.level.index(mapped)
    seen = torch.nonzero(moving.level.inside(index)).squeeze(1)
    nothing = Direction(1.0, 0.0, 0.0, lambda: (np.zeros(unknowns), np.zeros((unknowns, unknowns))))
    if len(seen) < _SAMPLES_PER_PARAMETER * unknowns:
        return nothing
    read = interpolate(moving.readable, index[seen])
    weight = fixed.weight[seen] * read[-1]
    total = float(weight.sum())
    # So many equal weights would say as much (Kish); near the edge of a mask all are small, which is no want of them.
    if total**2 < _SAMPLES_PER_PARAMETER * unknowns * float((weight**2).sum()):
        return nothing
    cost, correlations = 0.0, 0.0
    explained = []
    for channel in range(channels):
        wanted, found = fixed.values[channel, seen], read[channel]
        wanted = wanted - (weight * wanted).sum() / total
        found = found - (weight * found).sum() / total
        counted = weight * wanted
        own, other, shared = (
            float((a * b).sum()) for a, b in ((counted, wanted), (weight * found, found), (counted, found))
        )
        if min(own, other) < 1e-6 * total:
            cost += 1.0
            continue
        correlation, slope = shared / np.sqrt(own * other), shared / other
        correlations += correlation
        cost += 1 - correlation * abs(correlation)
        if slope > 0:
            explained.append((channel, own, other, slope, wanted, found))

    def derivatives() -> tuple[Float, Float]:
        places = fixed.points[seen] if sign > 0 else mapped[seen]
        places = torch.cat([places / radius, torch.ones_like(places[:, :1])], 1)
        gradient, hessian = np.zeros(unknowns), np.zeros((unknowns, unknowns))
        for channel, own, other, slope, wanted, found in explained:
            slopes = read[channels + channel * d : channels + (channel + 1) * d].T @ tensor(pull)
            jacobian = (sign * slope * slopes[:, :, None] * places[:, None, :]).flatten(1)
            weighted = jacobian * weight[:, None]
            # Offset and slope of the intensities follow every update: what they explain is no reason to move.
            nuisance = torch.stack([torch.ones_like(found), found], 1)
            cross = (weighted.T @ nuisance).double().cpu().numpy()
            normal = (weighted.T @ jacobian).double().cpu().numpy() - (cross / [total, other]) @ cross.T
            gradient -= (weighted.T @ (wanted - slope * found)).double().cpu().numpy() / own
            hessian += normal / own
        return gradient / channels, hessian / channels

    return Direction(cost / channels, correlations / channels, total / fixed.total, derivatives)


def _shares(looks: tuple[Direction, Direction], volumes: tuple[float, float] | None) -> tuple[float, float]:
    """How much of each image the other sees; with ``volumes`` (mm^3) of what counts in them, one share for both.

    A structure that a mask leaves of one image is a small part of the other, of which most is out of view wherever the
    structure lies. So the smaller an image, the more its share counts.
    """
    there, back = (look.overlap for look in looks)
    if volumes is None or not any(volumes):
        return there, back
    target, source = volumes
    shared = (source * there + target * back) / (source + target)
    return shared, shared


def refine(
    target: View,
    source: View,
    start: Float,
    stage: str,
    penalty: Penalty,
    *,
    missing: float,
    masked: bool,
    iterations: int,
    tolerance: float,
    checkpoint: Callable[[], None],
) -> Fit:
    """Improve a map until no corner moves by ``tolerance`` voxels any more.

    Args:
        target: the image whose points are mapped.
        source: the image that they are mapped into.
        start: (d + 1, d + 1), mm, content frames.
        stage: which updates are allowed: ``rigid``, ``similarity`` or ``affine``.
        penalty: on the strain of the map.
        missing: the cost of a voxel out of the other image's view; never below the cost at the start, so that leaving
            the view does not pay.
        masked: whether a mask says what counts in either image; see `_shares`.
        iterations: at most.
        tolerance: in voxels of the target level.
        checkpoint: called once per iteration; may raise to stop.
    """
    d = target.level.dims
    directions = basis(d, stage)
    radius = float(target.level.extent.max()) / 2
    voxel = max(target.level.spacing)
    volumes = (target.volume, source.volume) if masked else None

    def evaluate(matrix: Float) -> tuple[Direction, Direction]:
        back = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
        return (
            _look(target, source, matrix, matrix[:d, :d], 1.0, radius),
            _look(source, target, back, np.eye(d), -1.0, radius),
        )

    def price(strain: float, looks: tuple[Direction, Direction]) -> float:
        for look, share in zip(looks, _shares(looks, volumes), strict=True):
            strain += 0.5 * (share * look.cost + (1 - share) * missing)
        return strain

    def combine(slope: Float, curvature: Float, looks: tuple[Direction, Direction]) -> tuple[Float, Float]:
        entries = np.arange(d * (d + 1)).reshape(d, d + 1)[:, :d].reshape(-1)
        gradient, hessian = np.zeros(d * (d + 1)), np.zeros((d * (d + 1),) * 2)
        gradient[entries] = slope / radius
        hessian[np.ix_(entries, entries)] = curvature / radius**2
        for look, share in zip(looks, _shares(looks, volumes), strict=True):
            own = look.derivatives()
            gradient += 0.5 * share * own[0]
            hessian += 0.5 * share * own[1]
        return directions.T @ gradient, directions.T @ hessian @ directions

    def advanced(matrix: Float, step: Float) -> Float:
        update = np.zeros((d + 1, d + 1))
        update[:d] = (directions @ step).reshape(d, d + 1)
        update[:d, :d] /= radius
        # SciPy's wakes a thread of its linear algebra for each core, which takes far longer than so small a product.
        return np.asarray(matrix @ torch.linalg.matrix_exp(torch.from_numpy(update)).numpy())

    matrix, damping, done = np.asarray(start, dtype=float), 1e-3, 0
    looks = evaluate(matrix)
    missing = max(missing, *(look.cost for look in looks if look.overlap > 0), 0.0)
    strain, slope, curvature = penalty.normal(matrix[:d, :d])
    cost = price(strain, looks)
    gradient, hessian = combine(slope, curvature, looks)
    while done < iterations:
        checkpoint()
        done += 1
        damped = hessian + np.diag(damping * np.diag(hessian) + 1e-12)
        step = np.asarray(-np.linalg.solve(damped, gradient), dtype=np.float64)
        length = float(np.abs(directions @ step).max()) / voxel
        if length > _LONGEST_STEP:
            step *= _LONGEST_STEP / length
        trial = advanced(matrix, step)
        seen = evaluate(trial)
        strain, slope, curvature = penalty.normal(trial[:d, :d])
        value = price(strain, seen)
        better = value < cost
        if better:
            matrix, looks, cost = trial, seen, value
            damping = max(damping / 5, 1e-4)
        else:
            damping = max(damping, 1e-2) * 10
        if length < tolerance or damping > 1e6:
            break
        if better:
            gradient, hessian = combine(slope, curvature, looks)
    correlation = (looks[0].correlation + looks[1].correlation) / 2
    unseen = 1 - sum(_shares(looks, volumes)) / 2
    return Fit(matrix, float(cost), float(correlation), max(look.overlap for look in looks), done, missing, unseen)
