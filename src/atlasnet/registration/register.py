"""Choosing an operator by name, and registering two volumes in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from atlasnet.errors import InputError, TransformError
from atlasnet.execution import Execution
from atlasnet.registration.affine import AffineSettings
from atlasnet.registration.external import ExternalSettings
from atlasnet.registration.external_packages import EXTERNAL
from atlasnet.registration.field_types import with_field_types
from atlasnet.registration.linear import AffineOperator, CentreOperator, IdentityOperator
from atlasnet.registration.mrf import MRFOperator
from atlasnet.registration.operator import Operator, Registration, contextual
from atlasnet.registration.settings import MRFSettings
from atlasnet.transform import Transform
from atlasnet.volume import Volume, canonical, read_labels, read_volume
from atlasnet.volume.volume import require_volume

OPERATORS = ("mrf", "affine", "centre", "identity", *EXTERNAL)
WITHOUT_SPACING = ("affine", "centre", "identity")
"""Operators that do not work on a grid of their own."""

WITHOUT_SETTINGS = {"centre": CentreOperator, "identity": IdentityOperator}
"""Operators that register nothing: they do not look at the images."""

_WITH_SETTINGS: Mapping[str, tuple[Callable[[Any], Operator], Any]] = {
    "mrf": (MRFOperator, MRFSettings),
    "affine": (AffineOperator, AffineSettings),
    **{name: (operator, ExternalSettings) for name, operator in EXTERNAL.items()},
}


def make_operator(name: str = "mrf", **settings: Any) -> Operator:
    """The operator of that name.

    Args:
        name: ``mrf`` (`MRFSettings`), ``affine`` (`AffineSettings`), ``centre`` and ``identity`` (none), or, with the
            package of that name installed, ``ants``, ``elastix``, ``greedy`` (`ExternalSettings`).
        settings: fields of its settings; ``make_operator(operator.name, **operator.settings())`` is that operator
            again.

    Raises:
        InputError: there is no such operator, it has no such setting, or its package is not installed.
    """
    if name in WITHOUT_SETTINGS:
        if settings:
            raise InputError(f"operator {name!r} has no settings", found=", ".join(settings))
        return WITHOUT_SETTINGS[name]()
    if name in _WITH_SETTINGS:
        operator, kind = _WITH_SETTINGS[name]
        known = [field.name for field in fields(kind)]
        if unknown := sorted(set(settings) - set(known)):
            raise InputError(
                f"operator {name!r} does not take these settings", expected=", ".join(known), found=", ".join(unknown)
            )
        try:
            return operator(with_field_types(kind(**settings)))
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"operator {name!r} does not take these settings", found=str(error)[:200]) from error
    raise InputError("no such registration operator", expected=" or ".join(OPERATORS), found=repr(name))


def register_images(
    source: Volume | str | Path,
    target: Volume | str | Path,
    *,
    operator: Operator | str = "mrf",
    source_mask: Volume | str | Path | None = None,
    target_mask: Volume | str | Path | None = None,
    initial: Transform | None = None,
    source_labels: Volume | str | Path | None = None,
    target_labels: Volume | str | Path | None = None,
    execution: Execution | None = None,
) -> Registration:
    """Register one source onto one target.

        result = register_images(ct, atlas)
        mapped = result.transform.warp(ct, atlas.grid)
        back = result.transform.inverse.warp(atlas_labels, ct.grid, interpolation="label")

    Args:
        source: (c, z, y, x), any orientation; a path is read, as by `read_volume`, also that of a mask or labels.
        target: with as many channels.
        operator: an operator or its name, with its default settings.
        source_mask: on the source's grid, non-zero where voxels count.
        target_mask: on the target's grid, likewise.
        initial: a map to start from instead of the operator's own start.
        source_labels: (1, z, y, x) on the source's grid: which tissue is where, for an operator whose metric weights
            depend on it; see `MRFOperator.register`.
        target_labels: likewise on the target's grid, used without the others.
        execution: device, threads, seed, progress; by default all CPU threads.

    Raises:
        VolumeError: images, masks or labels that do not fit each other, or cannot be read.
        InputError: there is no such operator, or labels are given to one to which they say nothing.
        TransformError: ``initial`` is no `Transform`.
        RegistrationError: no acceptable map was found.
    """
    source, target = _image(source, "the source"), _image(target, "the target")
    masks = [_labels(mask, f"the {of}'s mask") for of, mask in (("source", source_mask), ("target", target_mask))]
    chosen = make_operator(operator) if isinstance(operator, str) else _operator(operator)
    labels: dict[str, Any] = {}
    if contextual(chosen):
        labels = {
            "source_labels": _upright(_labels(source_labels, "the source's label map")),
            "target_labels": [_upright(_labels(target_labels, "the target's label map"))],
        }
    elif source_labels is not None or target_labels is not None:
        raise InputError(
            "labels say nothing to a registration whose metric weights do not depend on the tissue",
            found=f"operator {chosen.name!r}",
            remedy="leave them out, or give it weights that atlasnet learn-metrics wrote",
        )
    if not isinstance(initial, Transform | None):
        raise TransformError(
            "the map to start from is not given as a Transform",
            found=type(initial).__name__,
            remedy="read a file with atlasnet.transform.read_transform, which returns it first",
        )
    (result,) = chosen.register(
        canonical(source)[0],
        [canonical(target)[0]],
        source_mask=_upright(masks[0]),
        target_masks=[_upright(masks[1])],
        initial=[initial],
        **labels,
        execution=Execution.of(execution),
    )
    return result


def _operator(operator: Operator) -> Operator:
    """The operator, refused where it is the class of one, or something else."""
    if isinstance(operator, type) or not callable(getattr(operator, "register", None)):
        raise InputError(
            "the operator is no registration operator",
            expected="a name, or an object with the methods of atlasnet.registration.Operator",
            found=f"the class {operator.__name__}" if isinstance(operator, type) else type(operator).__name__,
            remedy=f"make one of it: operator={operator.__name__}()" if isinstance(operator, type) else None,
        )
    return operator


def _image(image: Volume | str | Path, what: str) -> Volume:
    """The image, read where it is a path."""
    require_volume(image, what, path=True)
    return image if isinstance(image, Volume) else read_volume(image)


def _labels(labels: Volume | str | Path | None, what: str) -> Volume | None:
    """The same of a mask or label map, if there is one."""
    if labels is None:
        return None
    require_volume(labels, what, path=True)
    return labels if isinstance(labels, Volume) else read_labels(labels)


def _upright(volume: Volume | None) -> Volume | None:
    """As every orientation of it is stored: lattices of control points begin where the arrays do."""
    return None if volume is None else canonical(volume)[0]
