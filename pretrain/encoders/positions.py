"""Positions for a grid of any size and any number of axes: sine-cosine vectors and rotations.

Computed for the grid at hand instead of learnt: a volume of any crop size gets exact positions, nothing has
to be resampled, and the cost (N × E sines) is below a hundredth of one transformer block. The price is
that the network cannot learn where anatomy usually sits; random crops hide that anyway.

Sine-cosine vectors are added to the tokens once; rotations turn queries and keys in every block, so that
attention depends on how far two tokens lie apart and not on where they lie.
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
    per_axis = dim // (2 * len(grid))
    if per_axis == 0:
        raise ValueError(f"{dim} channels cannot hold the positions of {len(grid)} axes: "
                         f"at least {2 * len(grid)}")  # fmt: skip
    parts = []
    for angle in _angles(grid, per_axis, 10000.0, device):
        parts += [angle.sin(), angle.cos()]
    left = dim - 2 * len(grid) * per_axis
    return torch.cat([*parts, parts[0].new_zeros(parts[0].shape[0], left)], dim=1)


def rotations(
    grid: Sequence[int], dim: int, base: float = 100.0, device: torch.device | str | None = None
) -> Tensor:
    """Axial rotary positions of a grid (RoPE, arXiv 2104.09864; axial as in arXiv 2403.13298, section 3.1).

    Each of the A axes turns F = dim // (2·A) pairs of channels by index / base^(i/F); an axis of length 1
    turns nothing, and neither do the channels left over.

    Args:
        grid: tokens along each axis, slice first.
        dim: channels of one head, even and at least 2·A.
        base: the slowest wave is 2π·base tokens long; 100 as in arXiv 2403.13298, since grids are short.

    Returns:
        float32 [N, dim], row-major: sines of the dim/2 angles, then their cosines. For `rotate`.
    """
    per_axis = dim // (2 * len(grid))
    if per_axis == 0 or dim % 2:
        raise ValueError(f"a head of {dim} channels cannot turn with {len(grid)} axes: "
                         f"an even number of at least {2 * len(grid)}")  # fmt: skip
    angles = torch.cat(_angles(grid, per_axis, base, device), dim=1)
    still = angles.new_zeros(angles.shape[0], dim // 2 - angles.shape[1])
    angles = torch.cat([angles, still], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys [..., N, d] by a table of `rotations` [..., N, d], which broadcasts; in float32.

    Channel i and channel i + d/2 are the two coordinates of pair i.
    """
    sine, cosine = table.chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)


def _angles(grid: Sequence[int], count: int, base: float, device: torch.device | str | None) -> list[Tensor]:
    """index · base^(-i/count) for each axis, float32 [N, count] each."""
    frequency = torch.pow(base, -torch.arange(count, dtype=torch.float32, device=device) / count)
    index = [torch.arange(int(n), dtype=torch.float32, device=device) for n in grid]
    return [axis.reshape(-1, 1) * frequency for axis in torch.meshgrid(*index, indexing="ij")]
