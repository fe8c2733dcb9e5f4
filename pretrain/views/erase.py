"""Erasing: a box of each sample is set to a constant (Zhong et al. 2020; DeVries and Taylor 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import between, draw, log_between, sometimes


def erase(x: Tensor, start: Tensor, end: Tensor, value: float = 0.0) -> Tensor:
    """Set the voxels whose centre lies in the box [start, end) to `value`; an empty box changes nothing.

    Args:
        start, end: [B, n] voxels.
        value: 0 is about the mean of a normalised image.
    """
    inside = torch.ones(len(x), *[1] * (x.ndim - 1), dtype=torch.bool, device=x.device)
    for axis, extent in enumerate(x.shape[2:]):
        centre = torch.arange(extent, device=x.device, dtype=torch.float32) + 0.5
        line = (centre >= start[:, axis : axis + 1]) & (centre < end[:, axis : axis + 1])
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[axis + 2] = extent
        inside = inside & line.view(shape)
    return x.masked_fill(inside, value)


def random_erase(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    area: Sequence[float] = (0.02, 0.2),
    aspect: Sequence[float] = (0.3, 3.3),
    count: int = 1,
    value: float = 0.0,
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "erase",
) -> Tensor:
    """`erase` of `count` boxes: share of the view uniform, ratio of the last two sides log-uniform."""
    n, spatial = x.ndim - 2, x.shape[2:]
    for k in range(count):
        draws = draw(x, seed, stream if k == 0 else f"{stream}:{k}", positions, 3 + n)
        side = between(draws.u[:, 1], area) ** (1 / n)
        stretch = log_between(draws.u[:, 2], aspect).sqrt()
        shares = [side] * (n - 2) + [side / stretch, side * stretch]
        sides = torch.stack([(s * e).clamp_max(e) for s, e in zip(shares, spatial, strict=True)], dim=1)
        room = torch.stack([e - sides[:, a] for a, e in enumerate(spatial)], dim=1)
        start = draws.u[:, 3:] * room
        x = sometimes(
            x, draws.below(probability, only), lambda p, s, e: erase(p, s, e, value), start, start + sides
        )
    return x
