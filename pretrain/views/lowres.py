"""Low resolution: what a coarser detector, or thicker slices, would have shown of the same thing.

Down: the mean over cells of `factor` voxels, as a detector pixel or a slice profile averages. Up: linear
between the middles of the cells. nnU-Net takes nearest neighbours down instead, which adds aliasing that no
scanner shows. Both steps are one small matrix an axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import draw, log_between, sometimes
from .separable import along

AXES = ("all", "one")


def low_resolution(x: Tensor, factor: Tensor) -> Tensor:
    """Average over `factor` voxels along each axis and interpolate back; the shape stays.

    Args:
        factor: [B, n], at least 1, which leaves an axis alone bit for bit.
    """
    return along(x, [_weights(factor[:, a], x.shape[a + 2]) for a in range(x.ndim - 2)])


def random_low_resolution(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    factor: Sequence[float] = (1.0, 2.0),
    axes: str = "all",
    probability: float = 1.0,
    only: Tensor | None = None,
    stream: str = "lowres",
) -> Tensor:
    """`low_resolution`, factor log-uniform: the same for "all" axes, or for "one", drawn (thick slices)."""
    n = x.ndim - 2
    draws = draw(x, seed, stream, positions, 3)
    drawn = log_between(draws.u[:, 1:2], factor).expand(-1, n)
    if axes == "one":
        axis = torch.arange(n, device=x.device)
        drawn = torch.where((draws.u[:, 2:3] * n).floor() == axis, drawn, 1.0)
    return sometimes(x, draws.below(probability, only), low_resolution, drawn)


def _weights(factor: Tensor, extent: int) -> Tensor:
    """[B, extent, extent]: down to cells of `factor` [B] voxels and up again, in one."""
    f = factor.view(-1, 1, 1)
    voxel = torch.arange(extent, device=factor.device, dtype=torch.float32)
    # A sliver of a cell at the end is no cell: it would show single voxels.
    last = ((extent - 0.5 * f) / f).ceil().clamp_min(1) - 1
    place = torch.minimum(((voxel[:, None] + 0.5) / f - 0.5).clamp_min(0), last)  # in cells
    cell = place.floor()
    share = place - cell

    def mean(cell: Tensor) -> Tensor:
        """The average over a cell: [B, extent, extent], rows of the cells [B, extent, 1]."""
        overlap = torch.minimum(voxel + 1, (cell + 1) * f).sub_(torch.maximum(voxel, cell * f)).clamp_min_(0)
        return overlap.div_(overlap.sum(dim=2, keepdim=True))

    return torch.lerp(mean(cell), mean(torch.minimum(cell + 1, last)), share)
