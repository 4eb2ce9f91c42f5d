"""From a name to a network: the built-in ones, registered ones, and a user's own by import path."""

from __future__ import annotations

import importlib
import inspect
import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from atlasnet.errors import InputError
from atlasnet.execution.files import digest, file_digest
from atlasnet.network.segnet import SegNet
from atlasnet.network.spec import NetworkSpec, Traits
from atlasnet.network.unet import UNet, UNet3D
from atlasnet.wording import counted

Builder = Callable[..., nn.Module]

UNET, UNET_3D, SEGNET = "unet", "unet3d", "segnet"
_OWN: dict[str, Builder] = {UNET: UNet, UNET_3D: UNet3D, SEGNET: SegNet}
_BUILDERS = dict(_OWN)
_PROBE_SIDE = 32


def register_network(name: str, builder: Builder) -> None:
    """Make ``builder`` available under ``name``.

    It is called as ``builder(channels=..., classes=..., **options)``, with ``width`` too when it has such an argument,
    and returns a module with the attributes of `Traits`. ``channels`` counts the channels of the image: a module that
    sees ``context`` neighbouring slices takes ``channels * (2 * context + 1)`` input channels. A class or function that
    is defined again, as by a cell of a notebook that is run again, takes the place of the one before.

    Raises:
        InputError: another builder has the name, or it is empty, or looks like an import path.
    """
    if not name or ":" in name:
        raise InputError("a network cannot have this name", expected="a word without a colon", found=repr(name))
    if name in _BUILDERS and _definition(_BUILDERS[name]) != _definition(builder):
        raise InputError("a network of this name exists already", found=repr(name), remedy="choose another name")
    _BUILDERS[name] = builder


def _definition(builder: Builder) -> tuple[str, str]:
    """Where a builder is defined: the module, and the name in it."""
    named = builder if hasattr(builder, "__qualname__") else type(builder)
    return named.__module__, named.__qualname__


def network_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_BUILDERS))


def build_network(spec: NetworkSpec, channels: int, classes: int, *, allow_module: bool = False) -> nn.Module:
    """Build the network with fresh weights, drawn from torch's random generator.

    Args:
        spec: which one.
        channels: channels of the image.
        classes: classes, background included.
        allow_module: whether ``"module:Class"`` may be imported. Set it only when the user, not a file, asked for it.

    Raises:
        InputError: the name is unknown or not allowed, the module cannot be imported or built, it does not declare
            what `Traits` asks for, or its output has not the shape that it should have.
    """
    if channels < 1 or classes < 2:
        raise InputError(
            "a network needs an image channel and two classes",
            expected="channels >= 1 and classes >= 2",
            found=f"{counted(channels, 'channel')}, {classes} classes",
        )
    builder = _builder(spec.name, allow_module)
    arguments: dict[str, Any] = {**spec.options, "channels": channels, "classes": classes}
    if _accepts(builder, "width"):
        arguments["width"] = spec.width
    elif spec.width != 1:
        raise InputError(f"network {spec.name!r} has no width", expected="width 1", found=f"width {spec.width:g}")
    try:
        module = builder(**arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"network {spec.name!r} cannot be built",
            expected="a callable with the arguments " + ", ".join(sorted(arguments))[:200],
            found=f"{type(error).__name__}: {error}"[:300],
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"network {spec.name!r} is not a torch.nn.Module", found=type(module).__name__)
    traits = Traits.of(module, spec.name)
    if builder not in _OWN.values():
        _probe(module, traits, spec.name, channels, classes)
    return module


def _builder(name: str, allow_module: bool) -> Builder:
    if not isinstance(name, str):
        raise InputError(
            "a network is asked for by its name",
            found=repr(name)[:200],
            remedy="give it one with atlasnet.network.register_network(name, builder)",
        )
    if name in _BUILDERS:
        return _BUILDERS[name]
    if ":" not in name:
        raise InputError(
            f"unknown network {name!r}", expected=", ".join(network_names()) + " or an import path module:Class"
        )
    if not allow_module:
        raise InputError(
            f"network {name!r} is code outside AtlasNet, and a model never chooses code",
            remedy="add --allow-module (allow_module=True) if you trust that module",
        )
    path, _, attribute = name.partition(":")
    try:
        builder = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"network {name!r} cannot be imported",
            expected="an importable module and a name in it",
            found=str(error),
            remedy="run where `python -c 'import MODULE'` works, or set PYTHONPATH",
        ) from error
    if not callable(builder):
        raise InputError(f"network {name!r} cannot be called", expected="a class or function", found=repr(builder))
    found: Builder = builder
    return found


def code_digest(name: str, *, allow_module: bool = False) -> str | None:
    """A hash of the file, or the cell of a notebook, that defines a network of one's own.

    None of a built-in one, or where its code is not to be found.

    Raises:
        InputError: as `build_network`, for the name.
    """
    builder = _builder(name, allow_module)
    if _OWN.get(name) is builder:
        return None
    try:
        return file_digest(inspect.getfile(builder))
    except (TypeError, OSError):  # of an interactive session, or an object that is called
        return _cells_digest(builder)


def _cells_digest(builder: Builder) -> str | None:
    """A hash of the text that the functions of a builder were read from where that is no file; None where it is gone.

    A class knows no file then, but its methods know their cell, whose text IPython keeps.
    """
    functions = filter(inspect.isfunction, (builder, *getattr(builder, "__dict__", {}).values()))
    cells = {function.__code__.co_filename for function in functions}
    texts = [text for cell in sorted(cells) if (text := "".join(linecache.getlines(cell)))]
    return digest(sorted(texts)) if texts else None


def _accepts(builder: Builder, argument: str) -> bool:
    parameters = inspect.signature(builder).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _probe(module: nn.Module, traits: Traits, name: str, channels: int, classes: int) -> None:
    """Run once on an empty input, so that a wrong module is found before hours of training."""
    side = max(2, -(-_PROBE_SIDE // traits.divisibility)) * traits.divisibility
    shape = (1, traits.input_channels(channels), *[side] * traits.spatial_dims)
    expected = (1, classes, *shape[2:])
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            output = module(torch.zeros(shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"network {name!r} fails on an input of shape {shape}",
            expected=f"logits of shape {expected}",
            found=f"{type(error).__name__}: {error}",
            remedy="compare its input channels with channels * (2 * context + 1)",
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(output, torch.Tensor) or tuple(output.shape) != expected:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise InputError(
            f"network {name!r} answers an input of shape {shape} wrongly",
            expected=f"logits of shape {expected}",
            found=str(found),
        )
