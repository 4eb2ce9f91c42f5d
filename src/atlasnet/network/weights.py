"""A network's weights on disk: safetensors, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from atlasnet.errors import InputError, ModelError
from atlasnet.execution import save_tensors
from atlasnet.network.registry import SEGNET, UNET, UNET_3D, build_network
from atlasnet.network.segnet import WIDEST as SEGNET_WIDEST
from atlasnet.network.spec import NetworkSpec
from atlasnet.network.unet import widest as unet_widest

_RECORD = "atlasnet"  # one entry only: safetensors does not fix the order of several, and equal runs give equal bytes
_CHECKSUM = "sha256"


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors, their checksum and a JSON-able record atomically; the same values give the same bytes."""
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({**record, _CHECKSUM: _checksum(whole)}, sort_keys=True, allow_nan=False)
    save_tensors(path, whole, {_RECORD: text})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        ModelError: the file is absent, damaged, or not one of AtlasNet's.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError("there are no network weights", path=path, remedy="train the model again, or copy it again")
    try:
        with safe_open(path, framework="pt") as stream:
            # Clones: the file is mapped into memory, and arithmetic may round differently on other alignments.
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118 - not a dict
            record = dict(json.loads((stream.metadata() or {})[_RECORD]))
        if _CHECKSUM in record and record.pop(_CHECKSUM) != _checksum(tensors):
            raise ValueError("the checksum differs")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(
            "the network weights cannot be read",
            path=path,
            expected="a safetensors file written by atlasnet",
            found=f"{type(error).__name__}: {error}",
            remedy="copy the model again",
        ) from error
    return tensors, record


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        state.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        state.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def load_weights(path: str | Path, module: nn.Module) -> nn.Module:
    """Fill ``module`` with the weights in ``path``, ready for inference.

    Raises:
        ModelError: the file cannot be read, or holds the weights of another architecture.
    """
    return _filled(module, read_tensors(path)[0], path)


def _filled(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """The module with these weights, which lie in ``path``."""
    _check_fit(path, module, tensors)
    module.load_state_dict(dict(tensors))
    module.eval()
    return channels_last(module)


def load_network(
    spec: NetworkSpec, channels: int, classes: int, path: str | Path, *, allow_module: bool = False
) -> nn.Module:
    """Build a network and fill it with the weights in ``path``, ready for inference.

    No network that is much larger than its weights is built: memory is set aside for what is there, not for what a
    file says.

    Raises:
        ModelError: as `load_weights`, or the network cannot be built, see `build_network`.
    """
    tensors, _ = read_tensors(path)
    try:
        fewest, found = _fewest_weights(spec), sum(tensor.numel() for tensor in tensors.values())
        if found < fewest:
            raise ModelError(
                "the weights are those of another network",
                path=path,
                expected=f"at least {fewest:.6g} numbers",
                found=f"{found}",
                remedy="use the network options that the model was trained with",
            )
        module = build_network(spec, channels, classes, allow_module=allow_module)
    except ModelError:
        raise
    except InputError as error:
        raise ModelError(f"the network of these weights cannot be built: {error}", path=path) from error
    return _filled(module, tensors, path)


def _fewest_weights(spec: NetworkSpec) -> float:
    """The weights of the largest convolution of a built-in network, a tenth or more of all; 0 where that is unknown."""
    depth, kernel = spec.options.get("depth", 3), 27 if spec.name == UNET_3D else 9
    if spec.name == SEGNET:
        channels = spec.width * SEGNET_WIDEST
    elif spec.name in (UNET, UNET_3D) and isinstance(depth, int) and 0 < depth <= 8:
        channels = spec.width * unet_widest(depth)
    else:
        return 0.0  # what `build_network` refuses, or only the user may ask for
    return kernel * (channels - 1) * (channels - 1) if channels > 1 else 0.0


def _check_fit(path: str | Path, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = module.state_dict()
    differing = sorted(own.keys() ^ tensors.keys()) + sorted(
        name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
    )
    if differing:
        raise ModelError(
            "the weights are those of another network",
            path=path,
            found=f"{len(differing)} tensors differ in name or shape, the first is {differing[0]!r}",
            remedy="use the network options that the model was trained with",
        )


def channels_last(module: nn.Module) -> nn.Module:
    """Lay convolution kernels out channels last: convolutions run about twice as fast so, on CPU and GPU alike."""
    for parameter in module.parameters():
        parameter.data = tensor_channels_last(parameter.data)
    return module


def tensor_channels_last(tensor: Tensor) -> Tensor:
    """Lay a tensor out channels last, (b, c, y, x) or (b, c, z, y, x); others as they are."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    if layout is None:
        return tensor
    laid = tensor.contiguous(memory_format=layout)
    if tensor.shape[1] == 1:
        # Of one channel both layouts are one, and torch takes it for the other one: what follows would have that too.
        laid = laid.as_strided(laid.shape, torch.empty(laid.shape, device="meta", memory_format=layout).stride())
    return laid
