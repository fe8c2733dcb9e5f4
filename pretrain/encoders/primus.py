"""Primus: nnU-Net's transformer for volumes, Eva blocks with rotary and learnt positions, in sizes S to L.

Wald et al., arXiv 2503.01835. The blocks are those of dynamic-network-architectures, and parameter names are
those of its `Primus` (`down_projection`, `eva.*`, `register_tokens`), so that weights of nnU-Net and nnssl
go both ways with strict=False; their decoder is left out. Defaults are nnssl's: layer scale 0.1, norm inside
attention, stochastic depth 0.2, no class token: `pooled` is the mean of the patch tokens.

Rotary positions are computed for the grid at hand; the learnt table belongs to `img_size` and is resampled
(trilinear) for other sizes, as nnssl does when a crop changes. At 8³ patches 96³ voxels are 1728 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError, nearest
from .base import Encoder, Features, Hide, depths_of_pyramid
from .blocks import run_blocks
from .nnunet_nets import nnunet_part
from .patches import replace, select
from .vit3d_learnt import resampled

# (embed_dim, depth, heads), arXiv 2503.01835, table 2.
SIZES: dict[str, tuple[int, int, int]] = {
    "S": (396, 12, 6),
    "B": (792, 12, 12),
    "M": (864, 16, 12),
    "L": (1056, 24, 16),
}


class Primus(Encoder):
    """Plain transformer over the patches of a volume, as nnU-Net builds it."""

    @dataclass(kw_only=True)
    class Config:
        """Fields that are None come from `size`."""

        name: str = "primus"
        size: str = "M"  # S | B | M | L
        patch_size: list[int] = field(default_factory=lambda: [8, 8, 8])  # voxels (D, H, W)
        img_size: list[int] = field(default_factory=lambda: [96, 96, 96])  # voxels of the learnt positions
        in_channels: int = 1
        embed_dim: int | None = None
        depth: int | None = None  # blocks
        num_heads: int | None = None
        registers: int = 0  # register tokens (arXiv 2309.16588)
        layer_scale: float | None = 0.1  # initial value; None: none
        drop_path: float = 0.2  # stochastic depth rate of the last block, rising linearly

    supports_keep = True
    supports_hide = True
    ndim = 3

    def __init__(self, config: Primus.Config) -> None:
        super().__init__(config)
        dim, depth, heads = self._sizes(config)
        eva = nnunet_part("primus", "building_blocks.eva", "Eva")
        embed = nnunet_part("primus", "building_blocks.patch_encode_decode", "PatchEmbed")
        he = nnunet_part("primus", "initialization.weight_init", "InitWeights_He")
        self.embed_dim = dim
        self.patch_size = (config.patch_size[0], config.patch_size[1], config.patch_size[2])
        self.in_channels = config.in_channels
        self.stem = "down_projection.proj.weight"
        self.stored = self.grid(config.img_size)
        self.down_projection = embed(self.patch_size, config.in_channels, dim).apply(he(1e-2))
        self.eva = eva(
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            ref_feat_shape=self.stored,
            num_reg_tokens=config.registers,
            drop_path_rate=config.drop_path,
            init_values=config.layer_scale,
            scale_attn_inner=True,
        )
        self.register_tokens = None
        if config.registers:
            self.register_tokens = nn.Parameter(torch.randn(1, config.registers, dim) * 1e-6)

    @staticmethod
    def _sizes(config: Primus.Config) -> tuple[int, int, int]:
        if config.size not in SIZES:
            raise ConfigError(f"encoder.size: unknown size {config.size!r}{nearest(config.size, set(SIZES))}")
        if len(config.patch_size) != 3 or min(config.patch_size) < 1:
            raise ConfigError(f"encoder.patch_size: three sides of at least 1, not {list(config.patch_size)}")
        dim, depth, heads = SIZES[config.size]
        dim, depth, heads = config.embed_dim or dim, config.depth or depth, config.num_heads or heads
        if dim % (6 * heads):
            raise ConfigError(
                f"encoder.embed_dim {dim} over {heads} heads: rotary positions of three axes need a multiple "
                f"of {6 * heads}"
            )
        return dim, depth, heads

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, D, H, W]. `pooled` is the mean of the patch tokens."""
        grid = self.check(x, keep, pyramid, hide)
        eva = cast(Any, self.eva)
        tokens = replace(self.down_projection(x).flatten(2).transpose(1, 2), hide)
        prefix, positions = self.positions(grid)
        tokens = tokens + positions
        rope = self.rotary(grid, x.device)
        if keep is not None:
            tokens, rope = select(tokens, keep), rope[keep].unsqueeze(1)
        if self.register_tokens is not None:
            registers = (self.register_tokens + prefix).expand(x.shape[0], -1, -1)
            tokens = torch.cat([registers, tokens], dim=1)
        wanted = depths_of_pyramid(len(eva.blocks)) if pyramid else []
        tokens, levels = run_blocks(eva.blocks, tokens, rope=rope, levels=wanted, recompute=self.recompute)
        tokens = eva.norm(tokens)[:, prefix.shape[1] :]
        maps = [eva.norm(level)[:, prefix.shape[1] :].transpose(1, 2) for level in levels]
        return Features(
            pooled=tokens.mean(dim=1),
            tokens=tokens,
            grid=None if keep is not None else grid,
            pyramid=[m.reshape(x.shape[0], -1, *grid) for m in maps] if pyramid else None,
        )

    def positions(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Learnt positions of the registers [1, R, E], and of the patches [1, N, E] resampled to `grid`."""
        count = int(self.config.registers)
        prefix, table = self.eva.pos_embed[:, :count], self.eva.pos_embed[:, count:]
        return prefix, resampled(table, self.stored, grid)

    def rotary(self, grid: Sequence[int], device: torch.device) -> Tensor:
        """Rotary table [N, 2 · head channels] of all patches, at whole numbers of patches as in nnU-Net."""
        from timm.layers import build_rotary_pos_embed

        bands = int(self.eva.rope.dim)
        table = build_rotary_pos_embed(list(grid), dim=bands, in_pixels=False, device=device)
        return torch.cat(table, dim=-1)

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`."""
        return list(cast(Any, self.eva).blocks)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """[patch embedding, positions, registers; block 0; ...; final norm]."""
        eva = cast(Any, self.eva)
        depth_of = {id(p): i for i, block in enumerate(eva.blocks, 1) for p in block.parameters()}
        last = len(eva.blocks) + 1
        depth_of |= {id(p): last for p in eva.norm.parameters()}
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(last + 1)]
        for name, parameter in self.named_parameters():
            groups[depth_of.get(id(parameter), 0)].append((name, parameter))
        return groups
