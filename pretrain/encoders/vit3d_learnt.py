"""3D vision transformer with a learnt table of positions: 3DINO's, BrainIAC's, and MONAI's ViT.

`vit3d` computes its positions; networks that others trained often hold them in a table for one grid
(`img_size` / `patch_size`), which is resampled (trilinear) for other grids in each forward. Blocks and names
are those of `vit3d`, and so of timm. The price of a table is that a crop of another size meets positions that
were never trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.errors import ConfigError
from .base import Encoder, Hide
from .patches import replace
from .vit3d import ViT3D


class ViT3DLearnt(ViT3D):
    """Plain transformer over the patches of a volume, positions from a table."""

    @dataclass(kw_only=True)
    class Config(ViT3D.Config):
        """Fields of `ViT3D.Config`; `positions` and `rope_base` are not used."""

        name: str = "vit3d_learnt"
        img_size: list[int] = field(default_factory=lambda: [96, 96, 96])  # voxels of the table (D, H, W)
        class_token: bool = True  # False: MONAI's without classification; needs pool: mean
        norm_eps: float = 1e-6  # of the layer norms; MONAI has 1e-5

    def __init__(self, config: ViT3DLearnt.Config) -> None:
        from timm.layers import trunc_normal_

        if not config.class_token and config.pool == "token":
            raise ConfigError("encoder.pool: token, but class_token is false: set encoder.pool=mean")
        super().__init__(config)
        self.stored = self.grid(config.img_size)
        self.heads = 1 if config.class_token else 0
        if not config.class_token:
            self.register_parameter("cls_token", None)
            self.prefix -= 1
        cells = self.stored[0] * self.stored[1] * self.stored[2]
        self.pos_embed = nn.Parameter(torch.zeros(1, self.heads + cells, self.embed_dim))
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config.norm_eps

    def _embedded(
        self, x: Tensor, grid: tuple[int, ...], keep: Tensor | None, hide: Hide | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `ViT3D._embedded`."""
        head, table = self.pos_embed[:, : self.heads], self.pos_embed[:, self.heads :]
        table = resampled(table, self.stored, grid)
        tokens = replace(self._patches(x, keep), hide)
        tokens = tokens + (table if keep is None else functional.embedding(keep, table[0]))
        first = [] if not self.heads else [self.cls_token + head]
        first += [] if self.reg_token is None else [self.reg_token]
        return torch.cat([*(part.expand(x.shape[0], -1, -1) for part in first), tokens], dim=1), None

    def adopt(self, tensors: dict[str, Tensor], source: Encoder) -> list[str]:
        """See `Encoder.adopt`: a table of another grid is resampled."""
        done = super().adopt(tensors, source)
        if isinstance(source, ViT3DLearnt) and source.stored != self.stored and "pos_embed" in tensors:
            table = tensors["pos_embed"]
            head, table = table[:, : source.heads], table[:, source.heads :]
            tensors["pos_embed"] = torch.cat([head, resampled(table, source.stored, self.stored)], dim=1)
            done.append(f"pos_embed: grid {source.stored} -> {self.stored}")
        return done


def resampled(table: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """A table of positions [1, N, E] of the grid `old` for the grid `new`, trilinear."""
    if tuple(old) == tuple(new):
        return table
    cells = table.transpose(1, 2).reshape(1, -1, *old)
    cells = functional.interpolate(cells, size=tuple(new), mode="trilinear", align_corners=False)
    return cells.flatten(2).transpose(1, 2)
