"""MoCo v3: a view's query finds the key that a slow copy of the network makes of another view.

Chen, Xie and He, arXiv 2104.02057. Both views are query and key in turn; a predictor stands on the query's
side alone and no gradient goes through the keys, which steadies small batches where SimCLR needs large ones.
The keys of all ranks are negatives. Of transformers the patch embedding stays as it was drawn (section 4.2):
its gradient spikes are what throws contrastive training of ViTs off, and nothing is lost. The price over
SimCLR is one more forward pass and a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..heads import mlp
from ..losses.contrastive import info_nce
from ..schedules import cosine
from ..teacher import Teacher
from ..views import CropConfig
from . import crops as views
from .base import Batch, Facts, Objective, Output


class MoCoV3(Objective):
    """Momentum contrast, symmetric, without a queue."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "mocov3"
        temperature: float = 0.2  # divides cosines
        momentum: float = 0.99  # of the key encoder at the first step; rises to 1 by half a cosine
        hidden_dim: int = 4096  # of projector and predictor
        out_dim: int = 256
        freeze_stem: bool = True  # hold the patch embedding of a transformer still; convolutions learn theirs
        # Two crops; empty: the presets mocov3 (2D: 2 of 224², area 0.08-1) or simclr-3d (2 of 96³, 0.3-1)
        crops: list[CropConfig] = field(default_factory=list)

    facts = Facts(
        title="momentum contrast",
        paper="arXiv 2104.02057",
        predicts="which key of a slow copy of the network shows the same image",
        good_for="fine-tuned classification and regression, with smaller batches than SimCLR",
        cost="2.5: two views, forward and backward, and two forward passes of the momentum encoder",
    )
    least_batch = 2

    def __init__(self, config: MoCoV3.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.crops = views.crops_for(config.crops, encoder, {2: "mocov3", 3: "simclr-3d"})
        for ndim, number in views.count(self.crops).items():
            if number != 2:
                raise ConfigError(f"objective.crops: mocov3 compares 2 views, not {number} in {ndim}D")
        if not 0 <= config.momentum <= 1 or config.temperature <= 0:
            raise ConfigError(
                f"objective.momentum {config.momentum} and temperature {config.temperature}: the first lies "
                "from 0 to 1, the second above 0"
            )
        transformer = not encoder.convolutional and (encoder.supports_keep or encoder.supports_hide)
        if config.freeze_stem and transformer:
            freeze_stem(encoder)
        hidden, out = config.hidden_dim, config.out_dim
        depth = [hidden, hidden] if transformer else [hidden]  # as the paper: 3 layers on ViT, 2 on ResNet
        self.projector = mlp([encoder.embed_dim, *depth, out], last_norm="batch", last_affine=False)
        self.predictor = mlp(
            [out, hidden, out], last_norm="batch" if transformer else "none", last_affine=False
        )
        self.teacher = Teacher(encoder=encoder, projector=self.projector)

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return views.sizes_of(self.crops, crop)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `contrast`, the loss itself."""
        made = views.make(batch, self.crops)
        features = views.pooled(made, encoder, batch)  # [2, B, E]
        queries = self.predictor(self.projector(features.flatten(0, 1))).chunk(2)
        with torch.no_grad():
            slow = views.pooled(made, self.teacher.get_submodule("encoder"))  # type: ignore[arg-type]
            keys = self.teacher.get_submodule("projector")(slow.flatten(0, 1)).chunk(2)
        temperature = self.config.temperature
        loss = info_nce(queries[0], keys[1], temperature) + info_nce(queries[1], keys[0], temperature)
        seen = features.detach()
        return Output(loss, {"contrast": loss.detach()}, seen[0], views=seen)

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move the key encoder; its momentum rises from `momentum` to 1."""
        momentum = cosine(step, steps, self.config.momentum, 1.0)
        self.teacher.update(momentum, encoder=encoder, projector=self.projector)

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """The two views beside their image."""
        return views.pictures(batch, self.crops)


def freeze_stem(encoder: Encoder) -> None:
    """Hold the layers that meet the pixels at their values: one, or one for pictures and one for volumes."""
    for stem in encoder.stems:
        encoder.get_submodule(stem.rpartition(".")[0]).requires_grad_(False)
