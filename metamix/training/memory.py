"""Measure the memory of the tensors in a computation, and choose how much of a batch fits."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Count the bytes of all tensors that are created within this context, including backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0  # the largest number of bytes at one time, without scratch memory inside single operations
        self._bytes: dict[int, int] = {}  # size of each live storage, by its address
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in before and address not in self._bytes:
                self._bytes[address] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._remove, address)
        return result

    def _remove(self, address: int) -> None:
        self._now -= self._bytes.pop(address)


def largest_part(share: int, memory: Callable[[int], float], free: float) -> int:
    """Halve `share` until `memory(share)` is at most `free` bytes; return 0 if one sample needs more than that."""
    while share > 1 and memory(share) > free:
        share = -(-share // 2)
    return share if memory(share) <= free else 0
