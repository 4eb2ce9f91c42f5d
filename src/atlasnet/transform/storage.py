"""Transforms on disk: safetensors for the numbers, JSON in its header for what they are. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from atlasnet.errors import TransformError, VolumeError
from atlasnet.execution import save_tensors
from atlasnet.transform.maps import AffineMap, BSplineMap, CompositeMap, DisplacementMap, PointMap
from atlasnet.volume.grid import Grid

FORMAT = "atlasnet transform 1"
_REMEDY = "register again, or give a transform.safetensors that atlasnet wrote"


def save_maps(path: str | Path, maps: Mapping[str, PointMap], residual: Mapping[str, Mapping[str, float]]) -> None:
    """Write named point maps and the residual between them, atomically.

    The safetensors header holds one entry, ``atlasnet``: JSON with the format's name, a description of every map, and
    the SHA-256 of all of it including the tensors. The same maps give the same bytes.

    Raises:
        TransformError: a map is of a kind that has no stored form.
    """
    tensors: dict[str, Tensor] = {}
    described = {name: _describe(point_map, name, tensors) for name, point_map in maps.items()}
    content = {"format": FORMAT, "maps": described, "residual": {k: dict(v) for k, v in residual.items()}}
    header = {"atlasnet": json.dumps({**content, "sha256": _checksum(content, tensors)}, allow_nan=False)}
    save_tensors(path, tensors, header)


def load_maps(path: str | Path) -> tuple[dict[str, PointMap], dict[str, dict[str, float]]]:
    """Read what `save_maps` wrote: the maps by name, and the residual.

    Raises:
        TransformError: the file is absent, damaged, or not such a transform.
    """
    if not Path(path).is_file():
        raise TransformError("there is no such file", path=path, remedy=_REMEDY)
    try:
        with safe_open(str(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
        content = json.loads(metadata["atlasnet"])
        if content["format"] != FORMAT:
            raise TransformError(
                "the transform has another format",
                path=path,
                expected=FORMAT,
                found=str(content["format"]),
                remedy=_REMEDY,
            )
        if content.pop("sha256") != _checksum(content, tensors):
            raise TransformError("the transform is damaged: its checksum does not match", path=path, remedy=_REMEDY)
        maps = {name: _rebuild(description, tensors) for name, description in content["maps"].items()}
        if set(maps) != {"forward", "backward"}:
            raise KeyError("forward and backward")
        return maps, content["residual"]
    except (
        SafetensorError,
        VolumeError,
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TransformError(
            "this is not a readable transform",
            path=path,
            expected=f"a safetensors file, {FORMAT}",
            found=str(error),
            remedy=_REMEDY,
        ) from error


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    for name in sorted(tensors):
        state.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        state.update(tensors[name].numpy().data.cast("B"))
    return state.hexdigest()


def _describe(point_map: PointMap, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the map's numbers into ``tensors`` under names that start with ``name`` and describe it."""
    if isinstance(point_map, AffineMap):
        tensors[name] = torch.from_numpy(point_map.matrix.copy())
        return {"kind": "affine", "tensor": name}
    if isinstance(point_map, DisplacementMap | BSplineMap):
        kind, field = (
            ("displacement", point_map.displacement)
            if isinstance(point_map, DisplacementMap)
            else ("bspline", point_map.coefficients)
        )
        # A copy, because two maps may share one field and safetensors stores no shared memory.
        tensors[name] = field.detach().to("cpu", copy=True)
        tensors[f"{name}.grid"] = torch.from_numpy(point_map.grid.affine.copy())
        return {"kind": kind, "tensor": name, "grid": f"{name}.grid"}
    if isinstance(point_map, CompositeMap):
        parts = [_describe(part, f"{name}.{i}", tensors) for i, part in enumerate(point_map.parts)]
        return {"kind": "composite", "parts": parts}
    raise TransformError(
        f"a map of the kind {type(point_map).__name__} has no stored form",
        expected="affine, displacement, B-spline or a composite of them",
        remedy="sample it on a grid first (displacement_on)",
    )


def _rebuild(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PointMap:
    kind = description["kind"]
    if kind == "composite":
        return CompositeMap(tuple(_rebuild(part, tensors) for part in description["parts"]))
    numbers = tensors[description["tensor"]]
    if kind == "affine":
        return AffineMap(numbers.numpy())
    z, y, x = numbers.shape[1:]
    grid = Grid((z, y, x), tensors[description["grid"]].numpy())
    if kind == "displacement":
        return DisplacementMap(numbers, grid)
    if kind == "bspline":
        return BSplineMap(numbers, grid)
    raise ValueError(f"unknown kind of map: {kind}")
