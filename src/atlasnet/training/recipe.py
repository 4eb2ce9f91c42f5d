"""`Recipe`: every choice of a training run, as the publication states it or as works best in practice."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from atlasnet.errors import InputError
from atlasnet.execution import make_plain
from atlasnet.wording import counted


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a slice that leave its anatomy as it is; every range is drawn from uniformly.

    Args:
        rotation: largest angle in the slice, degrees, both signs.
        translation: largest shift along each axis, both signs, as a share of the slice's side.
        scale: largest logarithm of the magnification, both signs.
        probability: share of the slices that are moved at all; the others keep their sharpness, as in prediction.
        contrast: largest logarithm of the factor on the intensities around their mean.
        brightness: largest shift of the intensities, in their standard deviations.
        gamma: largest logarithm of the exponent on the intensities between their extremes.
        noise: largest standard deviation of added noise, in the intensities' standard deviations.
    """

    rotation: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    probability: float = 1.0
    contrast: float = 0.0
    brightness: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Args:
        name: the preset that it came from.
        epochs: epochs; checkpoints and log rows come once an epoch.
        iterations: optimiser steps of an epoch, or None for one pass over all slices. A fixed number gives a cohort of
            four subjects as many steps as one of forty.
        passes: with ``iterations``, an epoch is lengthened until every slice is seen this often in all the training.
        batch_pixels: pixels of a batch, which decides how many slices it has...
        batch_slices: ...at most this many, and at least two.
        foreground: share of a batch drawn among slices that hold a foreground class (each class equally often).
        optimiser: ``"sgd"`` or ``"adamw"``.
        learning_rate: at the start.
        schedule: ``"step"`` subtracts ``step_drop`` every ``step_epochs`` epochs, never below ``floor``; ``"poly"``
            falls as (1 - progress) ** 0.9; ``"cosine"`` as half a cosine; these rise over the share ``warmup`` first.
        momentum: of SGD; ``nesterov`` as well.
        weight_decay: of the optimiser.
        dice: add the soft Dice loss to the cross-entropy.
        balancing: weight the cross-entropy by median frequency balancing.
        augmentation: random changes of the slices.
        sharing: what the networks of several atlases have in common where nobody says; see
            `atlasnet.training.sharing.Sharing`.
    """

    name: str
    epochs: int
    iterations: int | None
    learning_rate: float
    optimiser: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["step", "poly", "cosine"] = "step"
    passes: float = 0.0
    batch_pixels: int = 2**20
    batch_slices: int = 12
    foreground: float = 0.0
    step_epochs: int = 10
    step_drop: float = 2.5e-3
    floor: float = 1e-4
    warmup: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    dice: bool = False
    balancing: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    sharing: Literal["independent", "first", "common"] = "independent"

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.epochs, int):
            raise InputError("epochs must be a whole number", found=repr(self.epochs))
        if self.epochs < 1:
            raise InputError("a network needs at least one epoch of training", found=counted(self.epochs, "epoch"))
        if self.iterations is not None and self.iterations < 1:
            raise InputError("an epoch needs at least one iteration", found=counted(self.iterations, "iteration"))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError("the learning rate must be positive", found=str(self.learning_rate))

    @classmethod
    def of(cls, preset: str | Recipe, epochs: int | None = None) -> Recipe:
        """A recipe, or the one of that name, with another number of epochs if one is given; see `preset`."""
        recipe = cls.preset(preset) if isinstance(preset, str) else preset
        return recipe if epochs is None else replace(recipe, epochs=epochs)

    @classmethod
    def preset(cls, name: str, *, epochs: int | None = None) -> Recipe:
        """The recipe called ``name``, with another number of epochs if one is given.

        ``"publication"`` (Vakalopoulou et al., MICCAI 2018): SGD from 0.01 with 2.5e-3 less every 10 epochs, momentum
        0.9, weight decay 5e-4, 18 epochs of one pass over all slices, rotations up to 10 degrees, translations up to
        20 pixels of 512, cross-entropy with median frequency balancing. Not published, and chosen here: the batch, 4
        slices of 512 x 512 or at most the 12 of SegNet's authors; the floor of the learning rate; both signs of the
        shifts.

        ``"default"``: Dice + cross-entropy, wide changes of place and mild ones of intensity, and a number of steps
        that does not depend on the size of the cohort until that is large. Six networks take the steps of 2.5, because
        they are tuned from one that is trained on all atlases.

        Raises:
            InputError: there is no such preset, or the epochs are not positive.
        """
        if name not in _PRESETS:
            raise InputError(f"unknown preset {name!r}", expected=" or ".join(sorted(_PRESETS)))
        recipe = _PRESETS[name]
        return recipe if epochs is None else replace(recipe, epochs=epochs)

    def finer(self, spatial_dims: int) -> bool:
        """Whether voxels finer than a scan's are planned for networks in so many dimensions.

        The publication's networks saw slices as they were; those in three dimensions gained nothing by finer voxels
        (``benchmarks/results/network_ablations.json``).
        """
        return self.name != "publication" and spatial_dims == 2

    def with_epochs(self, epochs: int) -> Recipe:
        """So many epochs, each of as many steps as before."""
        return replace(self, epochs=epochs, passes=self.passes * (epochs / self.epochs))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field is unknown or absent.
        """
        try:
            return cls(**{**value, "augmentation": Augmentation(**value["augmentation"])})
        except (TypeError, KeyError) as error:
            raise InputError(
                "the training recipe cannot be used",
                expected="the fields " + ", ".join(sorted(known.name for known in fields(cls))),
                found=f"{type(error).__name__}: {error}",
            ) from error

    def batch(self, pixels: int) -> int:
        """Slices of a batch when one has ``pixels`` pixels."""
        return max(2, min(self.batch_slices, self.batch_pixels // pixels))

    def steps(self, slices: int, batch: int) -> int:
        """Optimiser steps of an epoch, of which each sees ``batch`` of the ``slices``."""
        if self.iterations is None:
            return max(1, -(-slices // batch))
        return max(self.iterations, math.ceil(self.passes * slices / (batch * self.epochs)))

    def rate(self, step: int, steps: int) -> float:
        """The learning rate at optimiser step ``step`` (from 0), ``steps`` being those of an epoch."""
        if self.schedule == "step":
            drops = step // steps // self.step_epochs
            return max(self.floor, self.learning_rate - drops * self.step_drop)
        progress = step / (steps * self.epochs)
        if progress < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup * steps * self.epochs + 1)
        left = (1 - progress) / (1 - self.warmup)
        factor = left**0.9 if self.schedule == "poly" else 0.5 * (1 - math.cos(math.pi * left))
        return self.learning_rate * factor


def check_epochs(epochs: Collection[int], recipe: Recipe) -> None:
    """Whether a training has all of these epochs.

    Raises:
        InputError: it has not.
    """
    absent = sorted(epoch for epoch in epochs if not 1 <= epoch <= recipe.epochs)
    if absent:
        raise InputError(
            "the training has no such epochs", expected=f"1 to {recipe.epochs}", found=", ".join(map(str, absent))
        )


_PRESETS = {
    "publication": Recipe(
        name="publication",
        epochs=18,
        iterations=None,
        learning_rate=0.01,
        balancing=True,
        augmentation=Augmentation(rotation=10.0, translation=20 / 512),
    ),
    "default": Recipe(
        name="default",
        epochs=60,
        iterations=25,
        passes=4.0,
        batch_pixels=3 * 2**15,
        batch_slices=32,
        foreground=1 / 3,
        learning_rate=2e-3,
        optimiser="adamw",
        schedule="cosine",
        warmup=0.05,
        weight_decay=1e-2,
        dice=True,
        sharing="common",
        augmentation=Augmentation(
            rotation=30.0,
            translation=0.08,
            scale=0.25,
            probability=0.9,
            contrast=0.25,
            brightness=0.2,
            gamma=0.3,
            noise=0.15,
        ),
    ),
}
