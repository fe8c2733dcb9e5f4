"""Patches of pixels, and what predicts them from tokens: shared by the masked objectives.

A patch is a vector of its pixels, row-major, channels last. `PatchDecoder` is MAE's light transformer
(arXiv 2111.06377, section 3) with its own sine-cosine positions; of depth 0 it is the one linear layer of
SimMIM (arXiv 2111.09886). An encoder of pictures and volumes gets a last layer for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.errors import ConfigError
from .encoders.base import Encoder
from .encoders.blocks import run_blocks
from .encoders.patches import Filled, Wanted, select
from .encoders.positions import sincos


class PatchHead(nn.Module):
    """One linear layer from a token to the pixels of its patch, for each number of axes of the encoder."""

    def __init__(self, encoder: Encoder, dim: int) -> None:
        super().__init__()
        sizes = {axes: encoder.in_channels * math.prod(encoder.patch_of(axes)) for axes in encoder.axes}
        self.layers = nn.ModuleDict({str(axes): nn.Linear(dim, size) for axes, size in sizes.items()})
        for layer in self.layers.values():
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, ndim: int) -> Tensor:
        """[B, N, dim] -> [B, N, pixels · C] of patches with `ndim` axes."""
        out = self.layers[str(ndim)](tokens)
        for axes, layer in self.layers.items():
            if axes != str(ndim):  # a gradient of zero: distributed training takes none for an error
                out = out + 0.0 * sum(p.sum() for p in layer.parameters())
        return out


class PatchDecoder(nn.Module):
    """Transformer blocks over the whole grid, then `PatchHead`.

    Raises:
        ConfigError: a width that is no multiple of the heads.
    """

    def __init__(self, encoder: Encoder, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        if dim % heads:
            raise ConfigError(f"objective.decoder_dim {dim} is not a multiple of {heads} decoder_heads")
        self.dim = dim
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.predict = PatchHead(encoder, dim)

    def forward(self, tokens: Tensor | Filled, grid: Sequence[int], only: Tensor | None = None) -> Tensor:
        """Embedded tokens [B, N, dim] in grid order -> patches [B, N, pixels · C]; [B, K, ...] of `only`."""
        weight = self.norm.weight
        table = sincos(grid, self.dim, weight.device).to(weight.dtype)
        tokens = tokens.plus(table) if isinstance(tokens, Filled) else tokens + table
        tokens, _ = run_blocks(self.blocks, tokens, only=None if only is None else Wanted(only))
        return self.predict(self.norm(tokens), len(grid))


def patchify(image: Tensor, patch_size: Sequence[int], only: Tensor | None = None) -> Tensor:
    """[B, C, *spatial] -> [B, N, patch pixels · C], patches row-major, channels last inside a patch.

    With int64 `only` [B, K] these patches: [B, K, patch pixels · C].
    """
    batch, channels, *spatial = image.shape
    axes = len(patch_size)
    split: list[int] = []
    for size, patch in zip(spatial, patch_size, strict=True):
        split += [size // patch, patch]
    x = image.reshape(batch, channels, *split)
    grid_axes = [2 + 2 * axis for axis in range(axes)]
    patch_axes = [3 + 2 * axis for axis in range(axes)]
    x = x.permute(0, *grid_axes, *patch_axes, 1)
    patches = x.reshape(batch, math.prod(split[0::2]), math.prod(patch_size) * channels)
    return patches if only is None else select(patches, only)


def unpatchify(patches: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: [B, N, patch pixels · C] -> [B, C, *spatial]."""
    axes = len(grid)
    channels = patches.shape[-1] // math.prod(patch_size)
    x = patches.reshape(patches.shape[0], *grid, *patch_size, channels)
    order = [0, 1 + 2 * axes]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    spatial = [g * p for g, p in zip(grid, patch_size, strict=True)]
    return x.permute(order).reshape(patches.shape[0], channels, *spatial)


def expand_mask(hidden: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """bool [B, N] over patches -> bool [B, 1, *spatial] over pixels."""
    x = hidden.reshape(hidden.shape[0], 1, *grid)
    for axis, patch in enumerate(patch_size):
        x = x.repeat_interleave(patch, dim=2 + axis)
    return x


class PixelToken(nn.Module):
    """Hidden patches of the image become a learnt value of each channel, for encoders without tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels))

    def forward(self, image: Tensor, hidden: Tensor) -> Tensor:
        """Image [B, C, *spatial], `hidden` bool [B, 1, *spatial]."""
        value = self.value.to(image.dtype).reshape(1, -1, *[1] * (image.ndim - 2))
        return torch.where(hidden, value, image)
