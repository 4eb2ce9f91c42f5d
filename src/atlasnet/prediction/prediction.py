"""What may be asked of a prediction, and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlasnet.errors import InputError
from atlasnet.execution import make_plain
from atlasnet.prediction.fusion import BY_VOXEL, METHODS
from atlasnet.registration import require_quality
from atlasnet.transform import Transform
from atlasnet.volume import Volume
from atlasnet.wording import MANY_LABELS, counted


@dataclass(frozen=True)
class PredictOptions:
    """What to give and how to fuse.

    Args:
        fusion: ``"mean"``, ``"vote"``, ``"weighted"``, ``"local"``, ``"learnt"`` or ``"staple"`` (see
            `atlasnet.prediction.fusion`).
        probabilities: whether the fused class probabilities are wanted.
        agreement: whether the maps of agreement, entropy and confidence are wanted.
        largest_component: keep the largest connected component of each label, or of each region where there are some.
        minimum_size_ml: drop connected components that are smaller, in millilitres.
        minimum_quality: an atlas onto which the registration's quality is lower is not asked, nor one of which the scan
            covers hardly anything, 0 to 1 (see `atlasnet.registration.shortcoming`).
        strict: refuse a scan that is not like the training subjects.
    """

    fusion: str = "mean"
    probabilities: bool = False
    agreement: bool = False
    largest_component: bool = False
    minimum_size_ml: float = 0.0
    minimum_quality: float = 0.05
    strict: bool = False

    def __post_init__(self) -> None:
        make_plain(self)
        if self.fusion not in METHODS:
            raise InputError(f"no fusion is called {self.fusion!r}", expected=", ".join(METHODS))
        if not (math.isfinite(self.minimum_size_ml) and self.minimum_size_ml >= 0):
            raise InputError("the minimum size must not be negative", found=f"{self.minimum_size_ml:g} ml")
        require_quality(self.minimum_quality)

    @property
    def by_voxel(self) -> bool:
        """Whether an atlas is weighted at every voxel, so that the fit of its registration is needed there."""
        return self.fusion in BY_VOXEL


@dataclass(frozen=True)
class Prediction:
    """What became of one scan, all on its own grid.

    Args:
        labels: (1, z, y, x) in the cohort's label values.
        record: the verdict on the scan, registration quality per atlas, agreement, volumes in ml, the estimate of Dice,
            seconds and peak memory by stage, warnings; JSON-able.
        probabilities: (classes, z, y, x) float32, or None when not wanted.
        agreement: (1, z, y, x) float32, the share of atlases that voted for the result, 0 where no atlas reached.
        entropy: (1, z, y, x) float32, of the mean probabilities, 0 to 1.
        confidence: (1, z, y, x) float32, the mean probability of the class that the fusion chose.
        to_atlases: by the name of each atlas that was asked, the map that takes points of the scan into it.
    """

    labels: Volume
    record: dict[str, Any]
    probabilities: Volume | None = None
    agreement: Volume | None = None
    entropy: Volume | None = None
    confidence: Volume | None = None
    to_atlases: Mapping[str, Transform] = field(default_factory=dict)

    def __repr__(self) -> str:
        warnings = len(self.record["warnings"])
        warned = f"; {counted(warnings, 'warning')} in its record" if warnings else ""
        return f"Prediction({self.summary()}{warned}; labels {self.labels!r})"

    def summary(self) -> str:
        """One line: the volume of each label, of many how many were found, agreement, and the Dice that is expected."""
        found = self.record["volumes_ml"]
        volumes = ", ".join(f"{name} {ml:.4g} ml" for name, ml in found.items())
        if len(found) > MANY_LABELS:
            volumes = f"{sum(ml > 0 for ml in found.values())} of {len(found)} labels found"
        agreement = self.record["agreement"]["foreground"]
        parts = [volumes, "nothing found" if agreement is None else f"agreement {agreement:.3f}"]
        if (estimate := (self.record.get("estimated_dice") or {}).get("mean")) is not None:
            parts.append(f"estimated Dice {estimate['value']:.3f} ± {estimate['error']:.3f}")
        return "; ".join(parts)
