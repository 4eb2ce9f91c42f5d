"""The coarse-to-fine optimisation: from two images and an initial map to a displacement field."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlasnet.execution import Execution
from atlasnet.registration import lattice
from atlasnet.registration.free_form import compose, resize, step_field
from atlasnet.registration.intensity import Ranges, Window, choose_windows
from atlasnet.registration.lattice import Lattice
from atlasnet.registration.propagation import Labelling, Smoothness, propagate
from atlasnet.registration.pyramid import Level, finest_spacing
from atlasnet.registration.settings import MRFSettings
from atlasnet.registration.similarity import AlignedPair, local_contrast, unary_costs
from atlasnet.transform import FramedPoints, PointMap, repair
from atlasnet.volume import Grid, Volume
from atlasnet.volume.sampling import inside, sample
from atlasnet.volume.sampling import lattice as index_points

# Half the edge of the boxes in which contrast is taken, in voxels of the registration grid.
CONTRAST_REACH = 2


@dataclass(frozen=True, eq=False)
class Image:
    """One image prepared for the pyramid.

    Args:
        values: (c, z, y, x) normalised intensities.
        contrast: (c, z, y, x) their `local_contrast`.
        mask: (1, z, y, x) 1 where voxels count, else 0; None: everywhere.
        grid: where they lie.
        windows: how intensities were read, per channel.
    """

    values: Tensor
    contrast: Tensor
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
        device: torch.device,
        *,
        spacing: float,
    ) -> Image:
        """Read intensities and bring them to ``grid``, which is concentric with the volume's and not finer.

        ``spacing`` (mm) is that of the registration: the boxes of the contrast reach `CONTRAST_REACH` times as far.
        """
        matrices = lattice.interpolation(Lattice.of(volume.grid), Lattice.of(grid), device)
        channels = [
            lattice.apply(matrices, window.normalise(_tensor(channel, device)))
            for channel, window in zip(volume.array, windows, strict=True)
        ]
        weight = None
        if mask is not None:
            weight = lattice.apply(matrices, _tensor(mask.array[0] != 0, device).to(torch.float32))[None]
        values = torch.stack(channels)
        z, y, x = (
            min(max(1, round(CONTRAST_REACH * spacing / step)), n - 1)
            for step, n in zip(reversed(grid.spacing.tolist()), grid.shape, strict=True)
        )
        return cls(values, local_contrast(values, weight, (z, y, x)), weight, grid, tuple(windows))

    def at(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (c, ...), contrast (c, ...) and whether they count, bool (...), at index points (..., 3)."""
        known = inside(index, self.grid.shape)
        if self.mask is not None:
            known &= sample(self.mask, index)[0] >= 0.5
        values, contrast = sample(torch.cat([self.values, self.contrast]), index).chunk(2)
        return values, contrast, known


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of a voxel array, whatever its type and strides."""
    if array.dtype.byteorder not in "=|" or array.dtype in (np.uint16, np.uint32, np.uint64):
        array = array.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def prepare_pair(
    source: Volume,
    source_mask: Volume | None,
    target: Volume,
    target_mask: Volume | None,
    grid: Grid,
    device: torch.device,
    *,
    clamp: Ranges | None,
    mi_range: Ranges | None,
) -> tuple[Image, Image]:
    """Source and target as the metrics see them: the target on ``grid``, the source on its own, about as fine.

    Args:
        source: (c, z, y, x).
        source_mask: where the source counts.
        target: with as many channels.
        target_mask: where the target counts.
        grid: concentric with the target's, on which is worked.
        device: where to compute.
        clamp: see `MRFSettings`.
        mi_range: see `MRFSettings`.
    """
    source_windows, target_windows = choose_windows(source, target, clamp, mi_range)
    spacing, source_grid = finest_spacing(grid), comparable_grid(source.grid, grid)
    return (
        Image.prepare(source, source_mask, source_windows, source_grid, device, spacing=spacing),
        Image.prepare(target, target_mask, target_windows, grid, device, spacing=spacing),
    )


def align(source: Image, target: Image, displacement: Tensor, initial: PointMap, level: Level) -> AlignedPair:
    """Read both images at the voxels of a level, the source warped and with a margin for the labels.

    A coarse level does not smooth: it looks at fewer voxels of the images, which is enough for a support of many, and
    keeps the vessels and fissures that averages over its voxels would lose.

    Args:
        source: the source, about as fine as the finest level.
        target: the target likewise.
        displacement: (3, z, y, x) on that grid, voxels, components (x, y, z), applied before ``initial``.
        initial: takes target points into the source.
        level: where to work.
    """
    grid = level.grid
    rz, ry, rx = level.labels.radii
    padded = torch.nn.functional.pad(displacement[None], (rx, rx, ry, ry, rz, rz), mode="replicate")[0]
    shape = padded.shape[1:]
    points = index_points((shape[0], shape[1], shape[2]), 0, shape[0], device=padded.device)
    points = points + (padded - torch.tensor([rx, ry, rz], device=padded.device)[:, None, None, None]).movedim(0, -1)
    index = initial.advance(FramedPoints(points, grid.affine)).relative_to(source.grid.affine)
    there = source.at(index)
    voxels = FramedPoints(index_points(grid.shape, 0, grid.shape[0], device=padded.device), grid.affine)
    here = target.at(voxels.relative_to(target.grid.affine))
    bins = tuple((s.relative_bins, t.relative_bins) for s, t in zip(source.windows, target.windows, strict=True))
    return AlignedPair(
        target=here[0],
        source=there[0],
        counted=here[2],
        covered=there[2],
        target_contrast=here[1],
        source_contrast=there[1],
        labels=level.labels,
        image=level.image,
        control=level.control,
        bins=bins,
    )


def deform(
    source: Image, target: Image, initial: PointMap, levels: list[Level], settings: MRFSettings, execution: Execution
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Find the displacement that, applied before ``initial``, aligns the source with the target.

    Args:
        source: the source, not finer than needed.
        target: the target on the registration grid.
        initial: takes target points into the source.
        levels: from `build_levels`, coarsest first.
        settings: weights and regularisation.
        execution: asked for cancellation between levels.

    Returns:
        (3, z, y, x) displacement on the last level's grid, voxels, components (x, y, z) along its axes; and a
        record per level.
    """
    device = target.values.device
    displacement = torch.zeros((3, *levels[0].grid.shape), device=device)
    lattice_before = levels[0].image
    records = []
    for level in levels:
        execution.pause()
        start = time.perf_counter()
        displacement = resize(displacement, lattice_before, level.image)
        lattice_before = level.image
        pair = align(source, target, displacement, initial, level)
        labelling, coefficients = _solve(pair, displacement, level, settings)
        displacement = compose(step_field(coefficients, level.control, level.image), displacement)
        # Early and on coarse lattices a repair costs next to nothing; what it mends does not spoil the finer levels.
        unit_grid = Grid.from_parts(level.grid.shape)
        displacement, repaired = repair(displacement, unit_grid, floor=settings.smallest_jacobian)
        records.append(
            {
                "resolution": [round(float(s), 4) for s in level.grid.spacing],
                "control_spacing_mm": [round(s, 4) for s in reversed(level.control.spacing)],
                "control_points": level.control.shape[0] * level.control.shape[1] * level.control.shape[2],
                "labels": len(level.labels),
                "energy_before": labelling.energy_before,
                "energy_after": labelling.energy,
                "jacobian_min": round(repaired.minimum_before, 4),
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
    return displacement, records


def _solve(pair: AlignedPair, displacement: Tensor, level: Level, settings: MRFSettings) -> tuple[Labelling, Tensor]:
    """Belief propagation on one level: the labelling, and the step's coefficients (3, cz, cy, cx) in voxels."""
    unary = unary_costs(pair, settings.metrics)
    to_control = lattice.interpolation(level.image, level.control, displacement.device)
    smoothness = Smoothness(
        lattice.apply(to_control, displacement), pair_weights(level, settings.alpha), settings.truncation
    )
    labelling = propagate(unary, smoothness, level.labels, iterations=settings.iterations, damping=settings.damping)
    return labelling, level.labels.expectation(labelling.beliefs, settings.temperature)


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
