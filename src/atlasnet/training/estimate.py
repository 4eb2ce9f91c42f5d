"""How good is a result that nobody has checked? A line through subjects that were segmented unseen says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlasnet.training.evidence import finite

FEWEST = 8
"""Subjects with a score, below which a line says nothing."""

FEATURES = ("fit", "expected")
"""``fit``: local correlation of the scan with an atlas, one mapped onto the other, around what its network found; mean
over the atlases that were asked. ``expected``: Dice of the result with a truth drawn from the fused probabilities. Both
are of all labels as one: what spoils one of them, a bad image or a registration that went astray, mostly spoils all.

Chosen on 83 hippocampi, estimated from 17 others: a line through these two missed the mean Dice by 13 % less than the
mean of the 17 did, and the best line that the 83 allow, each left out, by 14 %
(`benchmarks/results/dice_estimate_development.json`). Agreement and entropy of the atlases and the quality of the whole
registrations said less."""


def features(record: Mapping[str, Any], label: str) -> tuple[float, ...] | None:
    """What a prediction's record says, in the order of `FEATURES`; None where the label was not found."""
    agreement = record["agreement"]
    fit = [atlas["fit"] for atlas in record["atlases"] if atlas.get("fit") is not None]
    if not fit or agreement["entropy"].get(label) is None or agreement.get("expected_dice") is None:
        return None
    return float(np.mean(fit)), float(agreement["expected_dice"])


@dataclass(frozen=True)
class Line:
    """Dice of one label as a linear function of the features, which falls with none of them.

    Args:
        weights: per feature, 0 or more.
        centre: the subjects' mean features.
        mean: their mean Dice.
        error: root mean square error for a subject that is left out of the fit.
        subjects: how many there were.
    """

    weights: tuple[float, ...]
    centre: tuple[float, ...]
    mean: float
    error: float
    subjects: int

    def value(self, found: Sequence[float]) -> float:
        """The Dice to expect."""
        moved = np.asarray(found) - self.centre
        return float(np.clip(self.mean + moved @ np.asarray(self.weights), 0, 1))


@dataclass(frozen=True)
class DiceEstimate:
    """What tells the Dice of a result from its record.

    Args:
        lines: by label name.
        mean_error: root mean square error of the mean over these labels, for a subject that is left out of the fit.
    """

    lines: Mapping[str, Line]
    mean_error: float

    def of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """JSON values: ``labels``, per label ``value`` and ``error``, or None without a line or a result; ``mean``.

        The mean is None where one of the labels is: it would not be the mean over the labels.
        """
        values = {}
        for label, line in self.lines.items():
            found = features(record, label)
            values[label] = None if found is None else line.value(found)
        labels: dict[str, dict[str, float] | None] = dict.fromkeys(record["agreement"]["entropy"])
        for label, value in values.items():
            if value is not None:
                labels[label] = {"value": round(value, 4), "error": round(self.lines[label].error, 4)}
        mean = None
        if None not in labels.values():
            known = [value for value in values.values() if value is not None]
            mean = {"value": round(float(np.mean(known)), 4), "error": round(self.mean_error, 4)}
        return {"labels": labels, "mean": mean}

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        lines = {
            label: {
                "weights": dict(zip(FEATURES, line.weights, strict=True)),
                "centre": dict(zip(FEATURES, line.centre, strict=True)),
                "mean": line.mean,
                "error": line.error,
                "subjects": line.subjects,
            }
            for label, line in self.lines.items()
        }
        return {"labels": lines, "mean_error": self.mean_error}

    @classmethod
    def from_json(cls, value: Any) -> DiceEstimate | None:
        """Read what `to_json` wrote; None where an earlier version did, whose features are no more.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not that.
        """
        if any(set(line["weights"]) != set(FEATURES) for line in value["labels"].values()):
            return None
        lines = {
            str(label): Line(
                tuple(map(float, finite([line["weights"][name] for name in FEATURES]))),
                tuple(map(float, finite([line["centre"][name] for name in FEATURES]))),
                float(finite(line["mean"])),
                float(finite(line["error"])),
                int(line["subjects"]),
            )
            for label, line in value["labels"].items()
        }
        return cls(lines, float(finite(value["mean_error"])))


def fit_estimate(
    records: Mapping[str, Mapping[str, Any]], dice: Mapping[str, Mapping[str, float | None]]
) -> DiceEstimate | None:
    """Draw the lines.

    Args:
        records: by subject, of predictions by models that had not seen them.
        dice: by label, then by subject.

    Returns:
        Lines for the labels that `FEWEST` subjects have; None where no label has.
    """
    lines: dict[str, Line] = {}
    residuals: dict[str, dict[str, float]] = {}
    for label, scores in dice.items():
        found = {name: features(records[name], label) for name in scores if name in records}
        names = [name for name, values in found.items() if values is not None and scores[name] is not None]
        if len(names) < FEWEST:
            continue
        x = np.array([found[name] for name in names], dtype=np.float64)
        y = np.array([scores[name] for name in names], dtype=np.float64)
        left_out = np.array([_line(np.delete(x, i, 0), np.delete(y, i)).value(x[i]) for i in range(len(y))]) - y
        residuals[label] = dict(zip(names, left_out.tolist(), strict=True))
        lines[label] = _line(x, y, float(np.sqrt(np.mean(left_out**2))))
    if not lines:
        return None
    common = set.intersection(*(set(found) for found in residuals.values()))
    means = [np.mean([found[name] for found in residuals.values()]) for name in sorted(common)]
    # Where few subjects have all labels, errors are taken to go together.
    several = len(means) >= FEWEST
    error = np.sqrt(np.mean(np.square(means))) if several else np.mean([line.error for line in lines.values()])
    return DiceEstimate(lines, float(error))


def _line(x: NDArray[np.float64], y: NDArray[np.float64], error: float = 0.0) -> Line:
    """The line through the mean of the features, each in units of its own spread between the subjects.

    A handful of subjects tells one slope, not one of every feature: drawn freely, lines leave out one or the other.
    """
    centre, mean, spread = x.mean(0), float(y.mean()), x.std(0)
    # A feature that never differs says nothing.
    scale = np.where(spread > 1e-9, spread, np.inf)
    evidence = ((x - centre) / scale).sum(1)
    slope = max(0.0, float(evidence @ (y - mean)) / max(float(evidence @ evidence), 1e-12))
    return Line(tuple((slope / scale).tolist()), tuple(centre.tolist()), mean, error, len(y))
