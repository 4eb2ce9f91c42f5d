"""Settings that come from a file: every plain field has the type that it states, and a size that a machine can bear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

from atlasnet.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

# Work and memory grow with powers of these; a model that somebody else made may state any number.
LARGEST = {"radius": 32, "refinements": 1000, "iterations": 100_000, "turn_count": 18, "candidates": 10_000}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < 2**53


_TYPES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "float | None": (lambda value: value is None or _is_number(value), "a number or null"),
    "str": (lambda value: isinstance(value, str), "a text"),
}


def with_field_types(settings: T) -> T:
    """``settings`` themselves, if every bool, number and text in them, also in those that they hold, is one.

    Raises:
        InputError: a field has another type, or is larger than makes sense.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        sound, expected = _TYPES.get(str(field.type), (lambda _: True, ""))
        most = LARGEST.get(field.name, math.inf)
        if not sound(value) or (_is_number(value) and value > most):
            limit = f" up to {most}" if math.isfinite(most) else ""
            raise InputError(
                f"registration setting {field.name} cannot be used", expected=expected + limit, found=repr(value)[:80]
            )
        for inner in value if isinstance(value, tuple) else (value,):
            if hasattr(inner, "__dataclass_fields__"):
                with_field_types(inner)
    return settings
