"""A second device without the hardware: its tensors lie in host memory, and torch's rules about devices hold.

Inside `OtherDevice`, tensors that are made on or moved to ``DEVICE`` carry a mark, and whatever is computed from them
carries it too. What torch refuses on a GPU is refused here: operations on tensors of both devices, and NumPy's view of
a tensor that is not in host memory. What makes the host wait for a GPU is counted. Numbers are those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("xpu", 0)  # of which the package knows nothing in particular
_MARK = "_elsewhere"
_WAITING = {"item", "tolist", "__float__", "__int__", "__bool__", "__index__", "nonzero", "unique", "bincount"}
_COPIES = {"copy_", "__setitem__", "to", "type_as", "_has_compatible_shallow_copy_type"}  # between devices
_NUMPY = {"numpy", "__array__"}
_ONE_DEVICE = {"stack", "cat"}  # even of numbers; elsewhere those of the CPU may join


class OtherDevice(TorchFunctionMode):
    """Makes ``DEVICE`` a device; ``waits`` counts what makes the host wait for it, by the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._generator = torch.Generator

    def __enter__(self) -> OtherDevice:
        plain = self._generator

        class Generator(plain):  # type: ignore[misc, valid-type] # the class as torch has it
            def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
                return plain("cpu" if torch.device(device).type == DEVICE.type else device)

        torch.Generator = Generator  # type: ignore[misc] # torch has no hook for it
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.Generator = self._generator  # type: ignore[misc] # as it was

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        marked = [is_there(tensor) for tensor in given]
        if name == "__get__" and resolve_name(func) == "torch.Tensor.device.__get__":
            return DEVICE if marked[0] else func(*args, **kwargs)
        if name == "__set__":
            if resolve_name(func) == "torch.Tensor.data.__set__":
                _mark(args[0], is_there(args[1]))
            return func(*args, **kwargs)
        self._check(name, args, given, marked)
        there = any(marked)
        if name in ("to", "cpu", "type_as", "new_tensor") or "device" in kwargs:
            args, kwargs, wanted = _placed(name, args, kwargs)
            moved = wanted is not None and wanted != there
            there = there if wanted is None else wanted
            if moved and name in ("to", "cpu", "type_as"):
                if name == "cpu" or not kwargs.get("non_blocking"):
                    self.waits[name] += 1
                args = (args[0].clone(), *args[1:])
        result = func(*args, **kwargs)
        if name == "__iter__":
            result = list(result)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not any(leaf is one for one in given):
                _mark(leaf, there)
        return iter(result) if name == "__iter__" else result

    def _check(self, name: str, args: Sequence[Any], given: Sequence[Tensor], marked: Sequence[bool]) -> None:
        if not any(marked):
            return
        if name in _NUMPY:
            raise TypeError(f"cannot convert a tensor on {DEVICE} to NumPy: copy it to host memory first")
        indexing = name in ("__getitem__", "__setitem__")
        masks = indexing and any(i.dtype == torch.bool for i in tree_leaves(args[1]) if isinstance(i, Tensor))
        if name in _WAITING or masks:
            self.waits[name] += 1
        if name in _COPIES or (indexing and marked[0]):  # an index may lie on the CPU
            return
        free = [tensor.ndim == 0 and name not in _ONE_DEVICE for tensor in given]
        if not all(there or number for there, number in zip(marked, free, strict=True)):
            places = ", ".join(
                f"{tuple(tensor.shape)} on {DEVICE if there else 'cpu'}"
                for tensor, there in zip(given, marked, strict=True)
            )
            raise RuntimeError(f"{name} of tensors on two devices: {places}")


def is_there(tensor: Tensor) -> bool:
    """Whether a tensor lies on ``DEVICE``."""
    return bool(tensor.__dict__.get(_MARK))


def _mark(tensor: Tensor, there: bool) -> None:
    tensor.__dict__[_MARK] = there


def _placed(
    name: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[Sequence[Any], dict[str, Any], bool | None]:
    """The arguments with the CPU for every device, and whether ``DEVICE`` is asked for, None if nothing is."""
    cpu = torch.device("cpu")
    if name == "cpu":
        return args, kwargs, False
    if kwargs.get("device") is not None:
        return args, {**kwargs, "device": cpu}, torch.device(kwargs["device"]).type == DEVICE.type
    if name in ("to", "type_as") and isinstance(args[1], Tensor):
        return (args[0], args[1].dtype, *args[2:]), kwargs, is_there(args[1])
    if name == "to" and isinstance(args[1], torch.device | str):
        return (args[0], cpu, *args[2:]), kwargs, torch.device(args[1]).type == DEVICE.type
    return args, kwargs, None
