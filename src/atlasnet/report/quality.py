"""The numbers of a registration as cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlasnet.report.page import number

REGISTRATION_HEAD = (
    "quality",
    "similarity before",
    "similarity after",
    "least Jacobian",
    "folded, %",
    "inverse residual, mm",
    "99.9 %, mm",
    "seconds",
)


def registration_cells(record: Mapping[str, Any]) -> list[str]:
    """What stands under `REGISTRATION_HEAD`; empty where the record does not say.

    Args:
        record: of a registration, see `atlasnet.registration.Registration`, or what a prediction's record keeps of it.
    """
    residual = record.get("inverse_residual_mm", {})
    folded = record.get("folded_share")
    return [
        number(record["quality"]),
        *(_mean(record.get(key, {})) for key in ("similarity_before", "similarity_after")),
        number(record.get("jacobian_min")),
        number(None if folded is None else 100 * folded, ".3g"),
        number(residual.get("mean")),
        number(residual.get("p999")),
        number(record.get("seconds"), ".1f"),
    ]


def _mean(similarity: Mapping[str, float]) -> str:
    """The mean over the metrics."""
    return number(sum(similarity.values()) / len(similarity)) if similarity else ""
