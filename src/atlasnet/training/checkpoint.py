"""Checkpoints: two generations of weights and optimiser state, each either whole or not there."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atlasnet.errors import ModelError
from atlasnet.execution import file_digest, read_json, write_json
from atlasnet.network.weights import read_tensors, write_tensors

_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{6})\.json")


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Args:
        epoch: epochs done.
        log: the row of each of them.
        scaler: state of the gradient scaler of float16 training, else empty.
    """

    epoch: int
    log: list[dict[str, float]]
    scaler: dict[str, Any]


def save_checkpoint(
    folder: Path, key: str, module: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the state after ``progress.epoch`` epochs and remove all but the newest two generations."""
    tensors = {f"weights/{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    path = folder / f"checkpoint-{progress.epoch:06d}.safetensors"
    write_tensors(path, tensors, {"key": key})
    # Only the JSON makes the tensors count, so a kill between the two leaves the previous generation in force.
    write_json(
        path.with_suffix(".json"),
        {
            "key": key,
            "epoch": progress.epoch,
            "sha256": file_digest(path),
            "log": progress.log,
            "scaler": progress.scaler,
        },
    )
    for old in _generations(folder)[_KEPT:]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, key: str, module: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[Progress | None, list[str]]:
    """Restore the newest whole checkpoint of the training ``key``; others are passed over.

    Returns:
        Where it stands, or None to start anew; and a sentence on each checkpoint that was damaged.
    """
    damaged = []
    for path in _generations(folder):
        try:
            content = read_json(path)
            if content["key"] != key:
                continue
            tensors_path = path.with_suffix(".safetensors")
            if file_digest(tensors_path) != content["sha256"]:
                raise ValueError("the checksum differs")
            tensors, _ = read_tensors(tensors_path)
            progress = Progress(int(content["epoch"]), list(content["log"]), dict(content["scaler"]))
            _restore(tensors, module, optimiser)
        except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
            damaged.append(f"{path.name} cannot be used ({error}); an earlier state is taken")
            continue
        return progress, damaged
    return None, damaged


def remove_checkpoints(folder: Path) -> None:
    """Remove every generation, and what a kill left half written."""
    for path in folder.glob("checkpoint-*"):
        path.unlink()
    remove_remains(folder)


def remove_remains(folder: Path) -> None:
    """Remove the temporary folders of writes that a kill interrupted, and tensors without their JSON."""
    for pattern in (".checkpoint-*", ".epoch-*", ".network.safetensors.*", ".log.csv.*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("checkpoint-*.safetensors"):
        if not path.with_suffix(".json").is_file():
            path.unlink()


def _generations(folder: Path) -> list[Path]:
    """The JSON files, newest first."""
    return sorted((path for path in folder.glob("checkpoint-*.json") if _NAME.fullmatch(path.name)), reverse=True)


def _restore(tensors: dict[str, Tensor], module: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser/"):
            _, index, entry = name.split("/", 2)
            state.setdefault(int(index), {})[entry] = tensor
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    # The layout in memory decides which loop does the arithmetic, and with it the last bit.
    for parameter, entries in optimiser.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                laid_out = torch.empty_like(parameter, dtype=value.dtype)
                entries[name] = laid_out.copy_(value)
