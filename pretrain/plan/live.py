"""Bytes that tensors hold while a step runs, on any device and on none.

On torch's meta device a tensor has a shape and a storage of a size, and no memory: running a step there, and
following when each storage is born and dies, gives the peak that the step would have, at any batch size, in
seconds and in no memory. What an allocator adds (rounding, fragments, workspaces of kernels) is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made inside it, on one kind of device, until they are freed."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self._see(leaf.untyped_storage())
        return out

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that were there before: results that share their storage cost nothing."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def _see(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known[storage] = True
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size
