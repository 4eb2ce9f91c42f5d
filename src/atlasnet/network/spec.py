"""`NetworkSpec`: which architecture, how wide, with which options; and what an architecture promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from atlasnet.errors import InputError

_SMALLEST_BOTTLENECK = 4  # pixels; a pooling that leaves less than this drops more anatomy than it adds context
_DEEPEST = 5


@dataclass(frozen=True)
class NetworkSpec:
    """An architecture by name, never by code.

    Args:
        name: a registered name (``"unet"``, ``"segnet"``, or one given to `register_network`), or ``"module:Class"``.
        width: multiplies the number of channels of every layer; 1 is the architecture as its authors describe it.
        options: further arguments of the builder, as JSON values.

    Raises:
        InputError: the width is not positive, or an option has no name.
    """

    name: str = "unet"
    width: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("the network has no name", expected="unet, segnet or module:Class")
        if not 0 < self.width < float("inf"):
            raise InputError("the width of the network must be positive", found=str(self.width))
        object.__setattr__(self, "width", float(self.width))
        object.__setattr__(self, "options", dict(self.options))

    @classmethod
    def planned(cls, name: str, shape: Sequence[int], *, width: float = 1.0, context: int = 1) -> NetworkSpec:
        """The spec for a volume of ``shape`` (z, y, x), of which a U-Net sees ``context`` neighbours of each slice.

        A U-Net halves the slice (one in three dimensions, the block) as often as at least 4 pixels remain along the
        shortest side, at most 5 times: so it sees the whole of a large slice and does not pool a small structure away.
        Other architectures are as they are.
        """
        options: dict[str, Any]
        if name == "unet":
            side, options = min(shape[-2:]), {"context": context}
        elif name == "unet3d":
            side, options = min(shape), {}
        else:
            return cls(name, width)
        depth = 1
        while depth < _DEEPEST and side >= _SMALLEST_BOTTLENECK * 2 ** (depth + 1):
            depth += 1
        return cls(name, width, {**options, "depth": depth})

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"name": self.name, "width": self.width, "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NetworkSpec:
        """Read what `to_json` wrote; nothing is imported.

        Raises:
            InputError: a field is absent or of the wrong type.
        """
        try:
            name, width, options = value["name"], value["width"], value["options"]
        except (KeyError, TypeError) as error:
            raise InputError("the network's description is not complete", found=repr(value)) from error
        right = isinstance(name, str) and isinstance(width, (int, float)) and isinstance(options, Mapping)
        if not right:
            raise InputError(
                "the network's description cannot be used",
                expected="name (text), width (number), options (object)",
                found=repr(value),
            )
        return cls(name, width, options)


@dataclass(frozen=True)
class Traits:
    """What a network declares as attributes.

    Args:
        spatial_dims: 2 for slices (b, c, y, x), 3 for blocks (b, c, z, y, x).
        context: neighbouring slices seen on each side; a 2-D network of n image channels takes n * (2 * context + 1)
            channels, slice after slice from the lowest z, the image channels of a slice side by side.
        divisibility: every spatial side of the input must be a multiple of it.
    """

    spatial_dims: int
    context: int
    divisibility: int

    @classmethod
    def of(cls, module: nn.Module, name: str = "") -> Traits:
        """Read and check the declaration of ``module``.

        Raises:
            InputError: an attribute is absent or makes no sense.
        """
        name = name or type(module).__name__
        values = {}
        limits = {"spatial_dims": (2, 3), "context": (0, 64), "divisibility": (1, 1024)}
        for attribute, (lowest, highest) in limits.items():
            value = getattr(module, attribute, None)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise InputError(
                    f"network {name!r} does not declare {attribute}",
                    expected=f"an integer attribute from {lowest} to {highest}",
                    found=repr(value),
                    remedy=f"write for example `{attribute} = {lowest}` in the class body",
                )
            values[attribute] = value
        if values["spatial_dims"] == 3 and values["context"] != 0:
            raise InputError(
                f"network {name!r} is 3-D and declares neighbouring slices",
                expected="context = 0: its blocks hold them already",
                found=f"context = {values['context']}",
            )
        return cls(**values)

    def input_channels(self, channels: int) -> int:
        """Input channels for an image of ``channels`` channels."""
        return channels * (2 * self.context + 1)
