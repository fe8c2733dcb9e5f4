"""Quarter turns in the plane of the last two axes: exact, nothing is interpolated."""

from __future__ import annotations

import torch
from torch import Tensor

from .draw import draw, per_sample


def quarter_turns(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each sample of x [B, C, ..., S, S] by turns [B] (0 to 3) quarters, from axis -2 to axis -1.

    Raises:
        ValueError: a plane that is not square, which a quarter turn does not fit.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"a quarter turn needs a square plane, not {x.shape[-2]}×{x.shape[-1]}")
    out = x
    for k in (1, 2, 3):
        out = torch.where(per_sample(turns == k, x), torch.rot90(x, k, (-2, -1)), out)
    return out


def random_quarter_turns(
    x: Tensor, seed: int, positions: Tensor, *, stream: str = "turns"
) -> tuple[Tensor, Tensor]:
    """`quarter_turns` by 0 to 3 quarters, all as likely; returns (turned x, quarters int64 [B])."""
    turns = (draw(x, seed, stream, positions, 1).u[:, 0] * 4).long()
    return quarter_turns(x, turns), turns
