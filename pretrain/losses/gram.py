"""Gram anchoring: similarities between the patches of an image stay what an earlier teacher said they are.

DINOv3, arXiv 2508.10104, section 4, equation 2. Only similarities are held, so the features themselves may
go on moving; this mends dense features that decay in long runs while the pooled ones still improve.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .precision import exact, wide


def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities of all pairs of tokens of an image.

    Args:
        student: [B, N, E].
        anchor: [B, N, E'], of the Gram teacher; no gradient goes into it.
    """
    mine, theirs = F.normalize(wide(student), dim=-1), F.normalize(wide(anchor.detach()), dim=-1)
    with exact(mine):
        return F.mse_loss(mine @ mine.transpose(1, 2), theirs @ theirs.transpose(1, 2))


@torch.no_grad()
def resample_tokens(tokens: Tensor, grid: Sequence[int], to: Sequence[int]) -> Tensor:
    """Tokens [B, N, E] of one grid on another: bicubic in 2D (section 4.3), trilinear in 3D."""
    if tuple(grid) == tuple(to):
        return tokens
    maps = tokens.float().transpose(1, 2).reshape(len(tokens), -1, *grid)
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    return F.interpolate(maps, size=tuple(to), mode=mode, align_corners=False).flatten(2).transpose(1, 2)
