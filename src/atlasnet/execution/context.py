"""Where work runs and whom it tells: passed down explicitly, never kept globally."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlasnet.errors import Cancelled, InputError
from atlasnet.execution.control_groups import available_threads
from atlasnet.execution.memory import require_memory
from atlasnet.execution.plain import make_plain
from atlasnet.execution.reporter import Reporter, SilentReporter

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Place = tuple[int, tuple[int, ...], tuple[int, ...], str]


def _never() -> bool:
    return False


@contextmanager
def _full_precision() -> Iterator[None]:
    """Inside the block torch takes float32 products in float32."""
    import torch

    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process has used torch's newer switches, which that does not read
        products = torch.backends.cuda.matmul
        chosen, products.fp32_precision = products.fp32_precision, "ieee"
        try:
            yield
        finally:
            products.fp32_precision = chosen
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Execution:
    """Device, threads, seed and callbacks of one piece of work.

    Args:
        device: a torch device or its name, such as ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: CPU threads; by default `available_threads`. On the CPU, what networks
            give is a function of it, what the built-in registration gives is not.
        seed: the origin of every random number.
        reporter: follows the work.
        cancelled: asked between units of work, in the caller's thread; when it answers true, `Cancelled` is raised.
        check_memory: whether work is refused that, by its estimate, the memory does not suffice for.
    """

    device: str = "cpu"
    threads: int = field(default_factory=available_threads)
    seed: int = 0
    reporter: Reporter = field(default_factory=SilentReporter, repr=False)
    cancelled: Callable[[], bool] = field(default=_never, repr=False)
    check_memory: bool = True
    _kept: dict[Place, tuple[NDArray[Any], torch.Tensor]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "device", str(self.device))
        if not (isinstance(self.seed, int) and isinstance(self.threads, int)):
            raise InputError(
                "seed and threads must be whole numbers", found=f"seed={self.seed!r}, threads={self.threads!r}"
            )
        if isinstance(self.reporter, type):
            name = self.reporter.__name__
            raise InputError("the reporter is a class", found=name, remedy=f"make one of it: reporter={name}()")
        if self.seed < 0:
            raise InputError("the seed of random numbers must not be negative", found=str(self.seed))
        if self.threads < 1:
            raise InputError("the number of threads must be positive", found=str(self.threads))

    @classmethod
    def of(cls, given: Execution | None) -> Execution:
        """What a caller gave, or one of the defaults.

        Raises:
            InputError: it is something else, such as the name of a device.
        """
        if given is None:
            return cls()
        if not isinstance(given, cls):
            remedy = f"pass Execution(device={given!r})" if isinstance(given, str) else "pass an atlasnet Execution"
            raise InputError("that is no Execution", found=repr(given), remedy=remedy)
        return given

    def torch_device(self) -> torch.device:
        """The device, checked to exist and to compute in double precision.

        Raises:
            InputError: no such device is available here.
        """
        import torch

        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError) as error:  # which lists every kind of device there ever was
            raise InputError(
                f"device {self.device!r} cannot be used",
                expected="cpu, cuda (a GPU) or cuda:1 (the second one)",
                remedy="choose --device cpu or --device cuda",
            ) from error
        try:
            # The device "meta" holds no numbers, "mps" none in double precision.
            torch.ones(1, dtype=torch.float64, device=device).item()
        except (RuntimeError, TypeError, AssertionError, ImportError) as error:
            remedy = "choose --device cpu"
            if device.type != "mps":
                remedy += ", or install a build of PyTorch for the accelerator, and its driver"
            raise InputError(
                f"device {self.device!r} cannot be used", found=str(error).splitlines()[0], remedy=remedy
            ) from error
        return device

    def keeping(self, *arrays: NDArray[Any]) -> Execution:
        """The same, which moves an array to a GPU once, however often `tensor` is asked for it, and these at once.

        What it holds goes with it. The arrays must stay as they are meanwhile. On the CPU there is nothing to keep.
        """
        if self.torch_device().type == "cpu":
            return self
        kept = replace(self, _kept=dict(self._kept or {}))
        for array in arrays:
            kept.tensor(array)
        return kept

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """A tensor of an array, whatever its type and strides, on the device; not to be written to: it may be shared.

        Types that torch does not compute with become float32.
        """
        import numpy as np
        import torch

        place = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str)
        if self._kept is not None and place in self._kept:
            return self._kept[place][1]
        plain = array
        if array.dtype.byteorder not in "=|" or array.dtype in (np.uint16, np.uint32, np.uint64):
            plain = array.astype(np.float32)
        plain = np.ascontiguousarray(plain)  # and a copy where nobody may write: torch would warn of it
        tensor = torch.from_numpy(plain if plain.flags.writeable else plain.copy()).to(self.torch_device())
        if self._kept is not None:
            self._kept[place] = array, tensor  # with the array, whose memory is nobody else's so long
        return tensor

    @contextmanager
    def active(self) -> Iterator[torch.device]:
        """Give the device, with torch and SimpleITK held to ``threads`` threads inside the block.

        Matrix products of float32 are taken in float32 there, whatever the process has chosen: with the 10 bits of
        TensorFloat-32, which some containers switch on for every program, a coordinate of 300 voxels is off by a tenth.
        """
        import SimpleITK as sitk
        import torch

        device = self.torch_device()
        before, before_itk = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        torch.set_num_threads(self.threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(self.threads)
        try:
            with _full_precision():
                yield device
        finally:
            torch.set_num_threads(before)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before_itk)

    def require_memory(self, needed: float, remedy: str, path: Path | None = None) -> None:
        """See `atlasnet.execution.memory.require_memory`; nothing is asked without ``check_memory``."""
        if self.check_memory:
            require_memory(needed, remedy, path)

    def pause(self) -> None:
        """A safe point at which the work may be stopped.

        Raises:
            Cancelled: the caller asked for it.
        """
        if self.cancelled():
            raise Cancelled("stopped on request; the same call goes on from here")
