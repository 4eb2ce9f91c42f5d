"""What the training subjects are like, kept with the model: how far from them a scan may be before it is unusual."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from atlasnet.execution import digest, read_json, write_json
from atlasnet.registration import WITHOUT_SETTINGS
from atlasnet.training.evidence import (
    SHARES,
    Float,
    Intensities,
    best_atlas,
    covered,
    finite,
    measure_intensities,
    orientation,
    qualities,
    region_points,
    united_points,
)
from atlasnet.training.mapping import prepare, working_grid
from atlasnet.training.sources import Keyed
from atlasnet.training.transformer import MappedCohort, Transformer

REVISION = 3  # counts up when the same scan would give other numbers
FALSE_ALARMS = 0.01
"""Of so many scans like the training subjects one piece of evidence or another calls unusual, at most, as far as their
numbers are normally distributed. It is so little because their tails are heavier than that, and because broken scans
lie far beyond: by a model of 17 subjects, 1 of 83 others is unusual, and no broken one is nearer than twice the bound
(`benchmarks/results/verdict_development.json`)."""
FEWEST = 3
"""Training subjects with a number, below which nothing is said."""

_SMALLEST = 1e-6  # of numbers that are compared by their ratios; it and all below are nothing


@dataclass(frozen=True)
class Kind:
    """One piece of evidence: which numbers are unusual.

    Args:
        name: of it.
        high: whether high numbers are unusual, or low ones.
        logarithmic: whether numbers are compared by their ratios; they are positive then.
        precision: the least standard deviation between subjects that is believed; of the natural logarithm where they
            are compared by ratios. Few subjects may be alike by chance.
        harmless: no number on the usual side of it is unusual, whatever the training subjects say.
    """

    name: str
    high: bool
    logarithmic: bool
    precision: float
    harmless: float

    def usual(self, values: Sequence[float], alarms: float | None = None) -> tuple[float, float] | None:
        """The middle of the training subjects' numbers and the bound of what is usual; None where they are too few.

        The bound is Student's one-sided prediction bound for one more number from the same normal distribution.

        Args:
            values: the numbers.
            alarms: the chance of such a number beyond it; by default `FALSE_ALARMS` shared among all `KINDS`
                (Bonferroni).
        """
        if len(values) < FEWEST:
            return None
        found = np.array([self._compared(value) for value in values])
        n, spread = len(found), max(float(found.std(ddof=1)), self.precision)
        alarms = FALSE_ALARMS / len(KINDS) if alarms is None else alarms
        reach = float(stdtrit(n - 1, 1 - alarms)) * spread * math.sqrt(1 + 1 / n)
        middle = float(found.mean())
        bound = middle + (reach if self.high else -reach)
        if self.logarithmic:
            middle, bound = math.exp(middle), math.exp(min(bound, 700.0))
        return middle, max(bound, self.harmless) if self.high else min(bound, self.harmless)

    def score(self, value: float, usual: tuple[float, float]) -> float:
        """How unusual a number is: 0 in the middle of the training subjects, 1 at the bound."""
        middle, bound = (self._compared(number) for number in usual)
        return (self._compared(value) - middle) / (bound - middle)

    def _compared(self, value: float) -> float:
        return math.log(max(value, _SMALLEST)) if self.logarithmic else value


KINDS = (
    Kind("intensities", high=True, logarithmic=True, precision=0.1, harmless=0.05),
    Kind("noise", high=True, logarithmic=True, precision=0.05, harmless=0.001),
    Kind("orientation", high=False, logarithmic=False, precision=0.01, harmless=0.0),
    Kind("registration", high=False, logarithmic=False, precision=0.01, harmless=0.0),
    Kind("field_of_view", high=False, logarithmic=False, precision=0.02, harmless=1.0),
)
"""``intensities``: distance from the mean of the training subjects (see `Intensities.distance`). ``noise``: roughness.
``orientation``: by how much the scan as it is stored fits an atlas better than mirrored. ``registration``: quality,
compared with the training subjects' mean onto the same atlas, mean over the atlases. ``field_of_view``: share of the
atlases' labelled region that the scan shows after registration."""


@dataclass(frozen=True, eq=False)
class Typical:
    """The training subjects in numbers; nothing of it shows who they are.

    Args:
        quantiles: (channels, shares), the mean of theirs, see `Intensities`.
        points: per atlas (n, 3) LPS mm, spread over its labelled region.
        quality: per atlas, the mean quality of the training subjects' registrations; empty where the operator does not
            look at the images.
        values: by kind, the numbers of the training subjects, each compared with the others, in an update with those
            that there were by then; sorted.
    """

    quantiles: Float
    points: Mapping[str, Float]
    quality: Mapping[str, float]
    values: Mapping[str, tuple[float, ...]]

    @property
    def subjects(self) -> int:
        """How many they are."""
        return len(self.values.get("noise", ()))  # the one number that every scan has

    def relative_quality(self, found: Mapping[str, float]) -> float | None:
        """Mean over the atlases of the quality above that of the training subjects; None where none is known."""
        above = [value - self.quality[name] for name, value in found.items() if name in self.quality]
        return float(np.mean(above)) if above else None

    @property
    def usual(self) -> dict[str, tuple[float, float] | None]:
        """By kind, the middle of the training subjects' numbers and the bound of what is usual."""
        return {kind.name: kind.usual(self.values.get(kind.name, ())) for kind in KINDS}

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "quantiles": self.quantiles.tolist(),
            "points": {name: points.tolist() for name, points in self.points.items()},
            "quality": dict(self.quality),
            "values": {name: list(values) for name, values in self.values.items()},
        }

    @classmethod
    def from_json(cls, value: Any, channels: int) -> Typical:
        """Read what `to_json` wrote of scans with so many channels.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is not that.
        """
        found = cls(
            quantiles=finite(value["quantiles"]),
            points={str(name): finite(points).reshape(-1, 3) for name, points in value["points"].items()},
            quality={str(name): float(finite(quality)) for name, quality in value["quality"].items()},
            values={str(name): tuple(map(float, finite(values))) for name, values in value["values"].items()},
        )
        if found.quantiles.shape != (channels, len(SHARES)):
            raise ValueError(f"expected {len(SHARES)} quantiles for each of {channels} channels")
        return found


@dataclass(frozen=True)
class Earlier:
    """What is known of subjects from which the networks have learnt before, and which are not all there any more.

    A record does not tell whose a number is. It is kept as it is, then, and subjects of which it speaks are not
    measured again, lest they count twice.

    Args:
        record: of the model that is updated.
        known: keys of the images of which it speaks.
    """

    record: Typical
    known: frozenset[str]


NOBODY = Earlier(Typical(np.zeros((1, len(SHARES))), {}, {}, {}), frozenset())


@dataclass(frozen=True, eq=False)
class Measured:
    """What `measure_typical` found.

    Args:
        typical: of all together, as the model keeps it.
        numbers: of each subject that was measured now, by kind.
        mirrored: the axes along which a subject fits better mirrored, where it does.
    """

    typical: Typical
    numbers: Mapping[str, Mapping[str, float]]
    mirrored: Mapping[str, str]


def measure_typical(
    transformer: Transformer,
    subjects: Sequence[Keyed],
    atlases: Sequence[Keyed],
    mapped: Sequence[MappedCohort],
    earlier: Earlier = NOBODY,
) -> Measured:
    """Measure the training subjects, each against the others, from the registrations that the training has made.

    What takes time is kept in the work folder, by subject and by pair.

    Args:
        transformer: that mapped the subjects.
        subjects: all of them.
        atlases: in the order of ``mapped``.
        mapped: from `Transformer.map`.
        earlier: with which they are united, every subject counting alike.
    """
    execution = transformer.execution
    looks = transformer.registrar.operator.name not in WITHOUT_SETTINGS
    record, known = earlier.record, {subject.name for subject in subjects if subject.key in earlier.known}
    number = record.subjects + len(subjects) - len(known)
    points = {
        atlas.name: _points(transformer, atlas, cohort, known, record.points.get(atlas.name), record.subjects / number)
        for atlas, cohort in zip(atlases, mapped, strict=True)
    }
    intensities: dict[str, Intensities] = {}
    found: dict[str, dict[str, float]] = {}
    of_known: list[dict[str, float]] = []
    numbers: dict[str, dict[str, float]] = {}
    mirrored: dict[str, str] = {}
    for subject in execution.reporter.track(subjects, "measuring the training subjects", len(subjects)):
        execution.pause()
        source = subject.remembered()
        # Of its own atlas a subject says nothing.
        others = {atlas.name: atlas for atlas in atlases if atlas.key != subject.key}
        registrations = {name: transformer.registrar.kept(source, atlas) for name, atlas in others.items()}
        if subject.name in known:
            of_known.append(qualities(registrations))
            continue
        found[subject.name] = qualities(registrations)
        intensities[subject.name] = _intensities(transformer, source)
        own = numbers.setdefault(subject.name, {})
        share = covered(points, registrations, source.read().grid)
        if share is not None:
            own["field_of_view"] = share
        best = best_atlas(registrations) if looks else None
        tried = None if best is None else _margin(transformer, source, others[best])
        if tried is not None:
            own["orientation"], mirrored[subject.name] = tried
    # Each is compared with the mean of the others, so that it is as strange to them as a new scan is.
    total = np.sum([own.quantiles for own in intensities.values()], axis=0)
    mean: Float = (record.subjects * record.quantiles + total) / number
    for name, seen in intensities.items():
        numbers[name]["noise"] = seen.roughness
        if number > 1:
            numbers[name]["intensities"] = seen.distance(mean + (mean - seen.quantiles) / (number - 1))
    quality = {}
    if looks:
        # Of an atlas that is new the record says nothing; the known subjects that are there were registered onto it.
        before = {atlas.name: _Mean().joined(of_known, atlas.name) for atlas in atlases} | {
            name: _Mean(value, record.subjects) for name, value in record.quality.items()
        }
        for name, relative in relative_qualities(found, before).items():
            numbers[name]["registration"] = relative
        onto = {atlas.name: before[atlas.name].joined(found.values(), atlas.name) for atlas in atlases}
        quality = {name: reached.value for name, reached in onto.items() if reached.count}
    values = {kind.name: list(record.values.get(kind.name, ())) for kind in KINDS}
    for measured in numbers.values():
        for which, value in measured.items():
            values[which].append(value)
    typical = Typical(
        quantiles=np.round(mean, 5),
        points=points,
        quality=quality,
        values={name: tuple(sorted(round(value, 6) for value in all_of)) for name, all_of in values.items()},
    )
    return Measured(typical, numbers, mirrored)


@dataclass(frozen=True)
class _Mean:
    """A mean quality, and of how many registrations."""

    value: float = 0.0
    count: int = 0

    def joined(self, found: Iterable[Mapping[str, float]], atlas: str) -> _Mean:
        """With those of further subjects onto an atlas."""
        more = [own[atlas] for own in found if atlas in own]
        count = self.count + len(more)
        return _Mean((self.value * self.count + float(np.sum(more))) / count, count) if count else self


def relative_qualities(
    found: Mapping[str, Mapping[str, float]], before: Mapping[str, _Mean] | None = None
) -> dict[str, float]:
    """Of each subject, how far its registrations are above the mean of the others' onto the same atlas.

    Args:
        found: by subject and atlas, the quality.
        before: by atlas, the mean of further subjects.

    Returns:
        Mean over the atlases, of every subject that shares one with another.
    """
    relative = {}
    for subject, own in found.items():
        others = [qualities for name, qualities in found.items() if name != subject]
        rest = {name: (before or {}).get(name, _Mean()).joined(others, name) for name in own}
        above = [own[name] - mean.value for name, mean in rest.items() if mean.count]
        if above:
            relative[subject] = float(np.mean(above))
    return relative


def _points(
    transformer: Transformer,
    atlas: Keyed,
    cohort: MappedCohort,
    known: Collection[str],
    before: Float | None,
    share: float,
) -> Float:
    """Of an atlas's labelled region: those of before, which are a share of them, and of subjects that are not known."""
    plan = transformer.plan
    grid = working_grid(atlas.read().grid, plan)
    if before is None:
        return region_points(cohort, grid, plan.slice_axis)
    new = replace(cohort, cases=tuple(case for case in cohort.cases if case.name not in known))
    return united_points(before, region_points(new, grid, plan.slice_axis), share)


def _intensities(transformer: Transformer, source: Keyed) -> Intensities:
    plan, work = transformer.plan, transformer.work
    key = digest({"revision": REVISION, "source": source.key, "plan": plan.to_json()})
    if not work.finished("intensities", key, transformer.execution.reporter.warn):
        measured = measure_intensities(prepare(source.read(), plan), plan)
        with work.making("intensities", key) as folder:
            write_json(folder / "intensities.json", measured.to_json())
    return Intensities.from_json(read_json(work.entry("intensities", key) / "intensities.json"))


def _margin(transformer: Transformer, source: Keyed, atlas: Keyed) -> tuple[float, str] | None:
    """By how much a subject fits an atlas better than mirrored, and along which axes, if it does not."""
    work, execution = transformer.work, transformer.execution
    key = digest({"revision": REVISION, "source": source.key, "target": atlas.key})
    if not work.finished("orientation", key, execution.reporter.warn):
        found = orientation(source.read(), atlas.read(), execution)
        margin, axes = (None, "") if found is None else found
        with work.making("orientation", key) as folder:
            write_json(folder / "orientation.json", {"margin": margin, "axes": axes})
    kept = read_json(work.entry("orientation", key) / "orientation.json")
    # An earlier version kept no axes.
    return None if kept["margin"] is None else (float(kept["margin"]), str(kept.get("axes", "")))
