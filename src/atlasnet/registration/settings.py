"""`MRFSettings`: everything that the deformable registration may be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from atlasnet.errors import InputError
from atlasnet.registration.affine import AffineSettings
from atlasnet.registration.context import TissueClass, check_classes
from atlasnet.registration.intensity import OptionalRanges, Ranges
from atlasnet.registration.pyramid import LevelSettings
from atlasnet.registration.similarity import METRICS
from atlasnet.volume import Grid

DISCRETE_LEVELS = (
    LevelSettings(4, 5, 4),
    LevelSettings(3, 3, 3.3),
    LevelSettings(2, 2, 3.5),
    LevelSettings(1.5, 2, 4),
    LevelSettings(1, 1, 3),
)
# Below the last search the images are within a voxel or two, where refinement is both more accurate and faster than
# a choice between neighbouring voxels; wide supports first, then narrow ones.
_REFINED = (
    LevelSettings(1.5, 1, 4, refinements=1),
    LevelSettings(1.5, 0, 3, refinements=2),
    LevelSettings(1, 0, 3, refinements=1),
    LevelSettings(1, 0, 2, refinements=1),
)
DEFAULT_LEVELS = (
    LevelSettings(5, 4, 4, refinements=3),
    LevelSettings(3, 2, 3.3, refinements=3),
    LevelSettings(2, 2, 3.5, refinements=3),
    *_REFINED,
)
# On a small grid time is no reason to stop searching early: wide searches down to the finest level gained .008 Dice on
# hippocampi, of up to 81,000 voxels. Larger grids show whole regions; on those of the demo, of 131,000 voxels with
# diseased lungs that have no counterpart, they lost.
SMALL_LEVELS = (
    *DEFAULT_LEVELS[:3],
    LevelSettings(1.5, 2, 4, refinements=1),
    LevelSettings(1, 2, 4, refinements=1),
    LevelSettings(1, 2, 3, refinements=2),
    LevelSettings(1, 1, 2, refinements=2),
)
SMALL_VOXELS = 100_000
# In a plane a control point sees a fraction of the voxels and a search has a fraction of the labels: wide searches down
# to the finest level gained .01 to .015 Dice on slices of chests.
PLANE_LEVELS = (
    LevelSettings(5, 6, 4, refinements=1),
    LevelSettings(3, 4, 3.3, refinements=1),
    LevelSettings(2, 4, 3.5, refinements=1),
    LevelSettings(1.5, 4, 4, refinements=1),
    LevelSettings(1, 4, 3.5, refinements=1),
    LevelSettings(1, 2, 3, refinements=2),
    LevelSettings(1, 0, 2, refinements=1),
)

DEFAULT_METRICS: Mapping[str, float] = {"mi": 1.0, "ncc": 1.0}
# The same slice of two subjects shows other vessels and other cuts of bones. The fine structure that local correlation
# compares then has no counterpart more often than the tissue has.
PLANE_METRICS: Mapping[str, float] = {"mi": 3.0, "ncc": 1.0}

# What differs from the default. The publication gives the metrics and the bins of mutual information, not the weights,
# the pyramid or the labels; its optimisation is discrete throughout.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "fast": {"voxels": 400_000},
    "fine": {
        "voxels": 4_000_000,
        "levels": (
            LevelSettings(6, 4, 4, refinements=3),
            LevelSettings(4, 2, 3.3, refinements=3),
            LevelSettings(2.5, 2, 3.5, refinements=3),
            *_REFINED,
        ),
    },
    "publication": {"metrics": {"mi": 1.0, "ncc": 1.0, "dwt": 1.0}, "levels": DISCRETE_LEVELS},
}


def preset(name: str, metrics: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The fields of `MRFSettings` that a preset sets: ``fast``, ``default``, ``fine`` or ``publication``.

    Args:
        name: of the preset.
        metrics: weights that take the place of the preset's. Where ``ncc`` has none, levels with refinements, which
            follow it, are left out: those of `MRFSettings` hold, which are `DISCRETE_LEVELS` then.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no preset of the registration is called {name!r}", expected=", ".join(PRESETS))
    fields = dict(PRESETS[name])
    refined = any(level.refinements for level in fields.get("levels", ()))
    if metrics is not None and refined and not metrics.get("ncc", 0) > 0:
        del fields["levels"]
    return fields


@dataclass(frozen=True)
class MRFSettings:
    """Settings of the multi-metric MRF registration; one set serves every image and every atlas.

    Args:
        metrics: weight of each metric, ``mi``, ``ncc``, ``dwt``, ``sad``, ``mind``; only their ratios matter. None:
            `DEFAULT_METRICS`, or `PLANE_METRICS` for images of one slice.
        alpha: weight of the smoothness penalty (mean squared derivative of the displacement) against the metrics.
        truncation: upper bound of the penalty of a pair of control points; None for none.
        levels: coarsest first; those too coarse for an image are left out. None: `DEFAULT_LEVELS`, `SMALL_LEVELS` on
            grids of up to `SMALL_VOXELS`, `PLANE_LEVELS` for images of one slice, or `DISCRETE_LEVELS` where ``ncc``
            has no weight, because refinement follows what that metric compares.
        spacing: voxel size at which to register, mm; never finer than the target's. None: the finest with ``voxels``.
        voxels: budget for the automatic spacing.
        iterations: rounds of belief propagation per level.
        damping: share of the old messages kept in a round, in [0, 1).
        temperature: of the soft arg-min between labels, in the unit of the energy of a control point.
        mi_range: per channel the intensities between which the 16 bins of mutual information lie; None, for all or for
            one: -900..100 for images in Hounsfield units, robust percentiles for others.
        clamp: per channel the intensities beyond which differences do not count; None: -1000..600 for Hounsfield
            units, robust percentiles for others.
        affine: whether to align affinely first, where no initial map is given.
        affine_settings: of that alignment.
        smallest_jacobian: after every level the map is smoothed where its one-sided corner Jacobians do not exceed
            this.
        classes: weights of the metrics by tissue class, in the unit of ``metrics``, which hold where no class is known
            and are the class-free average; none: ``metrics`` everywhere. See `atlasnet.registration.learning`.
        symmetric: register in both directions and take the mean of the map found in one and the inverse of that found
            in the other, so that it hardly matters which image is called the target; twice the time.

    Raises:
        InputError: a value that makes no sense; the message names it.
    """

    metrics: Mapping[str, float] | None = None
    alpha: float = 0.1
    truncation: float | None = None
    levels: tuple[LevelSettings, ...] | None = None
    spacing: float | None = None
    voxels: int = 1_500_000
    iterations: int = 8
    damping: float = 0.5
    temperature: float = 0.02
    mi_range: OptionalRanges | None = None
    clamp: Ranges | None = None
    affine: bool = True
    affine_settings: AffineSettings = field(default_factory=AffineSettings)
    smallest_jacobian: float = 0.33
    symmetric: bool = False
    classes: tuple[TissueClass, ...] = ()

    def __post_init__(self) -> None:
        # JSON has neither tuples nor our types: a settings() dictionary read back is taken as it is.
        if self.levels is not None:
            levels = tuple(LevelSettings(**v) if isinstance(v, Mapping) else v for v in self.levels)
            object.__setattr__(self, "levels", levels)
        if isinstance(self.affine_settings, Mapping):
            object.__setattr__(self, "affine_settings", AffineSettings(**self.affine_settings))
        classes = tuple(TissueClass(**v) if isinstance(v, Mapping) else v for v in self.classes)
        object.__setattr__(self, "classes", classes)
        if self.clamp is not None:
            object.__setattr__(self, "clamp", tuple((float(low), float(high)) for low, high in self.clamp))
        if self.mi_range is not None:
            spans = tuple(None if span is None else (float(span[0]), float(span[1])) for span in self.mi_range)
            object.__setattr__(self, "mi_range", spans)
        if self.metrics is not None:
            object.__setattr__(self, "metrics", {name: float(weight) for name, weight in self.metrics.items()})
        self._check()
        check_classes(self.classes)

    def _check(self) -> None:
        metrics = DEFAULT_METRICS if self.metrics is None else self.metrics
        levels = DEFAULT_LEVELS if self.levels is None else self.levels
        unknown = sorted(set(metrics) - set(METRICS))
        weights = metrics.values()
        ranges = [span for span in (*(self.mi_range or ()), *(self.clamp or ())) if span is not None]
        checks: list[tuple[bool, str, object, str]] = [
            (not unknown, "metrics", ", ".join(unknown), "names among " + ", ".join(METRICS)),
            (
                all(0 <= weight < math.inf for weight in weights) and any(weight > 0 for weight in weights),
                "metrics",
                dict(metrics),
                "finite weights >= 0, one > 0",
            ),
            (self.alpha > 0, "alpha", self.alpha, "a positive number"),
            (
                self.truncation is None or self.truncation > 0,
                "truncation",
                self.truncation,
                "None or a positive number",
            ),
            (len(levels) > 0, "levels", "none", "at least one level"),
            (
                all(v.factor >= 1 and v.radius >= 0 and v.support >= 1 and v.refinements >= 0 for v in levels),
                "levels",
                levels,
                "factor and support of at least 1, radius and refinements of at least 0",
            ),
            (
                all(v.radius > 0 or v.refinements > 0 for v in levels),
                "levels",
                levels,
                "a radius or refinements above 0 on every level",
            ),
            (
                metrics.get("ncc", 0) > 0 or self.levels is None or not any(v.refinements for v in levels),
                "levels",
                f"refinements on {sum(v.refinements > 0 for v in levels)} of {len(levels)}, metrics {dict(metrics)}",
                "no refinements where the metric ncc, which they follow, has no weight",
            ),
            (self.spacing is None or self.spacing > 0, "spacing", self.spacing, "None or millimetres above 0"),
            (self.voxels > 0, "voxels", self.voxels, "a positive number"),
            (self.iterations > 0, "iterations", self.iterations, "a positive number"),
            (0 <= self.damping < 1, "damping", self.damping, "a share in [0, 1)"),
            (self.temperature > 0, "temperature", self.temperature, "a positive number"),
            (
                all(-math.inf < low < high < math.inf for low, high in ranges),
                "mi_range or clamp",
                ranges,
                "(low, high), finite, with low < high",
            ),
            (0 < self.smallest_jacobian < 1, "smallest_jacobian", self.smallest_jacobian, "a number in (0, 1)"),
        ]
        for fine, name, found, expected in checks:
            if not fine:
                raise InputError(f"registration setting {name} cannot be used", expected=expected, found=str(found))

    def metrics_on(self, grid: Grid) -> Mapping[str, float]:
        """``metrics``, or those that stand for None on this registration grid."""
        if self.metrics is not None:
            return self.metrics
        return PLANE_METRICS if _is_plane(grid) else DEFAULT_METRICS

    def levels_on(self, grid: Grid) -> tuple[LevelSettings, ...]:
        """``levels``, or those that stand for None on this registration grid."""
        if self.levels is not None:
            return self.levels
        if not self.metrics_on(grid).get("ncc", 0) > 0:
            return DISCRETE_LEVELS
        if _is_plane(grid):
            return PLANE_LEVELS
        return SMALL_LEVELS if grid.voxels <= SMALL_VOXELS else DEFAULT_LEVELS

    def as_json(self) -> dict[str, Any]:
        """A dictionary of plain values; ``MRFSettings(**that)`` is this again, also through a JSON file."""
        values = asdict(self)
        if not self.classes:
            del values["classes"]  # it is a part of keys, which are the same as before there were any
        return values


def _is_plane(grid: Grid) -> bool:
    return min(grid.shape) == 1
