"""The precision of losses: float32 at least, and no autocast, which would round their products."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays as it is, for comparisons with exact formulas."""
    return x if x.dtype == torch.float64 else x.float()


def exact(x: Tensor) -> torch.autocast:
    """A context in which products on the device of x are not rounded."""
    return torch.autocast(x.device.type, enabled=False)
