"""2D vision transformers of timm: ViT, DeiT, DINOv2-like (registers), and the Eva family with rotary
positions.

timm's classes are used as they are, with their parameter names, so that weights go both ways: an artefact
is read without medloom by `timm.create_model("local-dir:FOLDER", pretrained=True)` (its config.json is
written beside the weights), and `pretrained: true` starts from timm's weights. Only the forward pass is
ours, because masked objectives hand over the visible patches: with a mask of 75 % the patch embedding and
the blocks see a quarter of the tokens.

Positions are resampled (bicubic, antialiased) to the grid of the images at hand, in each forward; at the
model's own grid that is the identity. The price of following timm: Swin and other windowed transformers
cannot leave tokens out and are encoders of their own (`swin`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.errors import ConfigError
from .base import Encoder, Features, Hide, depths_of_pyramid
from .blocks import run_blocks
from .patches import Wanted, embed_some, parted, replace, select
from .timm_nets import create_timm, describe_for_timm, with_user_arguments


class ViT(Encoder):
    """Any timm VisionTransformer or Eva as an encoder of images."""

    @dataclass(kw_only=True)
    class Config:
        """Fields that are None keep what timm's `model` has."""

        name: str = "vit"
        model: str = "vit_small_patch16_224"  # timm name, with or without a tag of weights
        in_channels: int = 3
        img_size: int | None = None  # pixels a side for which positions are stored; other sizes are resampled
        patch_size: int | None = None  # pixels a side
        embed_dim: int | None = None
        depth: int | None = None  # blocks
        num_heads: int | None = None
        drop_path: float = 0.0  # stochastic depth rate of the last block
        pretrained: bool = False  # start from timm's weights (download)
        kwargs: dict[str, Any] = field(default_factory=dict)  # handed to timm.create_model as they are

    supports_keep = True
    supports_hide = True
    ndim = 2
    inner = "model."

    def __init__(self, config: ViT.Config) -> None:
        super().__init__(config)
        self.model = create_timm(config.model, timm_arguments(config), config.pretrained)
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        if not isinstance(self.model, VisionTransformer | Eva):
            raise ConfigError(
                f"encoder vit: {config.model} is a timm {type(self.model).__name__}, no plain transformer: "
                "choose a vit_*, deit_* or eva02_* model, or encoder.name=swin or convnet"
            )
        self.embed_dim = int(self.model.embed_dim)
        patch: Any = self.model.patch_embed.patch_size
        self.patch_size = (int(patch[0]), int(patch[1]))
        self.in_channels = config.in_channels
        self.stem = "model.patch_embed.proj.weight"
        self.prefix = int(self.model.num_prefix_tokens)

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        pyramid: bool = False,
        hide: Hide | None = None,
        only: Wanted | None = None,
    ) -> Features:
        """See `Encoder.forward`; x is [B, C, H, W]. `pooled` is what timm's own `model(x)` gives.

        `only` as in `some`.
        """
        grid = self.check(x, keep, pyramid, hide)
        model = cast(Any, self.model)
        tokens, rope = self._embed(x, grid, keep, hide)
        wanted = depths_of_pyramid(len(model.blocks)) if pyramid else []
        mixed = getattr(model, "rope_mixed", False)  # tables that differ by block
        early = only is not None and self._pools_token()
        tokens, levels = run_blocks(
            model.blocks,
            model.norm_pre(tokens),
            rope=list(rope) if rope is not None and mixed else rope,
            levels=wanted,
            recompute=self.recompute,
            only=only.behind(self.prefix) if only is not None and early else None,
        )
        first, tokens = parted(model.norm(tokens), self.prefix, only, early)
        return Features(
            pooled=model.forward_head(first, pre_logits=True),
            tokens=tokens,
            grid=grid if keep is None and only is None else None,
            pyramid=[self._as_map(model.norm(level), grid) for level in levels] if pyramid else None,
        )

    def some(self, x: Tensor, only: Wanted, keep: Tensor | None = None, hide: Hide | None = None) -> Features:
        """See `Encoder.some`."""
        return self(x, keep, hide=hide, only=only)

    def last(self, x: Tensor, count: int) -> list[Features]:
        """See `Encoder.last`."""
        grid = self.check(x)
        model = cast(Any, self.model)
        tokens, rope = self._embed(x, grid, None, None)
        mixed = rope is not None and getattr(model, "rope_mixed", False)
        depth = len(model.blocks)
        _, levels = run_blocks(
            model.blocks,
            model.norm_pre(tokens),
            rope=list(rope) if rope is not None and mixed else rope,
            levels=range(max(0, depth - count), depth),
        )
        normed = [model.norm(level) for level in levels]
        return [
            Features(model.forward_head(level, pre_logits=True), level[:, self.prefix :], grid)
            for level in normed
        ]

    def _pools_token(self) -> bool:
        """Whether the class token alone is what `pooled` is made of."""
        model = cast(Any, self.model)
        return model.global_pool == "token" and getattr(model, "attn_pool", None) is None

    def _embed(
        self, x: Tensor, grid: Sequence[int], keep: Tensor | None, hide: Hide | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens with positions [B, prefix + N or K, E], and the rotary tables of a model that has them."""
        model = cast(Any, self.model)
        if keep is None:
            return self._with_positions(replace(model.patch_embed(x), hide))
        if not self._embeds_some():
            tokens, rope = self._with_positions(model.patch_embed(x))
            tokens = torch.cat([tokens[:, : self.prefix], select(tokens[:, self.prefix :], keep)], dim=1)
        else:
            # timm adds prefix tokens and positions to a whole grid: let it, to a grid of zeros.
            zeros = next(model.parameters()).new_zeros(1, *grid, self.embed_dim)
            table, rope = self._with_positions(zeros)
            visible = embed_some(model.patch_embed.proj, x, keep)
            visible = visible + functional.embedding(keep, table[0, self.prefix :])
            tokens = torch.cat([table[:, : self.prefix].expand(len(x), -1, -1), visible], dim=1)
        return tokens, None if rope is None else self._visible_rope(rope, keep)

    def _with_positions(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """timm's tokens with prefix and positions: Eva gives rotary tables beside them, ViT does not."""
        embedded = cast(Any, self.model)._pos_embed(tokens)
        return embedded if isinstance(embedded, tuple) else (embedded, None)

    def _embeds_some(self) -> bool:
        """Whether a part of the patches can be embedded without the others."""
        from timm.layers import PatchEmbed

        model = cast(Any, self.model)
        patch = model.patch_embed
        plain = type(patch) is PatchEmbed and isinstance(patch.norm, nn.Identity)
        return plain and not (self.training and model.pos_drop.p)

    def _as_map(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """[B, prefix + N, E] -> [B, E, H, W] of the grid."""
        return tokens[:, self.prefix :].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)

    def _visible_rope(self, rope: Tensor, keep: Tensor) -> Tensor:
        """Rotary tables of the visible patches, in the layouts that Eva's blocks broadcast.

        Axial [N, d] becomes [B, 1, K, d]; mixed [depth, heads, N, d] becomes [depth, B, heads, K, d].
        """
        visible = rope[..., keep, :]
        if visible.ndim == 3:
            return visible.unsqueeze(1)
        return visible.transpose(1, 2)

    def units(self) -> list[nn.Module]:
        """See `Encoder.units`."""
        return list(cast(Any, self.model).blocks)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """[embeddings and positions, block 0, ..., block L-1, final norms and pooling]."""
        model = cast(Any, self.model)
        blocks = {
            id(p): depth
            for depth, block in enumerate(model.blocks, 1)
            for p in cast(nn.Module, block).parameters()
        }
        tail = [getattr(model, name, None) for name in ("norm", "fc_norm", "attn_pool", "head")]
        last = len(model.blocks) + 1
        final = {id(p): last for part in tail if isinstance(part, nn.Module) for p in part.parameters()}
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(last + 1)]
        for name, parameter in self.named_parameters():
            groups[(blocks | final).get(id(parameter), 0)].append((name, parameter))
        return groups

    def timm_config(self) -> dict[str, Any]:
        """See `Encoder.timm_config`."""
        return describe_for_timm(self, timm_arguments(self.config))


def timm_arguments(config: ViT.Config) -> dict[str, Any]:
    """Arguments of `timm.create_model` beyond name and weights."""
    arguments: dict[str, Any] = {"in_chans": config.in_channels, "num_classes": 0, "dynamic_img_size": True}
    for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
        value = getattr(config, name)
        if value is not None:
            arguments[name] = value
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    return with_user_arguments(arguments, config.kwargs)
