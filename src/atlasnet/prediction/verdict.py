"""Is a scan like the training subjects? Said before the networks run, with reasons in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atlasnet.errors import ModelError, RegistrationError, UnusualInputError
from atlasnet.registration import WITHOUT_SETTINGS, Registration
from atlasnet.training.evidence import best_atlas, covered, measure_intensities, qualities
from atlasnet.training.model import Model
from atlasnet.training.reasons import reason
from atlasnet.training.typical import FALSE_ALARMS, KINDS
from atlasnet.volume import Grid, Volume

USUAL, UNUSUAL, UNKNOWN = "usual", "unusual", "unknown"


@dataclass(frozen=True)
class Verdict:
    """Whether a scan is like the training subjects.

    Args:
        result: ``"unusual"`` when one piece of evidence is beyond its limit or the scan's header speaks against it,
            ``"usual"`` when none is, ``"unknown"`` when there is no limit at all.
        reasons: a sentence for what the header says and for each piece that is beyond; why nothing is known.
        evidence: by kind (see `atlasnet.training.typical.KINDS`) its ``value``, the ``limit`` of what is usual, and its
            ``score``: 0 in the middle of the training subjects, 1 at the limit; None for what could not be measured or
            has no limit.
        mirrored: the canonical axes along which the scan fits best when it is mirrored there.
    """

    result: str
    reasons: tuple[str, ...]
    evidence: Mapping[str, Mapping[str, float | None]]
    mirrored: str | None = None

    @property
    def score(self) -> float | None:
        """The highest score of any evidence."""
        return max((e["score"] for e in self.evidence.values() if e["score"] is not None), default=None)

    def __repr__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.2f}"
        return f"Verdict({self.result}{score}" + (f": {'; '.join(self.reasons)})" if self.reasons else ")")

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the share of false alarms that the limits were set for."""
        return {
            "result": self.result,
            "score": self.score,
            "reasons": list(self.reasons),
            "evidence": {name: dict(found) for name, found in self.evidence.items()},
            "mirrored": self.mirrored,
            "false_alarms": FALSE_ALARMS,
        }

    def against(self, reasons: Sequence[str]) -> Verdict:
        """The verdict with what else speaks against the scan, its header say; any such reason makes it unusual."""
        if not reasons:
            return self
        return replace(self, result=UNUSUAL, reasons=(*reasons, *(self.reasons if self.result == UNUSUAL else ())))

    def refusal(self) -> UnusualInputError:
        """The error of a caller that wants no unusual scan segmented."""
        return UnusualInputError("the scan is not like the training subjects: " + "; ".join(self.reasons))


def why_unknown(model: Model) -> str | None:
    """Why no scan can be judged with a model; None where it can."""
    if model.typical is None:
        return "the model has no record of what its training subjects are like: an earlier version trained it"
    if not any(model.typical.usual.values()):
        return "the training subjects are too few to tell what is usual"
    return None


def require_verdict(model: Model) -> None:
    """Find out before any work that scans cannot be judged.

    Raises:
        ModelError: the model does not know enough of its training subjects.
    """
    why = why_unknown(model)
    if why is not None:
        raise ModelError(
            f"a strict prediction needs a verdict on the scan, and there is none: {why}",
            path=model.place,
            remedy="delete its model.json and train again, which takes up what the work folder holds; or drop --strict",
        )


def judge(
    model: Model,
    scan: Grid,
    prepared: Volume,
    made: Sequence[Registration | RegistrationError],
    orientation: Callable[[int], tuple[float, str] | None],
) -> Verdict:
    """Compare a scan with the training subjects.

    Args:
        model: with the record of them.
        scan: its grid, canonical orientation.
        prepared: from `atlasnet.training.mapping.prepare`.
        made: the registration onto each atlas, or why there is none.
        orientation: gives `atlasnet.training.evidence.orientation` of the scan and the atlas of this number.
    """
    why = why_unknown(model)
    typical = model.typical
    if why is not None or typical is None:
        return Verdict(UNKNOWN, () if why is None else (why,), {})
    names = [atlas.name for atlas in model.atlases]
    registrations = {
        name: None if isinstance(found, RegistrationError) else found for name, found in zip(names, made, strict=True)
    }
    own = measure_intensities(prepared, model.plan)
    best = best_atlas(registrations) if model.operator not in WITHOUT_SETTINGS else None
    tried = None if best is None else orientation(names.index(best))
    margin, axes = (None, "") if tried is None else tried
    values: dict[str, float | None] = {
        "intensities": own.distance(typical.quantiles),
        "noise": own.roughness,
        "orientation": margin,
        "registration": typical.relative_quality(qualities(registrations)),
        "field_of_view": covered(typical.points, registrations, scan),
    }
    evidence: dict[str, Mapping[str, float | None]] = {}
    bounds = typical.usual
    for kind in KINDS:
        value, usual = values[kind.name], bounds[kind.name]
        score = None if value is None or usual is None else kind.score(value, usual)
        limit = None if usual is None else usual[1]
        evidence[kind.name] = {"value": _rounded(value), "limit": _rounded(limit), "score": _rounded(score)}
    return _verdict(evidence, axes if margin is not None and margin < 0 else None)


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """What several models say of one scan together: of every piece of evidence, what the middle one of them says.

    A number is beyond its limit where it is so for more than half of the models that have one. If one of them were
    enough, false alarms would grow with the number of models.
    """
    known = [verdict for verdict in verdicts if verdict.result != UNKNOWN]
    if not known:
        return Verdict(UNKNOWN, tuple(dict.fromkeys(reason for v in verdicts for reason in v.reasons)), {})
    evidence: dict[str, Mapping[str, float | None]] = {}
    mirrored = known[0].mirrored
    for kind in KINDS:
        scored = [(found["score"], v) for v in known if (found := v.evidence[kind.name])["score"] is not None]
        scored.sort(key=lambda pair: pair[0] or 0.0)
        middle = scored[(len(scored) - 1) // 2][1] if scored else known[0]
        evidence[kind.name] = middle.evidence[kind.name]
        if kind.name == "orientation":
            mirrored = middle.mirrored
    return _verdict(evidence, mirrored)


def _verdict(evidence: Mapping[str, Mapping[str, float | None]], mirrored: str | None) -> Verdict:
    """What follows from the evidence."""
    reasons = []
    for name, found in evidence.items():
        value, limit, score = found["value"], found["limit"], found["score"]
        if value is not None and limit is not None and score is not None and score > 1:
            # Numbers that are unusual for the orientation are below 0: the scan fits better mirrored.
            reasons.append(reason(name, value, limit, mirrored or ""))
    return Verdict(UNUSUAL if reasons else USUAL, tuple(reasons), evidence, mirrored)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
