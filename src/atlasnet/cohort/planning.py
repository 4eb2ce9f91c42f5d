"""The plan for a cohort: of its fingerprint, and of what voxels keep of its structures."""

from __future__ import annotations

from dataclasses import dataclass

from atlasnet.cohort.cohort import Cohort
from atlasnet.cohort.fingerprint import Fingerprint
from atlasnet.cohort.plan import Plan
from atlasnet.cohort.spacing import Spacing, WantedSpacing
from atlasnet.cohort.voxels import Kept, kept_by
from atlasnet.execution import Reporter
from atlasnet.wording import lengths, shortened

MOST_FINER = 8.0
"""Times as many voxels as `Plan.derive` takes are planned at most, so that no structure is lost between them."""

MANY_STRUCTURES = 20
"""With more structures than these, as many times fewer: what networks say of a scan has a channel for each."""

_LISTED = 5


@dataclass(frozen=True)
class Planned:
    """A plan, and whether it can show what is to be learnt.

    Args:
        plan: of the cohort.
        kept: what the voxels of `Plan.derive` and finer ones keep of the structures, None where they are the scans', or
            nothing is labelled.
        number: of the plan's voxels among those.
    """

    plan: Plan
    kept: Kept | None = None
    number: int = 0

    @property
    def note(self) -> str | None:
        """What to say of voxels that are finer than usual."""
        if self.kept is None or self.number == 0:
            return None
        usual, taken = (self.kept.spacings[number] for number in (0, self.number))
        more = self.kept.more(self.number)
        return (
            f"the networks' voxels are {lengths(taken)} mm, {more:.1f} times as many as usual: "
            f"{lengths(usual)} mm are too coarse for {_of(self.kept.lost())}; --spacing {_asked(usual)} takes those "
            "all the same, in less time"
        )

    @property
    def doubt(self) -> str | None:
        """What to say of voxels that are too coarse, and which are not; None where they will do."""
        if self.kept is None or not (lost := self.kept.lost(self.number)):
            return None
        finer = self.kept.enough(lost)
        return (
            f"the networks' voxels, {lengths(self.kept.spacings[self.number])} mm, are too coarse for {_of(lost)}; "
            f"--spacing {_asked(self.kept.spacings[finer])} keeps "
            f"{min(self.kept.dice[name][finer] for name in lost):.2f} or more, with "
            f"{self.kept.more(finer) / self.kept.more(self.number):.1f} times the voxels"
        )


def plan_for(
    cohort: Cohort,
    fingerprint: Fingerprint,
    *,
    registered: bool = True,
    finer: bool = True,
    spacing: WantedSpacing | None = None,
    reporter: Reporter | None = None,
) -> Planned:
    """Plan, with finer voxels where those of `Plan.derive` are too coarse for a structure, as far as `MOST_FINER`.

    Args:
        cohort: its references are read again where the plan's voxels are coarser than the scans'.
        fingerprint: of the cohort.
        registered: see `Plan.derive`.
        finer: see `Plan.derive`.
        spacing: that of the plan, whatever it keeps; see `Plan.derive`.
        reporter: follows the reading.
    """
    plan = Plan.derive(fingerprint, registered=registered, finer=finer, spacing=spacing)
    kept = kept_by(cohort, plan, fingerprint.median_spacing, reporter)
    if kept is None or spacing is not None or not (lost := kept.lost()):
        return Planned(plan, kept)
    most = max(1.0, MOST_FINER * min(1.0, MANY_STRUCTURES / len(cohort.structures)))
    number = kept.enough(lost, most)
    plan = Plan.derive(fingerprint, registered=registered, finer=finer, spacing=kept.spacings[number])
    return Planned(plan, kept, number)


def _of(lost: dict[str, float]) -> str:
    """Structures, and what voxels keep of them."""
    listed = shortened([f"{name} ({value:.2f})" for name, value in lost.items()], _LISTED)
    return f"{listed}, the Dice of a reference with itself, sampled there and read back"


def _asked(spacing: Spacing) -> str:
    """A spacing as ``--spacing`` takes it."""
    return " ".join(f"{side:g}" for side in (spacing[:1] if len(set(spacing)) == 1 else spacing))
