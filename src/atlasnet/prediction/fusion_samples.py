"""What the atlases say of a subject whose truth is known, at voxels where they can differ: to learn weights from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from atlasnet.cohort.structures import Hidden
from atlasnet.prediction.answers import Answers, MappedAnswer
from atlasnet.training.fusion_weights import FusionSamples
from atlasnet.training.mapping import class_indices
from atlasnet.training.store import IGNORED
from atlasnet.volume import Volume
from atlasnet.volume.sampling import slabs

MOST = 20_000  # voxels of a subject: more say the same again
SURE = 0.98  # of background: where all atlases are as sure of it, and right, no weight changes anything


def fusion_samples(
    answers: Answers,
    reference: Volume,
    values: Sequence[int],
    *,
    hidden: Hidden = (),
    seed: int,
    device: torch.device,
    slab_voxels: int,
    pause: Callable[[], None],
) -> FusionSamples:
    """Draw voxels that two atlases reach, and at which one of them does not exclude a structure or one is.

    Args:
        answers: of one model, with the local fit.
        reference: (1, z, y, x) on the image's grid; a voxel whose value is no class does not count, nor one outside the
            organ mask.
        values: of the classes, background first.
        hidden: those that nobody annotated, each with the one that the reference has where it may be.
        seed: of the draw.
        device: where to compute.
        slab_voxels: of the scan, mapped back at a time.
        pause: called before every slab.

    Raises:
        InputError: the fit was not asked for.
    """
    given = [answer for answer, _ in answers.atlases if answer is not None]
    for answer in given:
        answer.require_fit()
    atlases = [MappedAnswer(answer, answers.source, device=device) for answer in given]
    labels = answers.orientation.apply(reference.array)[0]
    random, lots = np.random.default_rng(seed), np.empty(0)
    found: FusionSamples | None = None
    for z0, z1 in slabs(answers.source.shape, slab_voxels):
        pause()
        truth = class_indices(labels[z0:z1], values)
        counted = truth != IGNORED
        if answers.mask is not None:
            counted &= answers.mask[z0:z1]
        read = [atlas.read(z0, z1) for atlas in atlases]
        true = torch.from_numpy(truth).to(device, torch.int64)
        structure = true > 0
        for probabilities, reached, _ in read:
            structure |= reached & (probabilities[0] < SURE)
        several = torch.stack([reached for _, reached, _ in read]).sum(0) > 1
        chosen = torch.from_numpy(counted).to(device) & structure & several
        said = [
            (probabilities[:, chosen], correlation[chosen], reached[chosen], answer.quality)
            for (probabilities, reached, correlation), answer in zip(read, given, strict=True)
        ]
        new = FusionSamples.of(
            said, true[chosen], tuple((values.index(value), values.index(stands)) for value, stands in hidden)
        )
        found = new if found is None else found.joined(new)
        lots = np.append(lots, random.random(new.voxels))
        kept = np.sort(np.argsort(lots, kind="stable")[:MOST])
        lots, found = lots[kept], found.at(kept)
    if found is None:
        raise ValueError("the scan has no slices")
    return found
