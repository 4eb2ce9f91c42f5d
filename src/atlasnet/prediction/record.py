"""What the run record says of the atlases and of the volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.cohort.structures import where
from atlasnet.prediction.answers import Answers
from atlasnet.prediction.fusion import Agreement
from atlasnet.prediction.staple import Performance
from atlasnet.volume import Grid

UNSURE_DICE = 0.5  # expected by the probabilities themselves, below which a result is warned of


def brief(atlas: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """What a prediction's record keeps of the record of a registration onto the atlas of this name."""
    similarity = ("quality", "covered", "similarity_before", "similarity_after")
    kept = (*similarity, "classes_from", "jacobian_min", "folded_share", "inverse_residual_mm")
    seconds = {"seconds": record.get("seconds", 0.0)}
    return {"name": atlas, **seconds, **{key: record[key] for key in kept if key in record}}


def atlas_records(answers: Answers, performance: Performance | None, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the record says of every atlas, with its estimated sensitivity per label where that decided.

    Args:
        answers: of the atlases.
        performance: of those that were asked.
        names: of the classes in the order of their indices, background first.
    """
    records = [dict(record) for _, record in answers.atlases]
    if performance is not None:
        asked = [record for (answer, _), record in zip(answers.atlases, records, strict=True) if answer is not None]
        for atlas, record in enumerate(asked):
            record["sensitivity"] = {
                name: performance.sensitivity(atlas, label) for label, name in enumerate(names) if label
            }
    return records


def doubts(agreement: Mapping[str, Any]) -> list[str]:
    """What the probabilities themselves say against a result."""
    expected = agreement["expected_dice"]
    if expected is None or expected >= UNSURE_DICE:
        return []
    return [
        f"the networks are unsure of what they found: by their own probabilities a Dice of {expected:.2f} is to be "
        "expected; look closely before you use it"
    ]


def volumes(
    indices: NDArray[Any], agreement: Agreement, structures: Mapping[str, Sequence[int]], grid: Grid
) -> dict[str, Any]:
    """The volume of every structure, and how it differs between the atlases, millilitres.

    Args:
        indices: (z, y, x) class indices of the result.
        agreement: of the atlases, before any post-processing.
        structures: name to class indices.
        grid: of the scan.
    """
    voxel_ml = float(np.prod(grid.spacing)) / 1000
    return {
        "volumes_ml": {
            name: _digits(int(np.count_nonzero(where(indices, members))) * voxel_ml)
            for name, members in structures.items()
        },
        "volumes_of_atlases_ml": {
            name: _spread([count * voxel_ml for count in agreement.voxels(name)]) for name in structures
        },
    }


def organ_ml(mask: NDArray[np.bool_], grid: Grid) -> float:
    """The volume of an organ mask (z, y, x), millilitres."""
    return _digits(int(mask.sum()) * float(np.prod(grid.spacing)) / 1000)


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """The least, the mean, the largest, and the standard deviation, None of one."""
    return {
        "minimum": _digits(min(values)),
        "mean": _digits(float(np.mean(values))),
        "maximum": _digits(max(values)),
        "standard_deviation": _digits(float(np.std(values, ddof=1))) if len(values) > 1 else None,
    }


def _digits(ml: float) -> float:
    """Four decimals, or six digits of a volume so small that it has fewer there: micro-CT shows vessels too."""
    return round(ml, 4) if ml >= 10 else float(f"{ml:.6g}")
