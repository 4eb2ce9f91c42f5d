"""Which versions of the software made the results of a study, and whether they are the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from atlasnet import __version__
from atlasnet.study.records import CaseResult

Versions = Mapping[str, str]
"""Package to version: of ``atlasnet`` and ``torch``, which decide what is trained and what is found."""

UNRECORDED = "versions that were not recorded"


def versions() -> dict[str, str]:
    """Those that are running."""
    return {"atlasnet": __version__, "torch": str(torch.__version__)}


def decisive(recorded: Versions) -> dict[str, str]:
    """The same of a model's record, which holds others too."""
    return {name: recorded[name] for name in versions() if name in recorded}


def distinct(every: Iterable[dict[str, str]]) -> tuple[dict[str, str], ...]:
    """Each once, in order."""
    return tuple({as_text([one]): one for one in every}.values())


def today() -> str:
    """The date, in UTC."""
    return datetime.now(UTC).date().isoformat()


def as_text(every: Iterable[Versions]) -> str:
    """For people: ``atlasnet 0.1.0, torch 2.6.0``; several stand side by side where a result needed several."""
    said = [", ".join(f"{name} {version}" for name, version in one.items()) or UNRECORDED for one in every]
    return " and ".join(said) or UNRECORDED


def software(results: Sequence[CaseResult]) -> list[dict[str, Any]]:
    """Who made what, JSON-able.

    Returns:
        For each set of versions that trained the networks of a result and segmented with them, ``versions`` (a list,
        empty for results of before they were recorded), the ``methods`` with their seeds, and how many ``results``.
    """
    groups: dict[str, dict[str, Any]] = {}
    for result in results:
        if not result.scores:
            continue
        made_by = list(result.versions)
        group = groups.setdefault(as_text(made_by), {"versions": made_by, "methods": {}, "results": 0})
        seeds = group["methods"].setdefault(result.run.method.name, [])
        if result.run.seed not in seeds:
            seeds.append(result.run.seed)
        group["results"] += 1
    return [groups[name] for name in sorted(groups)]


def mixed(groups: Sequence[Mapping[str, Any]]) -> str:
    """What is to be known where results come of several versions; empty where they do not."""
    if len(groups) < 2:
        return ""
    listed = "; ".join(f"{as_text(group['versions'])}: {_methods(group['methods'])}" for group in groups)
    return (
        f"The results come of several versions of the software ({listed}): a difference between methods may be one "
        "between versions. A study in a folder of its own has one."
    )


def _methods(seeds: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} (seed {', '.join(map(str, sorted(of)))})" for name, of in seeds.items())
