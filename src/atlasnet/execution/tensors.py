"""Tensors on disk: safetensors, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atlasnet.execution.files import atomic_path

if TYPE_CHECKING:
    import torch


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, atomically.

    Args:
        path: the file.
        tensors: contiguous, on the CPU, no two sharing memory.
        metadata: texts for its header.

    Raises:
        OSError: it cannot be written, for one because the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        temporary.touch()  # with the mode that any new file gets; safetensors makes one for its owner alone
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # its name for whatever the system says
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(mode)
