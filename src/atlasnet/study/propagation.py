"""Classical multi-atlas segmentation: the atlases' labels carried over and fused, without any network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.structures import Hidden
from atlasnet.errors import RegistrationError
from atlasnet.execution import Execution
from atlasnet.prediction import PredictOptions
from atlasnet.registration import Operator, labelled, local_weight, shortcoming
from atlasnet.volume import Volume, canonical


def propagate_labels(
    image: Volume,
    atlases: Sequence[tuple[Volume, Volume]],
    values: Sequence[int],
    operator: Operator,
    *,
    hidden: Sequence[Hidden] = (),
    local: bool = False,
    execution: Execution,
) -> tuple[Volume, float]:
    """Segment a scan by the labels of registered atlases.

    Args:
        image: (c, z, y, x), any orientation.
        atlases: image and labels (1, z, y, x) of each; where these are none of the ``values``, nobody annotated, an
            atlas has no vote.
        values: label value of each class, background first.
        operator: registers the scan onto the atlases, as for AtlasNet; the labels come back through the inverse.
        hidden: of each atlas, what nobody annotated in it, see `Subject`: what stands for a value there votes for both,
            and decides nothing between them; none: all have all labels.
        local: weigh each atlas at each voxel by how well it fits there, instead of one vote each.
        execution: where to compute.

    Returns:
        Labels on the scan's grid, a tie going to the lower label, background where no atlas has a vote; and the seconds
        that registrations took which were remembered from before.

    Raises:
        RegistrationError: the scan could not be mapped onto any atlas.
    """
    source, orientation = canonical(image)
    kind = np.min_scalar_type(len(values))
    votes: list[tuple[NDArray[Any], NDArray[np.float16], list[int]]] = []
    remembered = 0.0
    with execution.active():
        for (atlas, labels), absent in zip(atlases, hidden or [()] * len(atlases), strict=True):
            execution.pause()
            start = time.perf_counter()
            try:
                # As for AtlasNet, whose atlases have a reference with all labels or none.
                known = labelled(operator, [None if absent else canonical(labels)[0]])
                (registration,) = operator.register(source, [canonical(atlas)[0]], execution=execution, **known)
            except RegistrationError:
                continue
            if shortcoming(registration.record, PredictOptions.minimum_quality) is not None:
                continue
            took = time.perf_counter() - start
            remembered += max(0.0, registration.record.get("seconds", 0.0) - took)
            back = registration.transform.inverse
            reached = Volume(np.ones((1, *atlas.grid.shape), dtype=np.uint8), atlas.grid)
            weight = back.warp(reached, source.grid, interpolation="nearest", fill=0).array[0].astype(np.float16)
            if local:
                weight *= local_weight(source.array, back.warp(atlas, source.grid).array)
            carried = back.warp(labels, source.grid, interpolation="label", fill=0).array[0]
            index, annotated = np.zeros(carried.shape, dtype=kind), np.zeros(carried.shape, dtype=bool)
            for number, value in enumerate(values):
                here = carried == value
                index[here] = number
                annotated |= here
            weight[~annotated] = 0
            shown = [values.index(dict(absent).get(value, value)) for value in values]
            votes.append((index, weight, shown))
    if not votes:
        raise RegistrationError("the scan could not be mapped onto any atlas")
    chosen = np.empty(source.grid.shape, dtype=np.int32)
    # Slice by slice: a sum for every label would not fit into memory where there are many.
    for z in range(len(chosen)):
        sums = np.zeros((len(values), *chosen.shape[1:]), dtype=np.float32)
        for index, weight, shown in votes:
            for number, stands in enumerate(shown):
                sums[number] += weight[z] * (index[z] == stands)
        chosen[z] = np.asarray(values)[sums.argmax(0)]
    return Volume(orientation.restore(chosen[None]), image.grid), remembered
