"""What is measured of every registration, whichever operator made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from atlasnet.errors import InputError
from atlasnet.execution import Execution
from atlasnet.registration.deformation import align, prepare_pair
from atlasnet.registration.intensity import OptionalRanges, Ranges, Window, choose_windows
from atlasnet.registration.operator import Task
from atlasnet.registration.pyramid import LevelSettings, build_levels, registration_grid
from atlasnet.registration.similarity import agreement, covered_share
from atlasnet.transform import PointMap, Transform, extremes_on
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import grown

# Similarities are compared between registrations, so they are taken at one resolution whatever the operator worked at.
SIMILARITY_VOXELS = 200_000
RESIDUAL_VOXELS = 250_000
# A fit is judged where both images are known; where that is less of the target, it may be by chance.
LEAST_COVERED = 0.02
MARGIN = 8  # voxels around a region that is looked at on its own
SIMILARITY_LEVEL = LevelSettings(factor=1, radius=0, support=4)


def similarities(
    source: Volume,
    source_mask: Volume | None,
    task: Task,
    maps: Mapping[str, PointMap],
    execution: Execution,
    *,
    clamp: Ranges | None = None,
    mi_range: OptionalRanges | None = None,
    windows: tuple[list[Window], list[Window]] | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Agreement of the target with the source under several maps.

    Args:
        source: (c, z, y, x).
        source_mask: where the source counts.
        task: the target and its mask.
        maps: by name, from target points into the source.
        execution: where to compute.
        clamp: see `MRFSettings`.
        mi_range: see `MRFSettings`.
        windows: see `prepare_pair`.

    Returns:
        Per map and metric the `agreement`, 0 for unrelated images, on a grid of at most 200,000 voxels; and per map the
        `covered_share`.
    """
    device = execution.torch_device()
    (level,) = build_levels(registration_grid(task.target.grid, None, SIMILARITY_VOXELS), (SIMILARITY_LEVEL,))
    there, here = prepare_pair(
        source,
        source_mask,
        task.target,
        task.mask,
        level.grid,
        execution,
        clamp=clamp,
        mi_range=mi_range,
        windows=windows,
    )
    still = torch.zeros((3, *level.grid.shape), device=device)
    result, covered = {}, {}
    for name, point_map in maps.items():
        pair = align(there, here.on(level.grid), still, point_map.to(device), level)
        result[name] = {metric: round(value, 6) for metric, value in agreement(pair).items()}
        covered[name] = round(covered_share(pair), 6)
    return result, covered


def regional_quality(
    source: Volume,
    target: Volume,
    transform: Transform,
    target_labels: Volume,
    source_labels: Volume | None = None,
    *,
    clamp: Ranges | None = None,
    mi_range: OptionalRanges | None = None,
    execution: Execution | None = None,
) -> dict[str, dict[str, float]]:
    """How well a map fits in each labelled region of the target.

    Args:
        source: (c, z, y, x).
        target: with as many channels.
        transform: from target points into the source.
        target_labels: on the target's grid, whole numbers, 0 outside every region.
        source_labels: on the source's grid; with them the overlap is measured too.
        clamp: see `MRFSettings`.
        mi_range: see `MRFSettings`.
        execution: where to compute.

    Returns:
        By label value, in digits: the similarity after registration of every metric (see `similarities`), as if the
        region's voxels were all there is; and ``dice`` of the source's label, carried over, with the target's.
    """
    execution = Execution.of(execution)
    known = target_labels.array[0]
    carried = None
    if source_labels is not None:
        carried = transform.warp(source_labels, target.grid, interpolation="label").array[0]
    result = {}
    # The part of an image is read as the whole is.
    windows = choose_windows(source, target, clamp, mi_range)
    with execution.active():
        for value in np.unique(known[known != 0]).tolist():
            here = known == value
            task, maps = Task(*_cropped(target, here), None), {"after": transform.forward}
            found = similarities(source, None, task, maps, execution, windows=windows)[0]["after"]
            if carried is not None:
                there = carried == value
                found["dice"] = round(2 * float((here & there).sum()) / float(here.sum() + there.sum()), 6)
            result[str(int(value))] = found
    return result


def _cropped(target: Volume, region: NDArray[np.bool_]) -> tuple[Volume, Volume]:
    """The part of an image around a region, and the region there, so that a small one is looked at closely."""
    box = ndimage.find_objects(region.astype(np.uint8))[0]
    wide = grown(box, MARGIN, region.shape)
    grid = target.grid.cropped(wide)
    part = Volume(np.ascontiguousarray(target.array[:, *wide]), grid)
    return part, Volume(np.ascontiguousarray(region[wide])[None].astype(np.uint8), grid)


def quality(similarity: Mapping[str, float], covered: float = 1.0) -> float:
    """A number in [0, 1] that grows with every similarity: their mean, negative agreement counting as none.

    Args:
        similarity: of every metric, for which voxels that are not covered are unrelated.
        covered: the share that is; with it, the quality is that of the fit where both images are known.
    """
    mean = sum(max(0.0, value) for value in similarity.values()) / max(1, len(similarity))
    return round(min(mean / covered, 1.0), 6) if covered > 0 else 0.0


def require_quality(minimum: float) -> None:
    """Refuse what cannot be the least quality that is asked of a registration, see `shortcoming`.

    Raises:
        InputError: it is not from 0 to 1.
    """
    if not 0 <= minimum <= 1:
        raise InputError("the least quality of a registration cannot be used", expected="0 to 1", found=f"{minimum:g}")


def shortcoming(record: Mapping[str, Any], minimum_quality: float) -> str | None:
    """Why a registration says too little to be used, in words; None where it can be.

    Args:
        record: of the registration; one of an earlier version has no covered share, which is in its quality.
        minimum_quality: that is asked of the fit; at 0 everything is used.
    """
    fit, covered = float(record["quality"]), float(record.get("covered", 1.0))
    if fit < minimum_quality:
        return f"registration quality {fit:.3f} is below {minimum_quality:g}"
    if minimum_quality > 0 and covered < LEAST_COVERED:
        return f"it covers {covered:.1%} of the other image, which is less than {LEAST_COVERED:.0%}"
    return None


def geometry(transform: Transform, target: Grid, source: Grid) -> tuple[Transform, dict[str, Any]]:
    """Measure a map on the two grids.

    Args:
        transform: any map.
        target: every voxel of it is where Jacobians and displacements are taken.
        source: the other grid. Residuals are taken at no more than 250,000 points of either field of view.

    Returns:
        The transform with its residual filled in, and the part of the record that is geometry: ``jacobian_min``,
        ``folded_share``, ``inverse_residual_mm`` (the worse direction, and both), ``max_displacement_mm``.
    """
    found = extremes_on(transform.forward, target)
    # What counts is between the nodes of the fields, and so many points are enough for a 99.9th percentile.
    transform = transform.measured(*(registration_grid(grid, None, RESIDUAL_VOXELS) for grid in (target, source)))
    directions = {name: dict(values) for name, values in transform.residual.items()}
    worst = {key: max(values[key] for values in directions.values()) for key in ("mean", "p999", "max")}
    return transform, {
        "jacobian_min": found.least,
        "folded_share": found.folded / target.voxels,
        "inverse_residual_mm": {**worst, **directions},
        "max_displacement_mm": found.furthest,
    }
