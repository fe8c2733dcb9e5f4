"""Which patches a masked objective hides: pure functions of (seed, position), for grids of any dimension.

Which units are hidden is decided by sorting counter-based draws (data/draws.py), so a restart, another number
of ranks or another device hides the same ones; with one ratio for all samples the visible tokens form one
dense tensor. A mask unit may be larger than a token (`block`), because small holes can be filled by
interpolation: SimMIM hides 32-pixel squares, nnssl 16³ voxels, whatever the patch is. Half of a CT slice is
air: `tissue` moves the mask to where there is something to predict. Masks made of rectangles (I-JEPA, iBOT)
are in multiblock.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..data.draws import uniform_torch
from ..data.errors import ConfigError


class Mask(NamedTuple):
    """N tokens split into visible and hidden ones: int64 indices into the row-major grid, ascending."""

    keep: Tensor  # [B, K] visible
    masked: Tensor  # [B, N - K] hidden


def split(hidden: Tensor, visible: int) -> Mask:
    """Indices of a mask [B, N] that leaves `visible` tokens of every sample."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
    return Mask(order[:, :visible], order[:, visible:])


def hide(
    seed: int,
    positions: Tensor,
    grid: Sequence[int],
    ratio: float | Sequence[float],
    block: int | Sequence[int] = 1,
    *,
    tissue: Tensor | None = None,
    least: float = 0.5,
    stream: str = "mask",
    device: torch.device | None = None,
) -> Tensor:
    """Hide a share of the tokens at random (MAE's per-sample shuffle, arXiv 2111.06377, appendix A.1).

    Args:
        seed: of the run.
        positions: int64 [B], place of each sample in the global order.
        grid: tokens along each axis, slice first.
        ratio: share of the units hidden, the same number in each sample; 0 hides nothing. Two numbers: drawn
            for each sample, uniform between them, at least one unit hidden and one visible.
        block: tokens of one mask unit along each axis; must divide the grid.
        tissue: bool [B, N], tokens with something to see; None: all.
        least: of the hidden units at least this share holds tissue, as far as there is enough: of the tissue
            that a blind mask would leave visible, half stays visible in any case.
        stream: name that keeps several masks of one sample apart.

    Returns:
        bool [B, N], True where hidden.

    Raises:
        ConfigError: a grid that is no multiple of the block, or a ratio that leaves nothing visible.
    """
    sides = _sides(grid, block)
    counts = [g // b for g, b in zip(grid, sides, strict=True)]
    n = math.prod(counts)
    draws = uniform_torch(seed, stream, positions, n + 1, device=device or positions.device)
    if isinstance(ratio, int | float):
        number: int | Tensor = hidden_units(n, ratio)
    else:
        low, high = _limits(n, ratio)
        number = ((low + (high - low) * draws[:, n:]) * n).round().clamp(1, n - 1)
    draws = draws[:, :n]
    if tissue is not None:
        units = functional.max_pool3d(
            tissue.reshape(-1, 1, *[1] * (3 - len(grid)), *grid).float(), [1] * (3 - len(grid)) + sides
        )
        draws = _preferring(draws, number, units.flatten(1) > 0, least)
    hidden = draws.argsort(dim=1, stable=True).argsort(dim=1) >= n - number
    return _enlarged(hidden, counts, sides)


def visible_tokens(grid: Sequence[int], ratio: float, block: int | Sequence[int] = 1) -> int:
    """Tokens of each sample that `hide` leaves visible."""
    sides = _sides(grid, block)
    tokens, unit = math.prod(grid), math.prod(sides)
    return tokens - hidden_units(tokens // unit, ratio) * unit


def hidden_units(n: int, ratio: float) -> int:
    """How many of n units a ratio hides. Raises ConfigError when none stays visible, or none is hidden."""
    hidden = round(n * ratio)
    if not 0 <= ratio < 1 or hidden >= n or (ratio > 0 and hidden == 0):
        raise ConfigError(
            f"a mask ratio of {ratio} hides {hidden} of {n} mask units: at least one must stay visible and "
            "one be hidden; change objective.mask_ratio, use a larger crop or smaller patches"
        )
    return hidden


def fitting_block(grid: Sequence[int], patch: Sequence[int], pixels: int) -> list[int]:
    """Tokens a side of a mask unit of about `pixels`, or less, so that it divides the grid at least twice."""
    block = []
    for tokens, side in zip(grid, patch, strict=True):
        wanted = max(1, round(pixels / side))
        block.append(max((b for b in range(1, wanted + 1) if tokens % b == 0 and tokens // b > 1), default=1))
    return block


def _preferring(draws: Tensor, hidden: int | Tensor, tissue: Tensor, least: float) -> Tensor:
    """Keys whose largest `hidden` hold enough tissue: draws [B, n], some moved above or below the others."""
    n = draws.shape[1]
    found = tissue.sum(dim=1, keepdim=True)
    # Rank of each unit among those with tissue, the largest draw first; the others come behind.
    rank = torch.where(tissue, draws, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    blind = (n - hidden) / n * found  # tissue that a blind mask leaves visible
    reserve = torch.minimum((blind / 2).ceil(), torch.zeros_like(blind) + (n - hidden))
    wanted = torch.minimum(found - reserve, torch.zeros_like(blind) + least * hidden).ceil()
    first = tissue & (rank < wanted)
    last = tissue & (rank >= found - reserve)
    return draws + first.to(draws.dtype) - last.to(draws.dtype)


def _sides(grid: Sequence[int], block: int | Sequence[int]) -> list[int]:
    sides = [block] * len(grid) if isinstance(block, int) else list(block)
    if len(sides) != len(grid) or min(sides) < 1 or any(g % b for g, b in zip(grid, sides, strict=True)):
        raise ConfigError(
            f"mask block {sides} does not divide the token grid {list(grid)}: "
            "change objective.mask_block, or the crop"
        )
    return sides


def _limits(n: int, ratio: Sequence[float]) -> tuple[float, float]:
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1] < 1 or n < 2:
        raise ConfigError(
            f"mask ratios {list(ratio)} over {n} mask units: write two numbers, 0 < low <= high < 1, "
            "for objective.mask_ratio, and use a crop of two units at least"
        )
    return float(ratio[0]), float(ratio[1])


def _enlarged(hidden: Tensor, counts: Sequence[int], block: Sequence[int]) -> Tensor:
    """From units bool [B, n] to tokens bool [B, N]."""
    hidden = hidden.reshape(-1, *counts)
    for axis, size in enumerate(block, start=1):
        if size > 1:
            hidden = hidden.repeat_interleave(size, dim=axis)
    return hidden.flatten(1)
