"""What a method says of its own result, and whether that finds its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from atlasnet.cohort.structures import Hidden
from atlasnet.prediction import Prediction
from atlasnet.study.confidence import calibration_counts
from atlasnet.volume import Volume


def describe(
    prediction: Prediction,
    reference: Volume,
    ignore_label: int | None,
    mask: Volume | None = None,
    hidden: Hidden = (),
) -> dict[str, Any]:
    """Seconds, and how sure the method was of the scan as a whole and where it was wrong.

    Args:
        prediction: with its agreement and entropy maps; without them only the seconds are known.
        reference: on its grid.
        ignore_label: the reference value that counts nowhere.
        mask: an organ; outside of it nothing counts.
        hidden: what nobody annotated, see `Subject`; voxels do not count of which nobody knows whether they are right.

    Returns:
        ``seconds``; ``certainty``, 1 - the mean entropy over what was found; ``agreement`` of the networks there;
        ``expected_dice`` of the result with a truth drawn from its probabilities; ``calibration``, see
        `atlasnet.study.confidence.calibration_counts`, over the voxels found or in the reference; and
        ``error_auc_entropy`` and ``error_auc_agreement``, the area under the curve with which entropy and disagreement
        tell wrong voxels from right ones, among the same. None where one is not defined, as the
        agreement of a single network is not.
    """
    record = prediction.record
    details: dict[str, Any] = {}
    if prediction.entropy is None or prediction.agreement is None or prediction.confidence is None:
        return {"seconds": record["seconds"]}
    # A registration may have been remembered: its own record says what it took.
    asked = [atlas["seconds"] + atlas["seconds_network"] for atlas in record["atlases"] if "seconds_network" in atlas]
    several = len(asked) > 1  # one alone agrees with itself
    details["seconds"] = round(sum(asked) + record["seconds"]["fusion"], 3)
    found, truth = prediction.labels.array[0], reference.array[0]
    entropy, share = prediction.entropy.array[0], prediction.agreement.array[0]
    inside = found > 0
    details["certainty"] = round(1 - float(entropy[inside].mean()), 6) if inside.any() else None
    details["agreement"] = record["agreement"]["foreground"] if several else None
    details["expected_dice"] = record["agreement"]["expected_dice"]
    asked_about = inside | (truth > 0)
    if ignore_label is not None:
        asked_about &= truth != ignore_label
    for value, stands in hidden:
        asked_about &= (truth != stands) | (found != value)
        if stands != 0:  # nor is anything known of its stand-in
            asked_about &= (truth != stands) | (found != stands)
    if mask is not None:
        asked_about &= mask.array[0] != 0
    wrong = (found != truth)[asked_about]
    details["calibration"] = calibration_counts(prediction.confidence.array[0][asked_about], ~wrong)
    details["error_auc_entropy"] = _auc(entropy[asked_about], wrong)
    details["error_auc_agreement"] = _auc(1 - share[asked_about], wrong) if several else None
    return details


def _auc(score: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> float | None:
    """Area under the curve of ``score`` as a sign of ``positive``; None where all or none are, or all scores equal."""
    count = int(positive.sum())
    if count in (0, len(positive)) or np.ptp(score) == 0:
        return None
    ranks = stats.rankdata(score)
    above = float(ranks[positive].sum()) - count * (count + 1) / 2
    return round(above / (count * (len(positive) - count)), 6)
