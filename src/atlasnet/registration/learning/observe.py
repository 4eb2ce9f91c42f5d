"""From two annotated images to the problems that their registration meets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atlasnet.execution import Execution
from atlasnet.registration import lattice
from atlasnet.registration.context import ClassMap
from atlasnet.registration.deformation import control_classes, level_smoothness, warped_voxels
from atlasnet.registration.learning.problem import Problem
from atlasnet.registration.mrf import displacement_of
from atlasnet.registration.operator import Task
from atlasnet.registration.pyramid import Level
from atlasnet.registration.settings import MRFSettings
from atlasnet.registration.similarity import AlignedPair, Supports, unary_costs
from atlasnet.registration.similarity.pair import values_at_once
from atlasnet.transform import PointMap, Transform
from atlasnet.volume import Volume


def observe(
    source: Volume,
    source_labels: Volume,
    target: Volume,
    target_labels: Volume,
    initial: Transform,
    metrics: Sequence[str],
    settings: MRFSettings,
    execution: Execution,
) -> list[Problem]:
    """Register with ``settings`` and keep every search that this meets, metric by metric.

    Args:
        source: (c, z, y, x).
        source_labels: (1, z, y, x) on its grid.
        target: with as many channels.
        target_labels: (1, z, y, x) on its grid.
        initial: from where to start.
        metrics: those whose costs are kept.
        settings: of the registration; its classes are those that are told apart.
        execution: where to compute.

    Returns:
        Coarse to fine; searches whose level shows nothing of any structure of the target are left out.
    """
    device = execution.torch_device()
    here = ClassMap.of(target_labels, settings.classes, device, of_source=False)
    there = ClassMap.of(source_labels, settings.classes, device)
    structures = [number for number, one in enumerate(settings.classes, start=1) if 0 not in one.labels]
    forward = initial.forward.to(device)
    problems: list[Problem] = []

    def witness(level: Level, displacement: Tensor, pair: AlignedPair) -> None:
        tables = _overlaps(here, there, structures, level, displacement, forward, pair)
        if tables is None:
            return
        classes = control_classes(there, displacement, forward, level)
        # What nobody annotated, or nothing of the source is seen of, has no class, and teaches no weight anything.
        costs = torch.stack([unary_costs(pair, {name: 1.0}) * (classes > 0) for name in metrics])
        problems.append(
            Problem(
                costs.cpu(),
                (classes - 1).clamp(min=0).long().cpu(),
                len(settings.classes),
                level_smoothness(displacement.cpu(), level, 1.0),
                level.labels,
                *tables,
                settings.iterations,
                settings.damping,
            )
        )

    task = Task(target, None, None)
    displacement_of(source, None, task, initial, settings, execution, classes=there, witness=witness)
    return problems


def _overlaps(
    here: ClassMap,
    there: ClassMap,
    structures: Sequence[int],
    level: Level,
    displacement: Tensor,
    initial: PointMap,
    pair: AlignedPair,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """``overlap``, ``carried`` and ``wanted`` of a `Problem`; None where the target shows no structure."""
    target = here.on(level.grid)
    source = there.at(warped_voxels(there.grid, displacement, level.labels.radii, initial, level.grid))
    seen = [number for number in structures if bool((target == number).any())]
    if not seen:
        return None
    matrices = [m / m.sum(0, keepdim=True) for m in lattice.support(level.image, level.control, target.device)]
    shares = Supports((matrices[0], matrices[1], matrices[2]))
    # Voxels of the target that belong to no class say nothing, whatever is laid on them.
    annotated = target > 0
    windows = level.labels.windows(source[None])
    shape = (len(seen), *level.labels.shape, *level.control.shape)
    overlap, carried = torch.empty(shape), torch.empty(shape)
    for block in level.labels.blocks(pair.target.numel(), values_at_once(pair.target.device)):
        labels = windows[block][:, :, :, 0]
        for row, number in enumerate(seen):
            inside = (labels == number) & annotated
            carried[row][block] = shares.mean(inside.to(torch.float32))
            overlap[row][block] = shares.mean((inside & (target == number)).to(torch.float32))
    wanted = torch.tensor([float((target == number).sum()) for number in seen], dtype=torch.float64)
    return overlap, carried, wanted
