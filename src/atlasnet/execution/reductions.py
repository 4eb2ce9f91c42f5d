"""Sums and matrix products on a CPU whose last bits do not depend on the number of threads.

Floating-point addition depends on its order, and torch's order on how many threads share the work. An iterative search
makes millimetres of such a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Values that one thread adds up. Of as few, torch does not make two threads' work.
CHUNK = 1 << 14


def ordered_sum(values: Tensor, *, kept: int = 0) -> Tensor:
    """The sum over all axes but the first ``kept``, in the type of ``values``.

    Chunks of a fixed size are added up, each by one thread, then their sums.
    """
    flat = values.flatten(kept) if values.ndim > kept else values[..., None]
    count = flat.shape[-1]
    if count <= CHUNK or flat.device.type != "cpu":
        return flat.sum(-1)
    whole = count - count % CHUNK
    chunks = flat[..., :whole].reshape(*flat.shape[:-1], -1, CHUNK).sum(-1)
    return ordered_sum(torch.cat([chunks, flat[..., whole:].sum(-1, keepdim=True)], -1), kept=kept)


def batched_product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products (b, m, n) of matrices (b, m, k) and (b, k, n), on no more threads than there are products.

    A product that several threads share is cut at places that depend on their number, and along the cuts its numbers
    come from other code, which adds in another order. A thread that has products enough of its own cuts none.
    """
    left, right = _in_rows(left), _in_rows(right)
    threads, products = torch.get_num_threads(), len(left)
    if threads <= products or left.device.type != "cpu":
        return torch.bmm(left, right)
    with _threads(max(1, products)):
        return torch.bmm(left, right)


def _in_rows(matrices: Tensor) -> Tensor:
    """The same matrices (b, m, n) with rows or columns in one piece: of others torch takes one product after the other,
    each shared by all threads.
    """
    return matrices if 1 in matrices.stride()[1:] else matrices.contiguous()


def on_one_thread(small: bool) -> AbstractContextManager[None]:
    """Compute on one thread inside the block if the work is small.

    `batched_product` asks for as few threads as it has products, again and again; each time torch ends the others and
    begins them anew, which on many cores takes longer than small products do.
    """
    return _threads(1) if small and torch.get_num_threads() > 1 else nullcontext()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
