"""Sine-cosine positions for a grid of any size and any number of axes.

Computed for the grid at hand instead of learnt: a volume of any crop size gets exact positions, nothing has
to be resampled, and the cost (N × E sines) is below a hundredth of one transformer block. The price is
that the network cannot learn where anatomy usually sits; random crops hide that anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sincos(grid: Sequence[int], dim: int, device: torch.device | str | None = None) -> Tensor:
    """Sine-cosine position embedding of a grid (MAE, arXiv 2111.06377, appendix A; MoCo v3 for 2D).

    Each of the A axes gets 2·F channels, F = dim // (2·A): sines, then cosines, of index / 10000^(i/F). What
    is left over (dim not divisible by 2·A) is zero.

    Args:
        grid: tokens along each axis, slice first.
        dim: channels E, at least 2·A.

    Returns:
        float32 [N, E], row-major over the grid.
    """
    axes = len(grid)
    per_axis = dim // (2 * axes)
    if per_axis == 0:
        raise ValueError(f"{dim} channels cannot hold the positions of {axes} axes: at least {2 * axes}")
    steps = torch.arange(per_axis, dtype=torch.float32, device=device) / per_axis
    frequency = torch.pow(torch.tensor(10000.0, dtype=torch.float32, device=device), -steps)
    index = [torch.arange(int(n), dtype=torch.float32, device=device) for n in grid]
    parts = []
    for axis in torch.meshgrid(*index, indexing="ij"):
        angle = axis.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    out = torch.zeros(parts[0].shape[0], dim, dtype=torch.float32, device=device)
    out[:, : 2 * axes * per_axis] = torch.cat(parts, dim=1).float()
    return out
