"""The coarse-to-fine optimisation: from two images and an initial map to a displacement field."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlasnet.execution import Execution
from atlasnet.registration import lattice
from atlasnet.registration.context import ClassMap, point_weights
from atlasnet.registration.free_form import compose, resize, step_field
from atlasnet.registration.intensity import OptionalRanges, Ranges, Window, choose_windows
from atlasnet.registration.lattice import Lattice
from atlasnet.registration.propagation import Smoothness, propagate, step_energy
from atlasnet.registration.pyramid import Level, finest_spacing
from atlasnet.registration.refinement import Step, refine
from atlasnet.registration.settings import MRFSettings
from atlasnet.registration.similarity import (
    AlignedPair,
    Boxes,
    Supports,
    local_contrast,
    self_similarity,
    weighted_costs,
)
from atlasnet.transform import FramedPoints, PointMap, repair
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import along_axes, inside, sample
from atlasnet.volume.sampling import lattice as index_points

# Half the edge of the boxes in which contrast is taken, in voxels of the registration grid.
CONTRAST_REACH = 2


@dataclass(frozen=True, eq=False)
class Image:
    """One image prepared for the pyramid.

    Args:
        values: (c, z, y, x) normalised intensities.
        contrast: (c, z, y, x) their `local_contrast`.
        descriptor: (d, z, y, x) their `self_similarity`; None where it is not wanted.
        mask: (1, z, y, x) 1 where voxels count, else 0; None: everywhere.
        grid: where they lie.
        windows: how intensities were read, per channel.
    """

    values: Tensor
    contrast: Tensor
    descriptor: Tensor | None
    mask: Tensor | None
    grid: Grid
    windows: tuple[Window, ...]

    @classmethod
    def prepare(
        cls,
        volume: Volume,
        mask: Volume | None,
        windows: list[Window],
        grid: Grid,
        execution: Execution,
        *,
        spacing: float,
        descriptor: bool,
    ) -> Image:
        """Read intensities and bring them to ``grid``, which is concentric with the volume's and not finer.

        ``spacing`` (mm) is that of the registration: the boxes of the contrast reach `CONTRAST_REACH` times as far.
        ``descriptor`` asks for the self-similarity, in patches that reach one such spacing.
        """
        matrices = lattice.interpolation(Lattice.of(volume.grid), Lattice.of(grid), execution.torch_device())
        channels = [
            along_axes(matrices, window.normalise(channel))
            for channel, window in zip(execution.tensor(volume.array), windows, strict=True)
        ]
        weight = None
        if mask is not None:
            weight = along_axes(matrices, (execution.tensor(mask.array)[0] != 0).to(torch.float32))[None]
        values = torch.stack(channels)

        contrast = local_contrast(values, weight, _voxels(CONTRAST_REACH * spacing, grid))
        described = self_similarity(values, weight, _voxels(spacing, grid)) if descriptor else None
        return cls(values, contrast, described, weight, grid, tuple(windows))

    @property
    def counted(self) -> Tensor:
        """(z, y, x) bool, the voxels that count."""
        if self.mask is None:
            return torch.ones(self.grid.shape, dtype=torch.bool, device=self.values.device)
        return self.mask[0] >= 0.5

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Values, contrast, descriptor (c or d, ...) and whether they count, bool (...), at index points (..., 3)."""
        both, known = self.read(torch.cat([self.values, self.contrast]), index)
        values, contrast = both.chunk(2)
        descriptor = None if self.descriptor is None else sample(self.descriptor, index)
        return values, contrast, descriptor, known

    def read(self, array: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """``array`` (c, z, y, x), some of what the image holds, at index points (..., 3): (c, ...); and whether these
        are in the field of view and count: bool (...).
        """
        known = inside(index, self.grid.shape)
        if self.mask is None:
            return sample(array, index), known
        # Most of the time goes into finding the voxels around the points, which is done once.
        found = sample(torch.cat([array, self.mask]), index)
        return found[:-1], known & (found[-1] >= 0.5)

    def on(self, grid: Grid) -> Image:
        """The image at the voxels of another grid, without smoothing."""
        if grid.matches(self.grid, 1e-3):
            return self
        points = index_points(grid.shape, 0, grid.shape[0], device=self.values.device)
        index = FramedPoints(points, grid.affine).relative_to(self.grid.affine)
        values, contrast, descriptor, known = self.at(index)
        return Image(values, contrast, descriptor, known[None].to(torch.float32), grid, self.windows)


def _voxels(distance: float, grid: Grid) -> tuple[int, int, int]:
    """A distance in mm as voxels along (z, y, x): one at least, and none along an axis of a single voxel."""
    z, y, x = (
        min(max(1, round(distance / step)), n - 1)
        for step, n in zip(reversed(grid.spacing.tolist()), grid.shape, strict=True)
    )
    return z, y, x


def prepare_pair(
    source: Volume,
    source_mask: Volume | None,
    target: Volume,
    target_mask: Volume | None,
    grid: Grid,
    execution: Execution,
    *,
    clamp: Ranges | None = None,
    mi_range: OptionalRanges | None = None,
    windows: tuple[list[Window], list[Window]] | None = None,
    descriptor: bool = False,
) -> tuple[Image, Image]:
    """Source and target as the metrics see them: the target on ``grid``, the source on its own, about as fine.

    Args:
        source: (c, z, y, x).
        source_mask: where the source counts.
        target: with as many channels.
        target_mask: where the target counts.
        grid: concentric with the target's, on which is worked.
        execution: where to compute.
        clamp: see `MRFSettings`.
        mi_range: see `MRFSettings`.
        windows: how the source's and the target's channels are read, instead of by ``clamp`` and ``mi_range``.
        descriptor: whether a metric compares self-similarities.
    """
    source_windows, target_windows = windows or choose_windows(source, target, clamp, mi_range)
    spacing, source_grid = finest_spacing(grid), comparable_grid(source.grid, grid)
    return (
        Image.prepare(
            source, source_mask, source_windows, source_grid, execution, spacing=spacing, descriptor=descriptor
        ),
        Image.prepare(target, target_mask, target_windows, grid, execution, spacing=spacing, descriptor=descriptor),
    )


def align(source: Image, target: Image, displacement: Tensor, initial: PointMap, level: Level) -> AlignedPair:
    """Warp the source onto the voxels of a level, with a margin for the labels.

    A coarse level does not smooth: it looks at fewer voxels of the images, which is enough for a support of many, and
    keeps the vessels and fissures that averages over its voxels would lose.

    Args:
        source: the source, about as fine as the finest level.
        target: the target at the voxels of the level.
        displacement: (3, z, y, x) on that grid, voxels, components (x, y, z), applied before ``initial``.
        initial: takes target points into the source.
        level: where to work.
    """
    index = warped_voxels(source.grid, displacement, level.labels.radii, initial, level.grid)
    values, contrast, descriptor, known = source.at(index)
    bins = tuple((s.relative_bins, t.relative_bins) for s, t in zip(source.windows, target.windows, strict=True))
    return AlignedPair(
        target=target.values,
        source=values,
        counted=target.counted,
        covered=known,
        target_contrast=target.contrast,
        source_contrast=contrast,
        target_descriptor=target.descriptor,
        source_descriptor=descriptor,
        labels=level.labels,
        image=level.image,
        control=level.control,
        bins=bins,
        masked=not bool(target.counted.all() and source.counted.all()),
    )


def warped_voxels(
    source: Grid, displacement: Tensor, margin: tuple[int, int, int], initial: PointMap, grid: Grid
) -> Tensor:
    """Where the displaced voxels of ``grid`` lie in the source.

    Args:
        source: its grid.
        displacement: (3, z, y, x) on ``grid``, voxels, components (x, y, z), applied before ``initial``.
        margin: how many voxels beyond ``grid`` are wanted along (z, y, x); the displacement continues there.
        initial: takes target points into the source.
        grid: of the target.

    Returns:
        Index points (z + 2 rz, y + 2 ry, x + 2 rx, 3) of the source.
    """
    rz, ry, rx = margin
    displacement = torch.nn.functional.pad(displacement[None], (rx, rx, ry, ry, rz, rz), mode="replicate")[0]
    _, z, y, x = displacement.shape
    points = index_points((z, y, x), 0, z, device=displacement.device)
    points = points + displacement.movedim(0, -1) - points.new_tensor((rx, ry, rz))
    return initial.advance(FramedPoints(points, grid.affine)).relative_to(source.affine)


def control_classes(classes: ClassMap, displacement: Tensor, initial: PointMap, level: Level) -> Tensor:
    """The class index (cz, cy, cx) most present in the support of each control point, as the images lie now.

    Args:
        classes: of the source, which are warped as it is, or of the target.
        displacement: see `align`.
        initial: see `align`.
        level: where to work.
    """
    if not classes.of_source:
        return classes.prevailing(classes.on(level.grid), level)
    index = warped_voxels(classes.grid, displacement, (0, 0, 0), initial, level.grid)
    return classes.prevailing(classes.at(index), level)


Witness = Callable[[Level, Tensor, AlignedPair], None]
"""Is shown a search before it is done: the level, the displacement so far (see `align`), and the images."""


def deform(
    source: Image,
    target: Image,
    initial: PointMap,
    levels: list[Level],
    settings: MRFSettings,
    execution: Execution,
    *,
    classes: ClassMap | None = None,
    witness: Witness | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Find the displacement that, applied before ``initial``, aligns the source with the target.

    Args:
        source: the source, not finer than needed.
        target: the target on the registration grid.
        initial: takes target points into the source.
        levels: from `build_levels`, coarsest first.
        settings: weights and regularisation.
        execution: asked for cancellation between levels and refinements.
        classes: of the voxels of one of the images, if the weights depend on them.
        witness: is shown every search.

    Returns:
        (3, z, y, x) displacement on the last level's grid, voxels, components (x, y, z) along its axes; and a
        record per level.
    """
    device, metrics = target.values.device, settings.metrics_on(levels[-1].grid)
    displacement = torch.zeros((3, *levels[0].grid.shape), device=device)
    lattice_before = levels[0].image
    records = []
    for level, following in zip(levels, [*levels[1:], None], strict=True):
        execution.pause()
        start = time.perf_counter()
        displacement = resize(displacement, lattice_before, level.image)
        lattice_before = level.image
        here = target.on(level.grid)
        record: dict[str, Any] = {
            "resolution": [round(float(s), 4) for s in level.grid.spacing],
            "control_spacing_mm": [round(s, 4) for s in reversed(level.control.spacing)],
            "control_points": level.control.shape[0] * level.control.shape[1] * level.control.shape[2],
            "labels": len(level.labels),
        }
        there = None if classes is None else control_classes(classes, displacement, initial, level)
        weights = point_weights(metrics, settings.classes, there)
        if len(level.labels) > 1:
            pair = align(source, here, displacement, initial, level)
            if witness is not None:
                witness(level, displacement, pair)
            coefficients, energies = _search(pair, weights, displacement, level, settings)
            displacement = compose(step_field(coefficients, level.control, level.image), displacement)
            record |= energies
        correlations = []
        for _ in range(level.settings.refinements):
            execution.pause()
            # The contrasts stand for all metrics together.
            step = _refine(
                source, here, displacement, initial, level, settings, sum(weights.values()), finest_spacing(target.grid)
            )
            displacement = compose(step_field(step.coefficients, level.control, level.image), displacement)
            correlations.append(round(step.correlation, 6))
        record["correlation_before_refinements"] = correlations
        if following is None or following.grid.shape != level.grid.shape:
            # Early and on coarse lattices a repair costs next to nothing; what it mends does not spoil the finer ones.
            unit_grid = Grid.from_parts(level.grid.shape)
            displacement, repaired = repair(displacement, unit_grid, floor=settings.smallest_jacobian)
            record["jacobian_min_before_repair"] = round(repaired.minimum_before, 4)
        record["seconds"] = round(time.perf_counter() - start, 3)
        records.append(record)
    return displacement, records


def _search(
    pair: AlignedPair,
    weights: dict[str, float | Tensor],
    displacement: Tensor,
    level: Level,
    settings: MRFSettings,
) -> tuple[Tensor, dict[str, float]]:
    """Belief propagation on one level: the step's coefficients (3, cz, cy, cx) in voxels, and the energies of its
    record, per control point.
    """
    unary = weighted_costs(pair, weights)
    smoothness = level_smoothness(displacement, level, settings.alpha, settings.truncation)
    labelling = propagate(unary, smoothness, level.labels, iterations=settings.iterations, damping=settings.damping)
    # Also where its energy is above that of the labelling: that instead carried labels of hippocampi no better with the
    # default alpha, and worse with 1.
    step = level.labels.expectation(labelling.beliefs, settings.temperature)
    return step, {
        "energy_before": labelling.energy_before,
        "energy_best_labelling": labelling.energy,
        "energy_step": float(step_energy(unary, smoothness, level.labels, step)) / labelling.labels.numel(),
    }


def _refine(
    source: Image,
    target: Image,
    displacement: Tensor,
    initial: PointMap,
    level: Level,
    settings: MRFSettings,
    weight: float | Tensor,
    spacing: float,
) -> Step:
    """One step between the labels; ``target`` at the voxels of the level, ``spacing`` (mm) that of the registration."""
    index = warped_voxels(source.grid, displacement, (0, 0, 0), initial, level.grid)
    masked = [not bool(image.counted.all()) for image in (target, source)]
    one_sided = sum(masked) == 1
    theirs, known = source.read(source.values if one_sided else source.contrast, index)
    ours, seen = target.contrast, target.counted & known
    if one_sided:
        # The contrast beside the edge of a mask is that of one side of it, in the image without a mask too.
        boxes = Boxes.around(seen[None].to(theirs.dtype), _voxels(CONTRAST_REACH * spacing, level.grid))
        ours, theirs = boxes.contrast(target.values), boxes.contrast(theirs)
    return refine(
        ours,
        theirs,
        seen,
        Supports(lattice.support(level.image, level.control, displacement.device)),
        level_smoothness(displacement, level, settings.alpha, settings.truncation),
        weight,
        masked=any(masked),
    )


def level_smoothness(displacement: Tensor, level: Level, alpha: float, truncation: float | None = None) -> Smoothness:
    """The penalty between the control points of a level, which have been displaced already."""
    to_control = lattice.interpolation(level.image, level.control, displacement.device)
    return Smoothness(along_axes(to_control, displacement), pair_weights(level, alpha), truncation)


def pair_weights(level: Level, alpha: float) -> tuple[tuple[float, float, float], ...]:
    """Factors that turn squared differences in voxels into alpha times squared derivatives (Dirichlet energy)."""
    z, y, x = level.image.spacing
    return tuple(
        (alpha * (x / distance) ** 2, alpha * (y / distance) ** 2, alpha * (z / distance) ** 2)
        for distance in level.control.spacing
    )


def comparable_grid(source: Grid, level: Grid) -> Grid:
    """A source's grid made as coarse as the finest axis of ``level``, whatever the two orientations; never finer."""
    wanted = np.where(source.size == 1, source.spacing, np.maximum(source.spacing, finest_spacing(level)))
    return source.with_spacing(wanted) if (wanted > source.spacing).any() else source
