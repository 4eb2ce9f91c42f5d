"""What a prediction takes in memory, from the size of the scan alone: known before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlasnet.prediction.prediction import PredictOptions
from atlasnet.registration import CORRELATION_BYTES, FIXED_BYTES, SCAN_BYTES, work_bytes
from atlasnet.volume import Grid

if TYPE_CHECKING:
    from atlasnet.prediction.member import Member

# Bytes per voxel of the scan, when its labels are there: it, its mask, the labels in three forms, and what is wanted.
_RESULT, _CLEANING, _SHARES = 10, 16, 28
_PROBABILITY = 16  # of every class
# Of every class, per voxel that a network is asked about: as it is said, in half precision, with what lies around.
_CLASSIFIED = 4 + 2 + 2


def prediction_bytes(members: Sequence[Member], scan: Grid, options: PredictOptions) -> int:
    """The memory that the prediction of a scan takes, beyond what the process has with the models loaded.

    Args:
        members: the model or models, ready; of the same channels and labels.
        scan: grid of the scan.
        options: what is asked for.
    """
    model = members[0].model
    mapped = SCAN_BYTES * len(model.channels) * scan.voxels
    mapped += max(
        max(work_bytes(image.grid, member.operator), asking_bytes(member, view.part))
        for member in members
        for image, view in zip(member.images, member.views, strict=True)
    )
    fused = _RESULT * scan.voxels
    if options.largest_component or options.minimum_size_ml > 0:
        fused += _CLEANING * scan.voxels
    if options.agreement:
        fused += _SHARES * scan.voxels
    if options.probabilities:
        fused += _PROBABILITY * len(model.values) * scan.voxels
    fit = options.by_voxel
    answers = sum(answer_bytes(member, index, fit=fit) for member in members for index in range(len(member.views)))
    return FIXED_BYTES + answers + max(mapped, fused)


def answer_bytes(member: Member, index: int, *, fit: bool = False) -> int:
    """What is kept of an atlas: the map both ways, its image as networks see it, the probabilities, and as read.

    With ``fit``, the local correlation is kept as the probability of a class is.
    """
    maps = 2 * 3 * 4 * member.images[index].grid.with_spacing(member.model.plan.registration_spacing).voxels
    of_voxel = 4 * len(member.model.channels) + (len(member.model.values) + fit) * (2 + 4)
    return maps + of_voxel * member.views[index].part.voxels


def asking_bytes(member: Member, part: Grid) -> int:
    """What it takes to ask a network about the part of its atlas's space, and to measure how well the scan fits."""
    mapped = 4 * len(member.model.channels)
    return (mapped + max(CORRELATION_BYTES, _CLASSIFIED * len(member.model.values))) * part.voxels
