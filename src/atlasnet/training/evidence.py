"""What tells a scan that is not like the training subjects: a few numbers, measured alike of those and of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atlasnet.cohort import Plan
from atlasnet.errors import VolumeError
from atlasnet.execution import Execution
from atlasnet.registration import Registration, mirror_correlations, orientation_margin
from atlasnet.training.mapping import along_own_axes, region_grid, to_slices
from atlasnet.training.store import IGNORED
from atlasnet.training.transformer import MappedCohort
from atlasnet.transform import Transform
from atlasnet.volume import Grid, Volume

SHARES = np.linspace(0.01, 0.99, 50)  # of the voxels: those beyond are few, and other ones in every scan
POINTS = 200  # of an atlas's labelled region; they stand for all of it within a few per cent

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Intensities:
    """A scan's intensities as a network sees them, about the coarser of the plan's two spacings apart.

    Args:
        quantiles: (channels, shares), at `SHARES`, normalised.
        roughness: mean over the channels of the mean absolute second difference along the axis where it is least;
            noise raises it along every axis, thick slices along one.
    """

    quantiles: Float
    roughness: float

    def distance(self, quantiles: Float) -> float:
        """How far the distribution lies from another: the mean difference of their quantiles, in the worst channel."""
        return float(np.abs(self.quantiles - quantiles).mean(1).max())

    def to_json(self) -> dict[str, Any]:
        """As JSON, rounded to what counts."""
        return {"quantiles": np.round(self.quantiles, 5).tolist(), "roughness": round(self.roughness, 6)}

    @classmethod
    def from_json(cls, value: Any) -> Intensities:
        """Read what `to_json` wrote.

        Raises:
            ValueError: there are other numbers than those.
        """
        return cls(finite(value["quantiles"]), float(finite(value["roughness"])))


def finite(values: Any) -> Float:
    """Numbers out of JSON, where 1e999 is infinite.

    Raises:
        ValueError: one of them is not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError("expected finite numbers")
    return found


def measure_intensities(prepared: Volume, plan: Plan) -> Intensities:
    """Measure a scan.

    Args:
        prepared: from `atlasnet.training.mapping.prepare`.
        plan: with which it was prepared.
    """
    # The networks' voxels may be made for a region that is small beside a scan, of which all is looked at here.
    apart = along_own_axes(np.maximum(plan.spacing, plan.registration_spacing).tolist(), prepared.grid, plan)
    x, y, z = np.maximum(1, np.floor(apart / prepared.grid.spacing + 0.5)).astype(int).tolist()
    thinned = prepared.array[:, ::z, ::y, ::x].astype(np.float64)
    quantiles = np.quantile(thinned.reshape(len(thinned), -1), SHARES, axis=1).T
    return Intensities(quantiles, float(np.mean([_roughness(channel) for channel in thinned])))


def _roughness(channel: Float) -> float:
    axes = [axis for axis, count in enumerate(channel.shape) if count > 2]
    return min((float(np.abs(np.diff(channel, 2, axis)).mean()) for axis in axes), default=0.0)


def region_points(mapped: MappedCohort, grid: Grid, slice_axis: str) -> Float:
    """(`POINTS`, 3) LPS mm, drawn from the labelled region of an atlas: where mapped references have labels.

    Args:
        mapped: the training subjects in the atlas's space.
        grid: the atlas's working grid.
        slice_axis: of the plan.
    """
    part = region_grid(grid, mapped.region, slice_axis)
    counts = np.zeros((1, *part.shape), dtype=np.int64)
    seen = to_slices(counts, slice_axis)[0]
    for case in mapped.cases:
        labels = np.asarray(case.labels)
        seen += (labels != 0) & (labels != IGNORED)  # a view of the counts
    flat = counts.ravel().astype(np.float64)
    if not flat.any():
        return np.empty((0, 3))
    # Seeded, not by the user: which points stand for a region is no choice of his.
    drawn = np.random.default_rng(0).choice(flat.size, POINTS, p=flat / flat.sum())
    z, y, x = np.unravel_index(drawn, part.shape)
    return np.round(part.to_world(np.stack([x, y, z], -1).astype(np.float64)), 1)


def united_points(before: Float, after: Float, share: float) -> Float:
    """Points of an atlas's labelled region as two groups of subjects have it.

    Args:
        before: (n, 3) LPS mm, of the first group, from `region_points` or united before.
        after: (m, 3) LPS mm, of the second.
        share: of the first group in all subjects, and so in the points.
    """
    if not (len(before) and len(after)):
        return before if len(before) else after
    count = max(len(before), len(after))
    kept = round(share * count)
    return np.concatenate([_thinned(before, kept), _thinned(after, count - kept)])


def _thinned(points: Float, count: int) -> Float:
    """So many of the points, evenly from first to last: united ones stand group after group."""
    chosen: Float = points[np.linspace(0, len(points) - 1, count).round().astype(int)]
    return chosen


def covered_share(points: Float, transform: Transform, scan: Grid) -> float:
    """The share of an atlas's points that lie in the field of view of a scan after registration."""
    moved = transform.forward(torch.from_numpy(points).to(transform.forward.device or "cpu")).cpu().numpy()
    index = scan.to_index(moved)
    return float(((index >= -0.5) & (index <= scan.size - 0.5)).all(-1).mean())


def covered(points: Mapping[str, Float], registrations: Mapping[str, Registration | None], scan: Grid) -> float | None:
    """Mean over the atlases of `covered_share`, 0 for a registration that failed; None where no region is known."""
    shares = [
        0.0 if found is None else covered_share(points[name], found.transform, scan)
        for name, found in registrations.items()
        if len(points.get(name, ()))
    ]
    return float(np.mean(shares)) if shares else None


def qualities(registrations: Mapping[str, Registration | None]) -> dict[str, float]:
    """The quality of each registration, 0 of one that failed."""
    return {name: 0.0 if found is None else float(found.record["quality"]) for name, found in registrations.items()}


def best_atlas(registrations: Mapping[str, Registration | None]) -> str | None:
    """The atlas onto which the registration's quality is highest, None where all failed."""
    found = {name: value for name, value in qualities(registrations).items() if registrations[name] is not None}
    return max(found, key=lambda name: found[name]) if found else None


def orientation(scan: Volume, atlas: Volume, execution: Execution) -> tuple[float, str] | None:
    """See `orientation_margin`; None where the two cannot be compared."""
    try:
        return orientation_margin(mirror_correlations(scan, atlas, execution=execution))
    except VolumeError:
        return None
