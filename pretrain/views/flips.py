"""Mirror images: exact, along any spatial axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .boxes import whole
from .draw import draw
from .separable import pick


def flip(x: Tensor, which: Tensor) -> Tensor:
    """Mirror sample b of x [B, C, ...] along spatial axis a where `which` [B, n] is true. Exact."""
    return pick(x, whole(x), x.shape[2:], which)


def flip_draws(
    x: Tensor, seed: int, positions: Tensor, probability: float, axes: Sequence[int], stream: str
) -> Tensor:
    """bool [B, n]: which of `axes` (spatial, 0 or -n is the first) to mirror, each with this probability."""
    n = x.ndim - 2
    allowed = {axis % n for axis in axes}
    which = draw(x, seed, stream, positions, n).u < probability
    never = torch.zeros_like(which[:, 0])
    return torch.stack([which[:, axis] if axis in allowed else never for axis in range(n)], dim=1)


def random_flip(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    probability: float = 0.5,
    axes: Sequence[int] = (-1,),
    stream: str = "flip",
) -> Tensor:
    """`flip` along each of `axes` by itself with this probability."""
    return flip(x, flip_draws(x, seed, positions, probability, axes, stream))
