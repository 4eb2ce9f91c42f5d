"""What the atlases say of a subject at voxels where it matters, beside what is true there: to learn weights from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from atlasnet.prediction.answers import Answers, MappedAnswer
from atlasnet.training.weighting import FusionWeights, Votes
from atlasnet.volume import Volume
from atlasnet.volume.sampling import slabs

MOST = 20_000  # voxels of a subject: more say the same again
SURE = 0.98  # of background: where all atlases are as sure of it, and right, no weight changes anything


def collect_votes(
    answers: Answers, reference: Volume, values: Sequence[int], *, seed: int, device: torch.device, slab_voxels: int
) -> Votes:
    """Draw voxels that all atlases reach, and at which one of them sees a structure or one is.

    Args:
        answers: of one model, with the local fit.
        reference: (1, z, y, x) on the image's grid; a voxel whose value is no class does not count.
        values: of the classes, ascending, background first.
        seed: of the draw.
        device: where to compute.
        slab_voxels: of the scan, mapped back at a time.

    Raises:
        InputError: the fit was not asked for.
    """
    given = [answer for answer, _ in answers.atlases if answer is not None]
    qualities = [answer.quality for answer in given]
    atlases = [
        MappedAnswer(a, answers.source, weights=FusionWeights(), device=device, mask=answers.mask) for a in given
    ]
    truth = answers.orientation.apply(reference.array)[0]
    classes = np.searchsorted(values, truth).clip(max=len(values) - 1)
    counted = np.asarray(values)[classes] == truth
    random, lots, found = np.random.default_rng(seed), np.empty(0), Votes.none(len(given))
    for z0, z1 in slabs(answers.source.shape, slab_voxels):
        read = [atlas.read(z0, z1) for atlas in atlases]
        said, correlation = torch.stack([r[0] for r in read]), torch.stack([r[2] for r in read if r[2] is not None])
        true = torch.from_numpy(classes[z0:z1]).to(device)
        drawn = torch.stack([r[1] for r in read]).all(0) & torch.from_numpy(counted[z0:z1]).to(device)
        drawn &= (said[:, 0] < SURE).any(0) | (true > 0)
        new = Votes.of(said[:, :, drawn], correlation[:, drawn], qualities, true[drawn])
        lots = np.append(lots, random.random(new.voxels))
        kept = np.sort(np.argsort(lots, kind="stable")[:MOST])
        lots, found = lots[kept], found.joined(new).at(kept)
    return found
