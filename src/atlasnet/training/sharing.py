"""`Sharing`: what the networks of several atlases have in common, and what they cost together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from atlasnet.errors import InputError
from atlasnet.training.recipe import Recipe

Kind = Literal["independent", "first", "common", "model"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Sharing:
    """Which networks are trained by the whole recipe, and how the others start from their weights.

    All networks see the same subjects, each in the space of its atlas, so most of what one learns serves the others.

    Args:
        kind: ``"independent"``: every atlas's network is trained from scratch. ``"first"``: the first atlas's is; each
            further one starts from its weights and is tuned. ``"common"``: one network is trained on the slices of all
            atlases together, and tuned to each of them. With a single atlas all three are the same. ``"model"``: every
            one starts from the weights of the model that is updated and is tuned.
        tuning: epochs of a tuning as a share of the recipe's, in (0, 1]: the largest whole number within it, at least
            one.
        rate: learning rates of a tuning as a share of the recipe's, in (0, 1]; below 1 lest its first steps undo what
            the network starts with, which a short schedule has no time to learn again.

    Raises:
        InputError: a value is out of its range.
    """

    kind: Kind = "independent"
    tuning: float = 0.25
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                "the networks cannot share what they learn in this way",
                expected=", ".join(KINDS[:-1]) + f" or {KINDS[-1]}",
                found=repr(self.kind),
            )
        for name, value in (("share of the epochs", self.tuning), ("share of the learning rate", self.rate)):
            if not 0 < value <= 1:
                raise InputError(f"the {name} of a tuning cannot be used", expected="in (0, 1]", found=str(value))

    @classmethod
    def of(cls, value: str | Sharing | None, recipe: Recipe) -> Sharing:
        """A sharing by its kind, the rest as it is by default; None: the recipe's kind.

        Raises:
            InputError: there is no such kind.
        """
        return value if isinstance(value, Sharing) else cls(cast(Kind, value or recipe.sharing))

    def tunings(self, atlases: int) -> int:
        """How many of the atlases' networks, the last ones, are tuned."""
        if self.kind == "model":
            return atlases
        if self.kind == "independent" or atlases == 1:
            return 0
        return atlases if self.kind == "common" else atlases - 1

    def networks(self, atlases: int) -> int:
        """How many networks are trained, the common one included."""
        return atlases + (self.kind == "common" and self.tunings(atlases) > 0)

    def epochs(self, epochs: int, atlases: int) -> int:
        """Epochs of all networks together, the common one included, when a network from scratch has ``epochs``."""
        tunings = self.tunings(atlases)
        from_scratch = 0 if self.kind == "model" else 1 if tunings else atlases
        return from_scratch * epochs + tunings * self._tuning(epochs)

    def described(self, epochs: int, atlases: int) -> str:
        """Whose epochs they are, in words."""
        tunings = self.tunings(atlases)
        first = {"model": "", "first": f"{epochs} for the first, "}.get(self.kind, f"{epochs} for a common one, ")
        each = self._tuning(epochs) if tunings else epochs
        whose = "its network" if atlases == 1 else f"each of {tunings or atlases}" if tunings != 1 else "the other"
        return f"{first if tunings else ''}{each} for {whose}"

    def tuned(self, recipe: Recipe) -> Recipe:
        """The recipe of a tuning: the schedule of ``recipe``, shrunk in time and in rate; epochs keep their steps."""
        epochs = self._tuning(recipe.epochs)
        share = epochs / recipe.epochs
        return replace(
            recipe.with_epochs(epochs),
            learning_rate=recipe.learning_rate * self.rate,
            step_epochs=max(1, round(recipe.step_epochs * share)),
            step_drop=recipe.step_drop * self.rate,
            floor=recipe.floor * self.rate,
        )

    def _tuning(self, epochs: int) -> int:
        return max(1, math.floor(self.tuning * epochs))


def pooled(recipe: Recipe, slices: int, batch: int, atlases: int) -> Recipe:
    """The recipe of a network that learns from the ``slices`` of all ``atlases``, at the cost of one atlas's network.

    Its epochs have the steps that the mean number of slices of an atlas asks for, drawn from all slices. They hold a
    subject once per atlas, so it is seen as often as by the network of one atlas, now in one space, now in another.
    """
    return replace(recipe, iterations=recipe.steps(-(-slices // atlases), batch), passes=0.0)
