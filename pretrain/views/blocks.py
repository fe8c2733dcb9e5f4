"""Boxes at random places that together cover a share of the image, as one mask: what in-painting hides.

A mask is the product of one line an axis, summed over boxes: one matrix product for all boxes of all samples
instead of a loop that stops when enough is covered, which would have to ask the device. Boxes are drawn in
excess and those beyond the share are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import between, draw
from .separable import product

EXCESS = 1.5  # boxes drawn for each that is needed on average


def random_blocks(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    share: float = 0.3,
    side: Sequence[float] = (0.05, 0.25),
    stream: str = "blocks",
) -> Tensor:
    """Boxes with sides uniform in `side` (shares of the image's), until their volumes sum to `share` of it.

    Overlaps are counted twice, as the SwinUNETR pretext does (arXiv 2111.14791, supplement), so that a little
    less than `share` is covered.

    Args:
        x: [B, C, *spatial], 2D or 3D; only shape and device are used.

    Returns:
        bool [B, 1, *spatial], True inside a box.
    """
    spatial = x.shape[2:]
    n = len(spatial)
    count = max(1, math.ceil(EXCESS * share / (sum(side) / 2) ** n))
    u = draw(x, seed, stream, positions, 2 * n * count).u.view(len(x), count, n, 2)
    sides = between(u[..., 0], side)  # [B, K, n]
    volume = sides.prod(dim=2)
    wanted = (volume.cumsum(dim=1) - volume < share).to(volume.dtype)
    start = u[..., 1] * (1 - sides)
    lines = [_line(start[..., a], sides[..., a], extent) for a, extent in enumerate(spatial)]
    first = lines[0] * wanted.unsqueeze(2)  # [B, K, S_0]
    rest = lines[1] if n == 2 else (lines[1].unsqueeze(3) * lines[2].unsqueeze(2)).flatten(2)
    covered = product(first.transpose(1, 2), rest)
    return covered.view(len(x), 1, *spatial) > 0.5


def _line(start: Tensor, side: Tensor, extent: int) -> Tensor:
    """1 for voxels whose centre lies in [start, start + side): [B, K] shares -> float32 [B, K, extent]."""
    centre = (torch.arange(extent, device=start.device, dtype=torch.float32) + 0.5) / extent
    inside = (centre >= start.unsqueeze(2)) & (centre < (start + side).unsqueeze(2))
    return inside.to(torch.float32)
