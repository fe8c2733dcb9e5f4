"""Patches to tokens, and what masked objectives do to tokens: leave out, or replace.

Where only some patches are wanted, only they are embedded: the patches are gathered before the projection
instead of after it. With three quarters left out that makes the embedding, forward and backward, 3.2 to 3.6
times cheaper, and a masked step of a ViT-S 0.88 of the time for 96³ voxels in 16³ patches, where embedding a
token costs as much as nine tenths of a block (0.98 for 224² pixels; CPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import Hide


class PatchEmbed(nn.Module):
    """Image [B, C, *spatial] -> tokens [B, N, E], row-major over the grid; 2D or 3D by `patch_size`."""

    def __init__(self, patch_size: Sequence[int], in_channels: int, dim: int) -> None:
        super().__init__()
        convolution: Any = nn.Conv3d if len(patch_size) == 3 else nn.Conv2d
        patch = tuple(patch_size)
        self.proj = convolution(in_channels, dim, kernel_size=patch, stride=patch)
        # As MAE: initialised like a linear layer over the flattened patch.
        nn.init.xavier_uniform_(self.proj.weight.data.view(dim, -1))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """All patches, or those at the indices keep [B, K] -> [B, K, E]."""
        if keep is not None:
            return embed_some(self.proj, x, keep)
        return self.proj(x).flatten(2).transpose(1, 2)


def embed_some(proj: nn.Module, x: Tensor, keep: Tensor) -> Tensor:
    """What a convolution whose stride is its kernel makes of some patches of x.

    Args:
        proj: `nn.Conv2d` or `nn.Conv3d` without padding.
        x: [B, C, *spatial], sides that are multiples of the kernel.
        keep: int64 [B, K], row-major indices of patches.

    Returns:
        [B, K, E], equal to the convolution up to rounding.
    """
    convolution = cast(nn.Conv3d, proj)
    patch = convolution.kernel_size
    axes = len(patch)
    grid = [size // step for size, step in zip(x.shape[2:], patch, strict=True)]
    split = [side for pair in zip(grid, patch, strict=True) for side in pair]
    cells = x.reshape(*x.shape[:2], *split)  # [B, C, grid 0, patch 0, grid 1, patch 1, ...]
    cells = cells.permute(0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2))
    index: list[Tensor] = []
    rest = keep
    for side in reversed(grid):
        index.insert(0, rest % side)
        rest = rest // side
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    wanted = cells[(rows, *index)].flatten(2)
    return functional.linear(wanted, convolution.weight.flatten(1), convolution.bias)


def select(tokens: Tensor, keep: Tensor) -> Tensor:
    """Tokens [B, N, E] at the indices keep [B, K] -> [B, K, E]."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def replace(tokens: Tensor, hide: Hide | None) -> Tensor:
    """Tokens [B, *grid, E] or [B, N, E] with those of `hide` replaced by its token."""
    if hide is None:
        return tokens
    mask = hide.mask.reshape(*tokens.shape[:-1], 1)
    return torch.where(mask, hide.token.reshape(-1).to(tokens.dtype), tokens)
