"""2D vision transformers of timm: ViT, DeiT, DINOv2-like (registers), and the Eva family with rotary
positions.

timm's classes are used as they are, with their parameter names, so that weights go both ways: an artefact
is read without medloom by `timm.create_model("local-dir:FOLDER", pretrained=True)` (its config.json is
written beside the weights), and `pretrained: true` starts from timm's weights. Only the forward pass is
ours, because masked objectives hand over the visible patches: with a mask of 75 % the blocks see a quarter
of the tokens.

Positions are resampled (bicubic, antialiased) to the grid of the images at hand, in each forward; at the
model's own grid that is the identity. The price of following timm: Swin and other windowed transformers do
not fit (they cannot leave tokens out) and are refused here; some of them work as `convnet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from .base import Encoder, Features, depths_of_pyramid
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
                "choose a vit_*, deit_* or eva02_* model, or encoder.name=convnet"
            )
        self.embed_dim = int(self.model.embed_dim)
        patch: Any = self.model.patch_embed.patch_size
        self.patch_size = (int(patch[0]), int(patch[1]))
        self.in_channels = config.in_channels
        self.stem = "model.patch_embed.proj.weight"
        self.prefix = int(self.model.num_prefix_tokens)

    def forward(self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False) -> Features:
        """See `Encoder.forward`; x is [B, C, H, W]. `pooled` is what timm's own `model(x)` gives."""
        grid = self.check(x, keep, pyramid)
        model = cast(Any, self.model)
        embedded = model._pos_embed(model.patch_embed(x))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        if keep is not None:
            tokens = torch.cat([tokens[:, : self.prefix], select(tokens[:, self.prefix :], keep)], dim=1)
            rope = None if rope is None else self._visible_rope(rope, keep)
        tokens = model.norm_pre(tokens)
        wanted = depths_of_pyramid(len(model.blocks)) if pyramid else []
        levels: list[Tensor] = []
        for depth, block in enumerate(model.blocks):
            tokens = block(tokens) if rope is None else block(tokens, rope=self._rope_of(rope, depth))
            levels += [tokens] * wanted.count(depth)
        tokens = model.norm(tokens)
        pooled = model.forward_head(tokens, pre_logits=True)
        return Features(
            pooled=pooled,
            tokens=tokens[:, self.prefix :],
            grid=None if keep is not None else grid,
            pyramid=[self._as_map(model.norm(level), grid) for level in levels] if pyramid else None,
        )

    def _as_map(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        """[B, prefix + N, E] -> [B, E, H, W] of the grid."""
        return tokens[:, self.prefix :].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)

    def _rope_of(self, rope: Tensor, depth: int) -> Tensor:
        """The rotary table of one block: mixed tables differ by block, axial ones are shared."""
        return rope[depth] if getattr(self.model, "rope_mixed", False) else rope

    def _visible_rope(self, rope: Tensor, keep: Tensor) -> Tensor:
        """Rotary tables of the visible patches, in the layouts that Eva's blocks broadcast.

        Axial [N, d] becomes [B, 1, K, d]; mixed [depth, heads, N, d] becomes [depth, B, heads, K, d].
        """
        visible = rope[..., keep, :]
        if visible.ndim == 3:
            return visible.unsqueeze(1)
        return visible.transpose(1, 2)

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


def select(tokens: Tensor, keep: Tensor) -> Tensor:
    """Tokens [B, N, E] at the indices keep [B, K] -> [B, K, E]."""
    return tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


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
