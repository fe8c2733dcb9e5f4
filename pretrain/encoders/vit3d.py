"""3D vision transformer: timm's blocks behind a Conv3d patch embedding, for volumes of any crop size.

Patches may be anisotropic ([4, 16, 16] for thick slices). Positions are computed for the grid at hand
(sine-cosine vectors, axial rotations of queries and keys, or both), so one network takes any crop that is a
multiple of the patch and nothing is ever resampled. With a volume of depth 1 and a patch of depth 1 it is
the 2D ViT of timm with the same weights (a test holds it to that). Numbers of tokens grow with the cube: 96³
voxels in 16³ patches are 216 tokens, in 8³ they are 1728, and the attention of the latter costs 64 times as
much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError, nearest
from .base import Encoder, Features, Hide, depths_of_pyramid
from .blocks import run_blocks
from .patches import PatchEmbed, Wanted, parted, replace
from .positions import rotations, sincos

# (embed_dim, depth, heads) as in DeiT (arXiv 2012.12877) and ViT (arXiv 2010.11929).
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}

POSITIONS = ("sincos", "rope", "both")
POOLS = ("token", "mean")

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


class ViT3D(Encoder):
    """Plain transformer over the patches of a volume."""

    @dataclass(kw_only=True)
    class Config:
        """Fields that are None come from `size`."""

        name: str = "vit3d"
        size: str = "small"  # tiny | small | base | large
        patch_size: list[int] = field(default_factory=lambda: [16, 16, 16])  # voxels (D, H, W)
        in_channels: int = 1
        embed_dim: int | None = None
        depth: int | None = None  # blocks
        num_heads: int | None = None
        mlp_ratio: float = 4.0
        positions: str = "sincos"  # added vectors: sincos | turned queries and keys: rope | both (Primus)
        rope_base: float = 100.0  # of the rotations; see `positions.rotations`
        pool: str = "token"  # what `pooled` is: token (the class token) | mean (of the patch tokens)
        registers: int = 0  # register tokens (arXiv 2309.16588) beside the class token
        layer_scale: float | None = None  # initial value, e.g. 1e-5; None: none
        drop_path: float = 0.0  # stochastic depth rate of the last block, rising linearly

    supports_keep = True
    supports_hide = True
    ndim = 3

    def __init__(self, config: ViT3D.Config) -> None:
        super().__init__(config)
        from timm.layers import trunc_normal_
        from timm.models.vision_transformer import Block

        dim, depth, heads = self._sizes(config)
        self.embed_dim = dim
        self.patch_size = (config.patch_size[0], config.patch_size[1], config.patch_size[2])
        self.in_channels = config.in_channels
        self.stem = "patch_embed.proj.weight"
        self.prefix = 1 + config.registers
        self.patch_embed = PatchEmbed(self.patch_size, config.in_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, dim)) if config.registers else None
        rates = [config.drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=True,
                init_values=config.layer_scale,
                drop_path=rate,
                norm_layer=cast(Any, LAYER_NORM),
            )
            for rate in rates
        )
        self.norm = LAYER_NORM(dim)
        self.head_dim = dim // heads
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            trunc_normal_(self.reg_token, std=0.02)

    @staticmethod
    def _sizes(config: ViT3D.Config) -> tuple[int, int, int]:
        if config.size not in SIZES:
            raise ConfigError(f"encoder.size: unknown size {config.size!r}{nearest(config.size, set(SIZES))}")
        if len(config.patch_size) != 3 or min(config.patch_size) < 1:
            raise ConfigError(f"encoder.patch_size: three sides of at least 1, not {list(config.patch_size)}")
        if config.positions not in POSITIONS:
            hint = nearest(config.positions, set(POSITIONS))
            raise ConfigError(f"encoder.positions: unknown kind {config.positions!r}{hint}")
        if config.pool not in POOLS:
            raise ConfigError(f"encoder.pool: unknown kind {config.pool!r}{nearest(config.pool, set(POOLS))}")
        dim, depth, heads = SIZES[config.size]
        dim, depth, heads = config.embed_dim or dim, config.depth or depth, config.num_heads or heads
        if dim % heads or dim < 6:
            raise ConfigError(f"encoder.embed_dim {dim} is not a multiple of {heads} heads, or is below 6")
        if config.positions != "sincos" and (dim // heads < 6 or dim // heads % 2):
            raise ConfigError(
                f"encoder.positions={config.positions} needs heads of an even number of channels, "
                f"at least 6: embed_dim {dim} / {heads} heads is {dim // heads}"
            )
        return dim, depth, heads

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        pyramid: bool = False,
        hide: Hide | None = None,
        only: Wanted | None = None,
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, D, H, W]. `pooled` is what `pool` says, `only` as in `some`."""
        grid = self.check(x, keep, pyramid, hide)
        tokens, rope = self._embedded(x, grid, keep, hide)
        wanted = depths_of_pyramid(len(self.blocks)) if pyramid else []
        early = only is not None and self.config.pool == "token"
        tokens, levels = run_blocks(
            self.blocks, tokens, rope=rope, levels=wanted, recompute=self.recompute,
            only=only.behind(self.prefix) if only is not None and early else None,
        )  # fmt: skip
        first, tokens = parted(self.norm(tokens), self.prefix, only, early)
        maps = [self.norm(level)[:, self.prefix :].transpose(1, 2) for level in levels]
        return Features(
            pooled=self._pooled(first),
            tokens=tokens,
            grid=grid if keep is None and only is None else None,
            pyramid=[m.reshape(x.shape[0], -1, *grid) for m in maps] if pyramid else None,
        )

    def some(self, x: Tensor, only: Wanted, keep: Tensor | None = None, hide: Hide | None = None) -> Features:
        """See `Encoder.some`."""
        return self(x, keep, hide=hide, only=only)

    def last(self, x: Tensor, count: int) -> list[Features]:
        """See `Encoder.last`."""
        grid = self.check(x)
        tokens, rope = self._embedded(x, grid, None, None)
        depth = len(self.blocks)
        _, levels = run_blocks(self.blocks, tokens, rope=rope, levels=range(max(0, depth - count), depth))
        normed = [self.norm(level) for level in levels]
        return [Features(self._pooled(level), level[:, self.prefix :], grid) for level in normed]

    def _pooled(self, tokens: Tensor) -> Tensor:
        """[B, prefix + N, E] -> [B, E]."""
        return tokens[:, 0] if self.config.pool == "token" else tokens[:, self.prefix :].mean(dim=1)

    def _embedded(
        self, x: Tensor, grid: tuple[int, ...], keep: Tensor | None, hide: Hide | None
    ) -> tuple[Tensor, Tensor | None]:
        """All tokens in front of the first block [B, prefix + N or K, E], and their rotary table."""
        tokens, rope = self._positioned(self._patches(x, keep), grid, keep, hide)
        heads = [self.cls_token] if self.reg_token is None else [self.cls_token, self.reg_token]
        return torch.cat([*(head.expand(x.shape[0], -1, -1) for head in heads), tokens], 1), rope

    def _patches(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """Embedded patches without positions: [B, N or K, E]."""
        return self.patch_embed(x, keep)

    def _positioned(
        self, tokens: Tensor, grid: tuple[int, ...], keep: Tensor | None, hide: Hide | None
    ) -> tuple[Tensor, Tensor | None]:
        """Patch tokens with hidden ones replaced and positions added, and the rotary table of all tokens."""
        config: ViT3D.Config = self.config
        axes = (1,) * (3 - len(grid)) + grid  # a picture is a volume of depth 1
        tokens = replace(tokens, hide)
        rope = None
        if config.positions != "rope":
            # In the precision of the parameters: under autocast the residual stream stays float32.
            table = sincos(axes, self.embed_dim, tokens.device).to(self.cls_token.dtype)
            tokens = tokens + (table if keep is None else table[keep])
        if config.positions != "sincos":
            table = rotations(axes, self.head_dim, config.rope_base, tokens.device)
            rope = table if keep is None else table[keep].unsqueeze(1)  # [B, 1, K, d]
            # Class and register tokens lie nowhere: they are turned by nothing (sine 0, cosine 1).
            still = table.new_zeros(self.prefix, table.shape[1])
            still[:, table.shape[1] // 2 :] = 1.0
            rope = torch.cat([still.expand(*rope.shape[:-2], -1, -1), rope], dim=-2)
        return tokens, rope

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`."""
        return list(self.blocks)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """[patch embedding, class and register tokens; block 0; ...; final norm]."""
        depth_of = {id(p): i for i, block in enumerate(self.blocks, 1) for p in block.parameters()}
        last = len(self.blocks) + 1
        depth_of |= {id(p): last for p in self.norm.parameters()}
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(last + 1)]
        for name, parameter in self.named_parameters():
            groups[depth_of.get(id(parameter), 0)].append((name, parameter))
        return groups

    def adopt(self, tensors: dict[str, Tensor], source: Encoder) -> list[str]:
        """See `Encoder.adopt`: timm's ViT has the same names, its Eva family (DINOv3) others."""
        done: list[str] = []
        for name in [name for name in tensors if name.startswith("patch_embed_2d.")]:
            del tensors[name]
            done.append(f"{name}: left out, it is for pictures")
        renamed = [name for name in tensors if name.rpartition(".")[2] in ("gamma_1", "gamma_2")]
        for name in renamed:
            tensors[f"{name.removesuffix('gamma_' + name[-1])}ls{name[-1]}.gamma"] = tensors.pop(name)
        weights = [name for name in tensors if name.endswith("attn.qkv.weight")]
        unbiased = [name for name in weights if name.replace("weight", "bias") not in tensors]
        for name in unbiased:
            attn, none = name.removesuffix("qkv.weight"), tensors[name].new_zeros(len(tensors[name]) // 3)
            query, value = (tensors.pop(f"{attn}{key}_bias", none) for key in "qv")
            tensors[f"{attn}qkv.bias"] = torch.cat([query, none, value])
        if renamed or unbiased:
            done.append(f"{len(renamed)} layer scales renamed, {len(unbiased)} biases completed with zeros")
        return done
