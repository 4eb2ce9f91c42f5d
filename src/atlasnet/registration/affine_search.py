"""All translations at once, for a set of turns: masked normalised correlation by Fourier transform.

Padfield, "Masked object registration in the Fourier domain", IEEE Transactions on Image Processing 21(5), 2012.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.spatial.transform import Rotation
from torch import Tensor

from atlasnet.registration.affine_pyramid import Level, interpolate, lattice_points

Float = NDArray[np.float64]

# Variance per voxel of standardised images below which a correlation means nothing.
_FLAT = 1e-3


@dataclass(frozen=True)
class Pose:
    """A rigid placement, source point = rotation @ target point + translation (mm, content frames), and its cost."""

    cost: float
    rotation: Float
    translation: Float

    @property
    def matrix(self) -> Float:
        """(d + 1, d + 1)."""
        d = len(self.translation)
        matrix = np.eye(d + 1)
        matrix[:d, :d], matrix[:d, d] = self.rotation, self.translation
        return matrix


def turns(dims: int, step: float, count: int) -> list[Float]:
    """Rotations (d, d) by vectors of multiples of ``step`` degrees, up to ``count`` along each axis; identity first."""
    vectors = itertools.product(range(-count, count + 1), repeat=1 if dims == 2 else 3)
    ordered = sorted(vectors, key=lambda vector: (sum(v * v for v in vector), vector))
    if dims == 2:
        full = [Rotation.from_rotvec([0, 0, np.radians(step) * angle]) for (angle,) in ordered]
    else:
        full = [Rotation.from_rotvec(np.radians(step) * np.array(vector)) for vector in ordered]
    return [np.asarray(rotation.as_matrix())[:dims, :dims] for rotation in full]


def search(
    target: Level, source: Level, rotations: Sequence[Float], *, minimum_overlap: float, missing: float
) -> list[Pose]:
    """The best translation of every turn, best turn first.

    The cost of a placement is 1 - NCC (mean over channels) over the overlap, and ``missing`` over the rest of the
    smaller image, so that sliding out of view does not win.

    Args:
        target: at the spacing of the source.
        source: standardised, as the target is.
        rotations: (d, d) each, target axes to source axes.
        minimum_overlap: of the smaller image; placements with less are not considered.
        missing: the cost of a voxel of the smaller image that is out of the other's view.
    """
    spacing = max(*source.spacing, *target.spacing)
    fixed, fixed_weight = _turned(source, np.eye(source.dims), spacing)
    moving = [_turned(target, rotation, spacing) for rotation in rotations]
    axes = tuple(range(-source.dims, 0))
    reach = np.array(fixed.shape[1:]) + np.max([image.shape[1:] for image, _ in moving], axis=0) - 1
    lengths = [next_fast_len(int(n), real=True) for n in reach]
    smaller = (
        min(float(level.weight.sum()) * float(np.prod(level.spacing)) for level in (source, target))
        / spacing**source.dims
    )

    def spectra(image: Tensor, weight: Tensor) -> Tensor:
        """(1 + 2c, ...): weight, weighted image, weighted square."""
        parts = torch.cat([weight, image * weight, image * image * weight])
        return torch.as_tensor(torch.fft.rfftn(parts, s=lengths, dim=axes))

    channels = len(fixed)
    f0, f1, f2 = torch.split(spectra(fixed, fixed_weight), [1, channels, channels])
    poses = []
    for (image, weight), rotation in zip(moving, rotations, strict=True):
        g0, g1, g2 = torch.split(spectra(image, weight).conj(), [1, channels, channels])
        sums = torch.fft.irfftn(torch.cat([f0 * g0, f1 * g0, f0 * g1, f2 * g0, f0 * g2, f1 * g1]), s=lengths, dim=axes)
        count, sf, sg, sff, sgg, sfg = torch.split(sums, [1, *[channels] * 5])
        safe = count.clamp(min=0.5)
        spread_f, spread_g = (sff - sf * sf / safe).clamp(min=0), (sgg - sg * sg / safe).clamp(min=0)
        spread = ((spread_f + _FLAT * safe) * (spread_g + _FLAT * safe)).sqrt()
        correlation = ((sfg - sf * sg / safe) / spread).mean(0).clamp(-1, 1)
        overlap = (count[0] / smaller).clamp(0, 1)
        cost = overlap * (1 - correlation) + (1 - overlap) * missing
        cost = torch.where(overlap < minimum_overlap, torch.full_like(cost, 4.0), cost)
        best = int(cost.argmin())
        shift = np.array(np.unravel_index(best, tuple(cost.shape)))
        shift = np.where(shift >= fixed.shape[1:], shift - np.array(lengths), shift)
        # Voxel i of the turned target lies over voxel i + shift of the source; content frames begin in the middles.
        middles = (np.array(image.shape[1:]) - np.array(fixed.shape[1:])) / 2
        poses.append(Pose(float(cost.reshape(-1)[best]), rotation, (shift + middles)[::-1] * spacing))
    return sorted(poses, key=lambda pose: pose.cost)


def _turned(level: Level, rotation: Float, spacing: float) -> tuple[Tensor, Tensor]:
    """Image and weight on an even lattice that holds all of the turned image: lattice point = rotation @ level
    point.
    """
    size = np.maximum(1, np.rint(np.abs(rotation) @ level.extent / spacing)).astype(int)
    shape = tuple(size[::-1].tolist())
    points = lattice_points(shape, (spacing,) * level.dims, level.image.device)
    index = level.index(points @ level.tensor(rotation))
    values = interpolate(torch.cat([level.image, level.weight]), index)
    values[-1] *= level.inside(index)
    values = values.reshape(-1, *shape)
    return values[:-1], values[-1:]
