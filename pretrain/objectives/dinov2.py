"""DINOv2: DINO on pooled features, iBOT on hidden tokens, KoLeo against crowding; DINOv3's Gram anchoring.

Oquab et al., arXiv 2304.07193, with the numbers of the published configuration; 3DINO (arXiv 2501.11755) has
shown the same in 3D. The student's global crops have tokens hidden behind the patch embedding. Only hidden
ones are compared, so only these go through the token head and, with the class tokens, through the last block
of student and teacher. `gram.weight` above 0 adds the anchoring of DINOv3 (arXiv 2508.10104); its
high-resolution phase is a run of its own (base-dinov2-highres-2d): `init_from` the first run, whose heads
come along, larger crops, and `gram.snapshot=0`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from ..anchor import GramAnchor, GramConfig
from ..encoders.base import Encoder, Features, Hide
from ..encoders.patches import Wanted
from ..heads import DINOHead
from ..losses.dino import Centre
from ..losses.ibot import ibot_loss
from ..multiblock import Hidden, ibot_mask
from ..views import Crops
from . import crops as views
from .base import Batch, Facts, Output
from .dino import DINO


class DINOv2(DINO):
    """Self-distillation on pooled features and hidden tokens."""

    @dataclass(kw_only=True)
    class Config(DINO.Config):
        """Fields of the `objective` section beside those of `dino`."""

        name: str = "dinov2"
        teacher_temperature: list[float] = field(default_factory=lambda: [0.04, 0.07])
        momentum: list[float] = field(default_factory=lambda: [0.992, 1.0])
        koleo_weight: float = 0.1
        ibot_weight: float = 1.0
        shared_head: bool = False  # one head for pooled features and tokens
        mask_share: float = 0.5  # of the global crops that have tokens hidden
        mask_ratio: list[float] = field(default_factory=lambda: [0.1, 0.5])  # of their tokens, uniform
        mask_blocks: bool = True  # False: single tokens, as 3DINO
        gram: GramConfig = field(default_factory=GramConfig)

    facts = Facts(
        title="DINO with masked tokens and even features",
        paper="arXiv 2304.07193",
        predicts="the teacher's prototypes of views, and of hidden tokens",
        good_for="frozen features for whole images and for patches; wants large batches and long runs",
        cost="4 with 2 large and 8 small views, beside 65,536 prototypes for each hidden token",
    )

    def __init__(self, config: DINOv2.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if not 0 < config.mask_share <= 1 or config.ibot_weight <= 0:
            raise ConfigError(
                f"objective.mask_share {config.mask_share} and ibot_weight {config.ibot_weight}: above "
                "0, and mask_share at most 1; without hidden tokens the method is objective.name=dino"
            )
        if any(crop.visible < 1 for crops in self.crops.values() for crop in crops):
            raise ConfigError("objective.crops: visible is for dino; dinov2 hides tokens and sees all places")
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.token_dim))
        self.token_centre = Centre(config.prototypes, config.centre_momentum) if self.centred else None
        self.anchor = GramAnchor(config.gram, encoder) if config.gram.weight else None

    @classmethod
    def refuses(cls, encoder: Encoder) -> str | None:
        """See `Objective.refuses`."""
        if not encoder.supports_hide:
            return (
                "it hides tokens behind the patch embedding, and this encoder has none there: choose a "
                "transformer, or objective.name=dino, which works on pooled features alone"
            )
        return super().refuses(encoder)

    def new_heads(self, encoder: Encoder) -> dict[str, DINOHead]:
        """One for pooled features and one for tokens, or one for both."""
        heads = super().new_heads(encoder)
        return (
            heads if self.config.shared_head else heads | {"token_head": super().new_heads(encoder)["head"]}
        )

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        sizes = super().sizes(crop)
        return sizes if self.anchor is None else [*sizes, *self.anchor.sizes(sizes[0])]

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: those of `DINO.step`, `ibot`, and `gram` once it counts."""
        groups = views.make(batch, self.crops)
        seen = self.seen(groups)
        hidden, wanted = self.hide(groups[0], len(seen), batch, encoder)
        with torch.no_grad():
            teacher: Features = self.averaged("encoder").some(seen, wanted.first(len(seen)))
        anchored = self.anchor is not None and self.anchor.counts(batch.step, batch.steps)
        hide = Hide(self._padded(hidden.mask, groups[0]), self.mask_token)
        image = groups[0].image
        large = encoder(image, hide=hide) if anchored else encoder.some(image, wanted, hide=hide)
        pooled = torch.cat([large.pooled, *(encoder.embed(group.image) for group in groups[1:])])
        loss, terms = self.agree(pooled, teacher.pooled, batch)
        mine = wanted.pick(large.tokens) if anchored else large.tokens
        value = self.tokens_agree(mine, teacher.tokens, hidden, batch)
        loss, terms["ibot"] = loss + self.config.ibot_weight * value, value.detach()
        if self.anchor is not None and anchored:
            crops = [crop for crop in self.crops[batch.image.ndim - 2] if crop.name == "global"]
            value = self.anchor.loss(large.tokens[: len(seen)], seen, batch, crops)
            loss, terms["gram"] = loss + self.config.gram.weight * value, value.detach()
        return self.output(loss, terms, teacher.pooled, len(batch.image))

    def tokens_agree(self, student: Tensor, teacher: Tensor, hidden: Hidden, batch: Batch) -> Tensor:
        """iBOT's loss of the tokens [M, E] at the hidden places."""
        head = "head" if self.config.shared_head else "token_head"
        with torch.no_grad():
            logits = self.averaged(head)(teacher)
            targets = self.assign(logits, batch, self.token_centre, hidden.weight > 0)
        logits = self.heads()[head](student)
        return ibot_loss(logits, targets, hidden.weight, len(hidden.mask), self.config.student_temperature)

    def hide(self, crops: Crops, rows: int, batch: Batch, encoder: Encoder) -> tuple[Hidden, Wanted]:
        """Hidden tokens of the global crops, each drawn from a stream of its own; and where to find them."""
        c: DINOv2.Config = self.config
        grid, device = encoder.grid(crops.image.shape[2:]), crops.image.device
        drawn = [
            ibot_mask(
                batch.seed, batch.keys, grid, ratio=c.mask_ratio, probability=c.mask_share,
                blocks=c.mask_blocks, stream=f"ibot:{name}",
            )
            for name in crops.names[: rows // len(batch.image)]
        ]  # fmt: skip
        hidden = Hidden.joined(drawn)
        wanted = hidden.wanted(math.ceil(c.mask_ratio[1] * math.prod(grid)), len(crops.image))
        return hidden.to(device), wanted.to(device)

    def _padded(self, mask: Tensor, crops: Crops) -> Tensor:
        """The mask with nothing hidden in local crops of the same size, where there are any."""
        rest = len(crops.image) - len(mask)
        return mask if not rest else torch.cat([mask, mask.new_zeros(rest, mask.shape[1])])

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move teacher and centres, then take the snapshots that are due."""
        super().after_update(step, steps, encoder)
        if self.anchor is not None:
            self.anchor.follow(step, steps, self.averaged("encoder"))
