"""The methods that a study compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from atlasnet.errors import InputError


@dataclass(frozen=True)
class Method:
    """One way from training subjects to the segmentation of a new scan.

    Args:
        name: in folders, tables and ``--only``.
        title: for people.
        space: where networks work: ``"own"``, every subject in its own space, on one canvas; ``"atlases"``, one network
            per atlas; ``"labels"``, no network, the atlases' labels are carried over.
        augmented: whether the networks are trained with augmentation.
        members: as many networks as AtlasNet has, each with a seed of its own.
        longer: one network trained for as many epochs as AtlasNet's together.
        local: carried labels are weighted voxel by voxel.
    """

    name: str
    title: str
    space: Literal["own", "atlases", "labels"]
    augmented: bool = True
    members: bool = False
    longer: bool = False
    local: bool = False

    @property
    def seeded(self) -> bool:
        """Whether anything is trained; carrying labels over draws no random number."""
        return self.space != "labels"

    @property
    def models(self) -> str:
        """What its models are called; several methods may use the same."""
        return self.space + ("" if self.augmented else "-unaugmented") + ("-long" if self.longer else "")

    def atlases(self, most: int) -> int | None:
        """How many of a study's atlases have a say at most; None where the method has no number of them."""
        return most if self.space == "atlases" else None


METHODS = (
    Method("plain", "one network", "own", augmented=False),
    Method("augmented", "one network, augmentation", "own"),
    Method("augmented-long", "one network, augmentation, as long as all of AtlasNet's", "own", longer=True),
    Method("ensemble", "as many networks as atlases, no registration", "own", augmented=False, members=True),
    Method("augmented-ensemble", "as many networks, augmentation, no registration", "own", members=True),
    Method("propagation", "labels of the atlases carried over, majority vote", "labels"),
    Method("propagation-local", "labels carried over, weighted by local similarity", "labels", local=True),
    Method("atlasnet-unaugmented", "AtlasNet, its networks without augmentation", "atlases", augmented=False),
    Method("atlasnet", "AtlasNet", "atlases"),
)
"""The rows of the main table, in its order."""

METHOD = {method.name: method for method in METHODS}
"""The same by name."""

MAIN = "atlasnet"
"""The method with which the others are compared."""

# With part of the training subjects only these are run, as in the publication.
OVER_FRACTIONS = ("plain", "augmented", "atlasnet")


def chosen_methods(names: Sequence[str] | None) -> tuple[Method, ...]:
    """The methods of these names in the order of the table; all without names.

    Raises:
        InputError: a name is unknown.
    """
    unknown = sorted(set(names or ()) - METHOD.keys())
    if unknown:
        raise InputError("the study has no such method", expected=", ".join(METHOD), found=", ".join(unknown))
    return tuple(method for method in METHODS if names is None or method.name in names)
