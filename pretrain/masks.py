"""Which patches a masked objective hides: pure functions of (seed, position), for grids of any dimension.

Every sample of a batch hides the same number of units, so that the visible tokens form one dense tensor;
which ones is decided by sorting counter-based draws (data/draws.py). A restart, another number of ranks or
another device hides the same patches. A mask unit may be larger than a token (`block`), because small holes
can be filled by interpolation: SimMIM hides 32-pixel squares, nnssl 16³ voxels, whatever the patch is.
Masks made of rectangles (I-JEPA, iBOT) are in multiblock.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.draws import uniform_torch
from ..data.errors import ConfigError


class Mask(NamedTuple):
    """A split of N tokens into visible and hidden ones; indices are int64 into the row-major grid."""

    keep: Tensor  # [B, K] visible
    masked: Tensor  # [B, N - K] hidden
    restore: Tensor  # [B, N]: concat(visible, hidden)[restore] is in grid order

    def hidden(self) -> Tensor:
        """bool [B, N], True where hidden."""
        return self.restore >= self.keep.shape[1]


def random_keep(
    seed: int,
    positions: Tensor,
    n: int,
    ratio: float,
    *,
    stream: str = "mask",
    device: torch.device | None = None,
) -> Mask:
    """Hide round(ratio·n) of n tokens at random (MAE's per-sample shuffle, arXiv 2111.06377, appendix A.1).

    Args:
        seed: of the run.
        positions: int64 [B], place of each sample in the global order.
        ratio: share hidden; 0 hides nothing and keeps the grid order.
        stream: name that keeps several masks of one sample apart.

    Raises:
        ConfigError: a ratio outside [0, 1), or one that leaves no visible token.
    """
    hidden = hidden_units(n, ratio)
    draws = uniform_torch(seed, stream, positions, n, device=device or positions.device)
    order = torch.argsort(draws, dim=1, stable=True)
    # Both parts in grid order: the network does not care, and a mask of 0 is exactly the plain forward.
    keep = order[:, : n - hidden].sort(dim=1).values
    masked = order[:, n - hidden :].sort(dim=1).values
    return Mask(keep, masked, torch.argsort(torch.cat([keep, masked], dim=1), dim=1))


def block_keep(
    seed: int,
    positions: Tensor,
    grid: Sequence[int],
    ratio: float,
    block: Sequence[int],
    *,
    stream: str = "mask",
    device: torch.device | None = None,
) -> Mask:
    """Hide whole blocks of tokens; block (1, 1) or (1, 1, 1) is `random_keep`.

    Args:
        grid: tokens along each axis, slice first.
        block: tokens of one mask unit along each axis; must divide the grid.

    Raises:
        ConfigError: a grid that is not a multiple of the block, or a ratio that fits no block.
    """
    if len(block) != len(grid) or min(block) < 1 or any(g % b for g, b in zip(grid, block, strict=True)):
        raise ConfigError(
            f"mask block {list(block)} does not divide the token grid {list(grid)}: "
            "change objective.mask_block, or the crop"
        )
    counts = [g // b for g, b in zip(grid, block, strict=True)]
    units = 1
    for count in counts:
        units *= count
    unit = random_keep(seed, positions, units, ratio, stream=stream, device=device)
    if all(b == 1 for b in block):
        return unit
    hidden = unit.hidden().reshape(-1, *counts)
    for axis, size in enumerate(block, start=1):
        hidden = hidden.repeat_interleave(size, dim=axis)
    hidden = hidden.flatten(1)
    visible = hidden.shape[1] - hidden_units(units, ratio) * (hidden.shape[1] // units)
    order = torch.argsort(hidden.to(torch.uint8), dim=1, stable=True)
    return Mask(order[:, :visible], order[:, visible:], torch.argsort(order, dim=1))


def hidden_units(n: int, ratio: float) -> int:
    """How many of n units a ratio hides. Raises ConfigError when none stays visible, or none is hidden."""
    hidden = round(n * ratio)
    if not 0 <= ratio < 1 or hidden >= n or (ratio > 0 and hidden == 0):
        raise ConfigError(
            f"a mask ratio of {ratio} hides {hidden} of {n} mask units: at least one must stay visible and "
            "one be hidden; change objective.mask_ratio, use a larger crop or smaller patches"
        )
    return hidden
