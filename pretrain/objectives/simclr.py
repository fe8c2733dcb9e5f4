"""SimCLR: two views of an image are told from the views of all other images.

Chen et al., arXiv 2002.05709. The simplest contrastive method and a strong one where batches are large: what
counts as different is only what else is in the batch, so the negatives come from all ranks (nnssl and VoCo
forget that) and the projector's batch norms count all ranks too. In volumes two overlapping boxes of one
image are the views (CT-FM, nnssl). Where the same anatomy fills every image, negatives are hardly different
and the method learns the scanner instead: MoCo v3 or LeJEPA are kinder there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..heads import mlp
from ..losses.contrastive import nt_xent
from ..views import CropConfig
from . import crops as views
from .base import Batch, Facts, Objective, Output


class SimCLR(Objective):
    """Two views, one projector, NT-Xent."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "simclr"
        temperature: float = 0.1  # divides cosines; 0.5 where batches are below some hundred
        hidden_dim: int = 2048  # of the projector
        out_dim: int = 128  # of the embeddings that are compared
        # Two crops; empty: the presets simclr (2D: 2 of 224², area 0.08-1) or simclr-3d (2 of 96³, 0.3-1)
        crops: list[CropConfig] = field(default_factory=list)

    facts = Facts(
        title="contrast of two views",
        paper="arXiv 2002.05709",
        predicts="which of all views in the batch shows the same image",
        good_for="fine-tuned classification and regression; wants large batches",
        cost="2: two views, forward and backward",
    )
    least_batch = 2

    def __init__(self, config: SimCLR.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.crops = views.crops_for(config.crops, encoder, {2: "simclr", 3: "simclr-3d"})
        for ndim, number in views.count(self.crops).items():
            if number != 2:
                raise ConfigError(f"objective.crops: simclr compares 2 views, not {number} in {ndim}D")
        if config.temperature <= 0:
            raise ConfigError(f"objective.temperature is {config.temperature}; it must be above 0")
        self.projector = mlp([encoder.embed_dim, config.hidden_dim, config.out_dim], last_norm="batch")

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return views.sizes_of(self.crops, crop)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `contrast`, the loss itself."""
        features = views.pooled(views.make(batch, self.crops), encoder, batch)  # [2, B, E]
        first, second = self.projector(features.flatten(0, 1)).chunk(2)
        loss = nt_xent(first, second, self.config.temperature)
        seen = features.detach()
        return Output(loss, {"contrast": loss.detach()}, seen[0], views=seen)

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """The two views beside their image."""
        return views.pictures(batch, self.crops)
