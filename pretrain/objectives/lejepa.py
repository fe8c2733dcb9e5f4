"""LeJEPA: views of an image agree, and all embeddings together look like a standard normal distribution.

Balestriero and LeCun, arXiv 2511.08544. No teacher, no predictor, no schedule and no stop of gradients: the
second term alone keeps the features from collapsing (losses/sigreg.py), and one weight trades it against the
first. That leaves little that can be set wrong, which is why it is robust at small scale, in any
architecture. Its loss follows linear probes closely, so that a run can be judged without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..heads import mlp
from ..losses.sigreg import directions, invariance, sigreg
from ..views import CropConfig
from . import crops as views
from .base import Batch, Facts, Objective, Output


class LeJEPA(Objective):
    """Invariance of views and SIGReg."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "lejepa"
        sigreg: float = 0.05  # weight of SIGReg; the agreement of views has the rest of 1
        directions: int = 1024  # random projections, new ones in each step
        knots: int = 17  # points of the integral over frequencies
        t_max: float = 3.0  # highest frequency
        hidden_dim: int = 2048  # of the projector, three layers
        out_dim: int = 128  # of the embeddings
        # Crops named "global" are the targets of all; empty: the presets lejepa (2D: 2 of 224² and 6 of 96²)
        # or lejepa-3d (2 of 96³ and 4 of 48³)
        crops: list[CropConfig] = field(default_factory=list)

    facts = Facts(
        title="agreement of views with Gaussian embeddings",
        paper="arXiv 2511.08544",
        predicts="the embedding of an image from each of its crops",
        good_for="frozen features at small scale; one weight to set, no teacher",
        cost="3: two large and six small views, forward and backward",
    )
    least_batch = 2

    def __init__(self, config: LeJEPA.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.crops = views.crops_for(config.crops, encoder, {2: "lejepa", 3: "lejepa-3d"})
        for ndim, number in views.count(self.crops).items():
            named = [crop.name for crop in self.crops[ndim]]
            if number < 2 or "global" not in named:
                raise ConfigError(
                    f"objective.crops: lejepa needs two views or more, one of them named 'global', not "
                    f"{number} named {', '.join(named)} in {ndim}D"
                )
        if not 0 < config.sigreg < 1:
            raise ConfigError(f"objective.sigreg is {config.sigreg}; a weight between 0 and 1, e.g. 0.05")
        if config.knots < 2 or config.t_max <= 0 or config.directions < 1:
            raise ConfigError(
                f"objective.knots {config.knots}, t_max {config.t_max}, directions {config.directions}: at "
                "least 2 points, a frequency above 0 and one direction"
            )
        hidden = config.hidden_dim
        self.projector = mlp([encoder.embed_dim, hidden, hidden, config.out_dim])

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return views.sizes_of(self.crops, crop)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `invariance` and `sigreg`, before their weights."""
        config = self.config
        made = views.make(batch, self.crops)
        features = views.pooled(made, encoder, batch)  # [V, B, E]
        embedded = self.projector(features.flatten(0, 1)).view(*features.shape[:2], -1)
        targets = [v for v, name in enumerate(views.names(made)) if name.startswith("global:")]
        agree = invariance(embedded, torch.stack([embedded[v] for v in targets]))
        toward = directions(batch.seed, batch.step, config.out_dim, config.directions, embedded.device)
        gauss = sigreg(embedded, toward, config.knots, config.t_max)
        loss = (1 - config.sigreg) * agree + config.sigreg * gauss
        terms = {"invariance": agree.detach(), "sigreg": gauss.detach()}
        seen = features.detach()
        return Output(loss, terms, seen[targets[0]], views=seen)

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """Some views beside their image."""
        return views.pictures(batch, self.crops)
