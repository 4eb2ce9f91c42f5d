"""What a user may choose of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from atlasnet.cohort.spacing import WantedSpacing, require_spacing
from atlasnet.errors import InputError
from atlasnet.execution import make_plain
from atlasnet.registration import require_quality
from atlasnet.training.recipe import Recipe
from atlasnet.training.sharing import Sharing


@dataclass(frozen=True)
class FitOptions:
    """What a user may choose; the plan holds what follows from the data.

    Args:
        atlases: how many to choose among the subjects (None: 6, or all of fewer subjects), or their names: subjects or
            image files. In an update, how many there are to be in all (None: no more), or the names of those to be
            added.
        atlas_images: image files among which they are chosen too, beside the subjects; nobody need have annotated
            them (see `atlasnet.atlas.scans_beside`).
        network: a registered name or ``"module:Class"``; None takes the plan's, in an update the model's.
        allow_module: whether the latter may be imported.
        width: factor on the network's channels; None takes the plan's, in an update the model's.
        preset: training recipe, ``"default"`` or ``"publication"``, or a recipe of one's own.
        epochs: of every network that is trained from scratch; None takes the recipe's.
        spacing: of the grid on which networks work, (x, y, z) mm, or ``"scan"`` for that of the scans; None plans it.
        sharing: ``"independent"``, ``"first"`` or ``"common"``: whether atlases' networks start from what one of them,
            or one trained for all of them, has learnt; in an update also ``"model"``: from what the model has learnt;
            or a `Sharing` of one's own. None takes the recipe's, in an update ``"model"``.
        operator: name of the registration operator, see `make_operator`; None takes ``"mrf"``, in an update the
            model's.
        operator_settings: passed to the operator, over what the plan says.
        minimum_quality: a subject whose registration onto an atlas has a lower quality, or covers hardly any of it,
            does not train its network, 0 to 1 (see `atlasnet.registration.shortcoming`).
        time_budget: seconds that the call may take; the networks get as many epochs as fit, at most the recipe's. The
            number is decided once, by timing some steps, and kept: the same call goes on with it after a stop, and the
            model says how many it was.
        keep_epochs: epochs after which the networks' weights are kept beside the model, see `Model.weights_path`, of
            those that are tuned the weights of the network that they start from; asked for after the training, they
            cost another one.
        loss_weights: by name of a label or a region, how much it counts in the loss, 1 where nothing is said.
    """

    atlases: int | tuple[str, ...] | None = None
    atlas_images: tuple[str, ...] = ()
    network: str | None = None
    allow_module: bool = False
    width: float | None = None
    preset: str | Recipe = "default"
    epochs: int | None = None
    spacing: WantedSpacing | None = None
    sharing: str | Sharing | None = None
    operator: str | None = None
    operator_settings: Mapping[str, Any] = field(default_factory=dict)
    minimum_quality: float = 0.05
    time_budget: float | None = None
    keep_epochs: tuple[int, ...] = ()
    loss_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def named(self) -> tuple[str, ...]:
        """The atlases that are named, and the images among which atlases are chosen."""
        return (*(self.atlases if isinstance(self.atlases, tuple) else ()), *self.atlas_images)

    def __post_init__(self) -> None:
        make_plain(self)
        require_spacing(self.spacing)
        require_quality(self.minimum_quality)
        if not isinstance(self.atlases, (int, tuple, type(None))):
            raise InputError("the atlases are not understood", expected="how many, or names", found=repr(self.atlases))
        if isinstance(self.time_budget, str):
            raise InputError(
                "the time budget is not a number of seconds",
                found=repr(self.time_budget),
                remedy="half an hour is time_budget=30 * 60",
            )
        if self.width is not None and not (math.isfinite(self.width) and self.width > 0):
            raise InputError("the width of a network must be positive", found=f"{self.width:g}")
