"""I-JEPA: predict the teacher's features of some blocks of an image from those of a block around them.

Assran et al., arXiv 2301.08243. The encoder computes the context's tokens only, a narrow predictor fills in
each target block, and the teacher (a slow average of the encoder) sees the whole image. No pixel is
predicted and no hand-made augmentation needed, which suits mixed modalities. In 3D blocks have the same
share of the volume, and the sides of the grid's proportions.

A class token learns little here, since nothing is asked of it: pool the tokens (`encoder.kwargs` with
`global_pool: avg` for timm's transformers); the diagnostics look at the mean of the teacher's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from ..encoders.base import Encoder, Features
from ..encoders.blocks import run_blocks
from ..encoders.patches import Wanted, select
from ..encoders.positions import sincos
from ..losses.jepa import jepa_loss
from ..multiblock import Blocks, multi_block
from ..pixels import expand_mask
from ..schedules import linear
from ..teacher import Teacher
from ..views import ViewConfig, random_view
from .base import Batch, Facts, Objective, Output


class IJEPA(Objective):
    """Joint-embedding prediction around an encoder that can compute a part of the tokens."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "ijepa"
        targets: int = 4  # blocks to predict
        target_scale: list[float] = field(default_factory=lambda: [0.15, 0.2])  # share of the grid
        target_aspect: list[float] = field(default_factory=lambda: [0.75, 1.5])
        context_scale: list[float] = field(default_factory=lambda: [0.85, 1.0])  # block of the context
        context: float = 0.25  # share of the grid that is left of it without the targets, and computed
        predictor_dim: int = 384
        predictor_depth: int = 6  # blocks; 12 in the paper's largest
        predictor_heads: int = 12
        momentum: list[float] = field(default_factory=lambda: [0.996, 1.0])  # of the teacher, linear
        view: ViewConfig = field(default_factory=lambda: ViewConfig(flip=0.0))  # nothing, as in the paper

    facts = Facts(
        title="image-based joint-embedding prediction",
        paper="arXiv 2301.08243",
        predicts="the teacher's features of hidden blocks from a block around them",
        good_for="frozen features without hand-made augmentation: mixed modalities; wants large images",
        cost="0.8 with a transformer: a quarter of the tokens, a narrow predictor, a pass of the teacher",
    )

    def __init__(self, config: IJEPA.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        from timm.models.vision_transformer import Block

        dim, heads = config.predictor_dim, config.predictor_heads
        if dim % heads:
            raise ConfigError(f"objective.predictor_dim {dim} is not a multiple of {heads} predictor_heads")
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        norm = cast(Any, partial(nn.LayerNorm, eps=1e-6))
        self.blocks = nn.ModuleList(
            Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(config.predictor_depth)
        )
        self.norm = norm(dim)
        self.predict = nn.Linear(dim, encoder.embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.teacher = Teacher(encoder=encoder)

    @classmethod
    def refuses(cls, encoder: Encoder) -> str | None:
        """See `Objective.refuses`."""
        if not encoder.supports_keep:
            return (
                "its context encoder computes some tokens without seeing the others, which this one cannot: "
                "choose a plain transformer, or objective.name=spark or simmim"
            )
        return super().refuses(encoder)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `jepa`, and `target_std`, the spread of the teacher's tokens."""
        image = self.view(batch)
        blocks = self.draw(batch, encoder)
        with torch.no_grad():
            teacher: Features = cast(Any, self.teacher.encoder)(image)
            target = select(teacher.tokens, blocks.targets.flatten(1)).unflatten(1, blocks.targets.shape[1:])
        context = encoder(image, keep=blocks.context)
        predicted = self.fill_in(context.tokens, blocks, encoder.grid(image.shape[2:]))
        loss = jepa_loss(predicted, target)
        total = loss + 0.0 * context.pooled.float().sum()  # what only pooling uses gets a gradient, too
        spread = teacher.tokens.float().flatten(0, 1).std(dim=0).mean()
        terms = {"jepa": loss.detach(), "target_std": spread}
        return Output(total, terms, teacher.tokens.mean(dim=1))

    def view(self, batch: Batch) -> Tensor:
        """The images [B, C, *spatial], augmented where the configuration says so."""
        return random_view(
            batch.image, self.config.view, batch.seed, batch.keys, spacing=batch.spacing,
            modality=batch.modality, limits=batch.limits, stream="ijepa",
        )  # fmt: skip

    def draw(self, batch: Batch, encoder: Encoder) -> Blocks:
        """Context and targets of this batch."""
        c: IJEPA.Config = self.config
        size = list(c.view.size) or batch.image.shape[2:]
        return multi_block(
            batch.seed, batch.keys, encoder.grid(size), targets=c.targets, scale=c.target_scale,
            aspect=c.target_aspect, context=c.context, context_scale=c.context_scale,
            device=batch.image.device,
        )  # fmt: skip

    def fill_in(self, context: Tensor, blocks: Blocks, grid: tuple[int, ...]) -> Tensor:
        """Predict each target block by itself: tokens [B, K, E] of the context -> [B, T, M, E]."""
        batch, count, size = blocks.targets.shape
        table = sincos(grid, self.config.predictor_dim, context.device)
        places = table.index_select(0, blocks.targets.flatten()).unflatten(0, (batch * count, size))
        around = table.index_select(0, blocks.context.flatten()).unflatten(0, (batch, -1))
        known = (self.embed(context) + around).repeat_interleave(count, dim=0)
        x = torch.cat([known, (self.mask_token + places).to(known.dtype)], dim=1)
        last = torch.arange(x.shape[1] - size, x.shape[1], device=x.device).expand(len(x), -1)
        x, _ = run_blocks(self.blocks, x, only=Wanted(last))
        return self.predict(self.norm(x)).unflatten(0, (batch, count))

    @torch.no_grad()
    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """What the encoder computes of each image, and the blocks to predict; everything else is 0."""
        image, blocks = self.view(batch), self.draw(batch, encoder)
        grid = encoder.grid(image.shape[2:])
        shown = {"input": image}
        for name, index in (("context", blocks.context), ("targets", blocks.targets.flatten(1))):
            away = torch.ones(len(image), math.prod(grid), dtype=torch.bool, device=image.device)
            away = expand_mask(away.scatter(1, index, False), grid, encoder.patch_of(len(grid)))
            shown[name] = image.masked_fill(away, 0.0)
        return shown

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move the teacher."""
        self.teacher.update(linear(step, steps, *self.config.momentum), encoder=encoder)

    def released(self, encoder: Encoder) -> Encoder:
        """The teacher's encoder."""
        return self.teacher.encoder  # type: ignore[return-value]
