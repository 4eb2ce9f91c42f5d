"""`MetricWeights`: learnt weights of the metrics as a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atlasnet.errors import InputError
from atlasnet.execution import read_json, write_json
from atlasnet.registration.context import TissueClass
from atlasnet.registration.settings import MRFSettings

FORMAT = 1


@dataclass(frozen=True)
class MetricWeights:
    """How similarity is measured in every class of tissue, and how much smoothness counts against it.

    Args:
        classes: with their weights.
        average: of the classes, by how many control points each had; it sums to 1 and holds where no class is known.
        alpha: weight of the smoothness penalty.
        provenance: what it was learnt from, and how; see `atlasnet.registration.learning.learn_metrics`.
    """

    classes: tuple[TissueClass, ...]
    average: Mapping[str, float]
    alpha: float
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The fields of `MRFSettings` that these weights are, as JSON."""
        return {
            "metrics": dict(self.average),
            "alpha": self.alpha,
            "classes": [asdict(one) | {"labels": list(one.labels)} for one in self.classes],
        }

    def write(self, path: str | Path) -> None:
        """Write the file, atomically."""
        write_json(path, {"format": FORMAT, **self.settings(), "provenance": dict(self.provenance)})

    @classmethod
    def read(cls, path: str | Path) -> MetricWeights:
        """Read what `write` wrote.

        Raises:
            InputError: the file cannot be read, is of another format, or holds weights that make no sense.
        """
        expected = "a file that atlasnet learn-metrics wrote"
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise InputError(
                    "the metric weights are of another format",
                    path=path,
                    expected=f"format {FORMAT}",
                    found=f"format {content['format']}",
                )
            average = {name: float(weight) for name, weight in content["metrics"].items()}
            settings = MRFSettings(metrics=average, alpha=content["alpha"], classes=tuple(content["classes"]))
            if not settings.classes:
                raise InputError("the metric weights name no class", path=path, expected=expected)
            return cls(settings.classes, average, float(settings.alpha), dict(content.get("provenance", {})))
        except InputError as error:
            if error.path is not None:
                raise
            raise error.told(path=path) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(
                "the metric weights cannot be read",
                path=path,
                expected=expected,
                found=f"{type(error).__name__}: {error}",
            ) from error
