"""The contract between the method and whatever registers two images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from atlasnet.errors import VolumeError
from atlasnet.execution import Execution
from atlasnet.transform import Transform
from atlasnet.volume import Volume
from atlasnet.volume.volume import all_finite
from atlasnet.wording import counted


@dataclass(frozen=True, eq=False)
class Registration:
    """What registering one source onto one target gave.

    Args:
        transform: takes target points into the source (forward), and back.
        record: JSON-able. Every operator fills in

            - ``operator``, ``settings``, ``seconds``;
            - ``levels``: per level ``resolution`` and ``control_spacing_mm`` (x, y, z), ``labels``, ``seconds``; where
              there was a search, per control point and of the level's own energy, ``energy_before`` (nobody moves),
              ``energy_best_labelling`` (the best labelling met, never above that) and ``energy_step`` (the step between
              the labels that is applied, which may be above either; see
              `atlasnet.registration.propagation.step_energy`); where its folds were looked for,
              ``jacobian_min_before_repair``; empty without levels;
            - ``similarity_before`` (images as they lie in the world), ``similarity_after``: per metric, 0 for
              unrelated images (see `atlasnet.registration.similarity.agreement`);
            - where a deformation began with another map: ``similarity_prealigned``, of that map, and
              ``deformation_lost``, whether the deformation was discarded for it; then ``similarity_rejected`` is that
              of the discarded map, and each of the ``levels`` that led to it is ``rejected``;
            - ``jacobian_min``: least one-sided corner Jacobian on the target grid, ``folded_share``: share of voxels
              where it is not positive;
            - ``inverse_residual_mm``: ``target`` and ``source``, each with mean, p999, max;
            - ``max_displacement_mm``: of any voxel of the target;
            - ``covered``: share of what counts in the target that the source shows after registration;
            - ``quality``: in [0, 1], of the fit there; the weight that a vote by registration quality gives (see
              `atlasnet.registration.quality.quality`).
    """

    transform: Transform
    record: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        said = [str(self.record.get("operator", "unnamed operator"))]
        for key, text in (
            ("quality", "quality {:.3f}"),
            ("jacobian_min", "least Jacobian {:.3f}"),
            ("max_displacement_mm", "moves up to {:.1f} mm"),
        ):
            said += [text.format(self.record[key])] if key in self.record else []
        return f"Registration({', '.join(said)})"


class Operator(Protocol):
    """Registers one source onto a sequence of targets.

    An operator whose result does not depend on the seed may say so with ``seeded = False``; its maps are then shared
    between runs with different seeds.

    One that may be called by several threads at once, and whose maps do not depend on how many threads it is given, may
    say so with ``side_by_side = True``: a scan is then registered onto several atlases at a time.

    One whose metric weights depend on the tissue says so with ``contextual = True``. Its `register` also takes
    ``source_labels`` (1, z, y, x) and ``target_labels``, one or None per target, each on its image's grid; see
    `labelled`.
    """

    name: str

    def settings(self) -> dict[str, Any]:
        """Everything that the result depends on besides the images, as JSON; part of cache keys."""

    def register(
        self,
        source: Volume,
        targets: Sequence[Volume],
        *,
        source_mask: Volume | None = None,
        target_masks: Sequence[Volume | None] | None = None,
        initial: Sequence[Transform | None] | None = None,
        execution: Execution,
    ) -> list[Registration]:
        """Register.

        Args:
            source: (c, z, y, x), any orientation.
            targets: with as many channels.
            source_mask: (1, z, y, x) on the source's grid, non-zero where voxels count; None: everywhere.
            target_masks: one per target, likewise.
            initial: one per target, a map from which to start instead of the operator's own; None: the operator's own.
            execution: device, threads, seed, progress.

        Returns:
            One result per target, in their order.

        Raises:
            VolumeError: images or masks that do not fit each other.
            RegistrationError: no acceptable map was found.
        """


@dataclass(frozen=True, eq=False)
class Task:
    """One target with what belongs to it, and the labels of the source where tissue decides."""

    target: Volume
    mask: Volume | None
    initial: Transform | None
    labels: Volume | None = None
    source_labels: Volume | None = None


def contextual(operator: Operator) -> bool:
    """Whether the metric weights of an operator depend on the tissue, which label maps tell it."""
    return bool(getattr(operator, "contextual", False))


def labelled(operator: Operator, target_labels: Sequence[Volume | None]) -> dict[str, Any]:
    """The argument of `Operator.register` with which the targets' labels decide on the weights, if they matter to it.

    Those of the source are left out: a scan that is to be segmented has none, and subjects with references are
    registered as it will be. So no reference by which a result is scored can have had a part in it.
    """
    return {"target_labels": list(target_labels)} if contextual(operator) else {}


def tasks(
    source: Volume,
    targets: Sequence[Volume],
    source_mask: Volume | None,
    target_masks: Sequence[Volume | None] | None,
    initial: Sequence[Transform | None] | None,
) -> list[Task]:
    """Pair the sequences of `Operator.register`, everything checked before any work.

    Raises:
        VolumeError: another number of masks or maps than targets, a mask on another grid, different channels, or voxels
            that are no finite numbers.
    """
    masks = [None] * len(targets) if target_masks is None else list(target_masks)
    maps = [None] * len(targets) if initial is None else list(initial)
    for name, values in (("target_masks", masks), ("initial", maps)):
        if len(values) != len(targets):
            raise VolumeError(
                f"{name} must have one entry per target", expected=str(len(targets)), found=str(len(values))
            )
    for name, image in (("source", source), *(("target", target) for target in targets)):
        _check_voxels(name, image)
    check_mask("source_mask", source, source_mask)
    for target, mask in zip(targets, masks, strict=True):
        check_mask("target mask", target, mask)
        if source.channels != target.channels:
            raise VolumeError(
                "source and target have different channels",
                expected=f"{counted(target.channels, 'channel')}, as the target",
                found=f"{source.channels} in the source",
            )
    return [Task(*parts) for parts in zip(targets, masks, maps, strict=True)]


def _check_voxels(name: str, image: Volume) -> None:
    if image.array.dtype.kind not in "iuf":
        raise VolumeError(f"the voxels of the {name} are no numbers", found=str(image.array.dtype))
    if not all_finite(image.array):
        raise VolumeError(
            f"the {name} has voxels that are not finite",
            found="NaN or infinity",
            remedy="replace them by a number, for instance the air or background value",
        )


def check_mask(name: str, image: Volume, mask: Volume | None) -> None:
    """Find out that a mask, called ``name``, is none of its image.

    Raises:
        VolumeError: it has several channels, lies on another grid, or is empty.
    """
    if mask is None:
        return
    if mask.channels != 1 or not mask.grid.matches(image.grid):
        raise VolumeError(f"the {name} does not lie on its image's grid", expected=repr(image.grid), found=repr(mask))
    if not mask.array.any():
        raise VolumeError(
            f"the {name} is empty", expected="a non-zero voxel where the image counts", found="zeros only"
        )
