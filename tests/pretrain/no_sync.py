"""A mode in which every operation fails that would make the host wait for a GPU.

Computed on the CPU, where nothing waits; the operations are the same. `torch.tensor(...)` counts, too: to a
GPU it is a copy from pageable memory, which waits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "histc",
)  # fmt: skip


class NoSync(TorchDispatchMode):
    """Raises where the host would wait; `index` with a boolean mask is `nonzero` in disguise."""

    def __enter__(self) -> NoSync:
        self._tensor = torch.tensor
        torch.tensor = _refused
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").split(".")[0]
        if name in WAITS:
            raise AssertionError(f"{name} makes the host wait for the device")
        if name in ("index", "index_put", "index_put_", "_unsafe_index"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise AssertionError(f"{name} with a mask makes the host wait for the device")
        if name == "repeat_interleave" and kwargs is not None and not isinstance(args[0], int):
            raise AssertionError("repeat_interleave with a tensor of repeats makes the host wait")
        return func(*args, **(kwargs or {}))


def _refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("torch.tensor copies from pageable memory, which makes the host wait for the device")
