"""The pretext tasks of SwinUNETR: which way up, which is the same volume, and what was painted over.

Tang et al., arXiv 2111.14791. Each volume is turned twice by quarter turns about its first axis and partly
painted over, with noise and with boxes of another volume of the batch; one network names both turns, tells
the pairs from all other volumes of all ranks, and restores the turned volumes. Three weak tasks instead of
one strong: the independent benchmark of OpenMind finds it behind masked autoencoding for segmentation and
ahead of it for classification.

The boxes from another volume come from the next one in the batch of this rank, so that the corrupted voxels,
unlike every other draw, depend on what else the rank holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.draws import normal_torch
from ...data.errors import ConfigError
from ..decoders import PixelDecoder
from ..encoders.base import Encoder
from ..losses.contrastive import nt_xent
from ..views import ViewConfig, random_view
from ..views.blocks import random_blocks
from ..views.turns import random_quarter_turns
from .base import Batch, Facts, Objective, Output


class SwinUNETRPretext(Objective):
    """Rotation, contrast and in-painting, with equal weights."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "swinunetr"
        rotation: float = 1.0  # weight of naming the quarter turn
        contrast: float = 1.0  # weight of telling pairs from others
        reconstruction: float = 1.0  # weight of the mean absolute error of all voxels
        temperature: float = 0.5  # of the contrast
        noise_share: float = 0.3  # of the volume that is painted over with noise
        swap_share: float = 0.3  # of the volume that comes from another one
        block_side: list[float] = field(default_factory=lambda: [0.05, 0.25])  # of the volume's side
        contrast_dim: int = 512
        decoder_width: int = 16  # channels at full resolution
        # Before the turns, for both copies by itself; flips would make some turns ambiguous.
        view: ViewConfig = field(default_factory=lambda: ViewConfig(flip=0.0))

    facts = Facts(
        title="rotation, contrast and in-painting",
        paper="arXiv 2111.14791",
        predicts="the quarter turn, the other copy, and the volume before it was painted over",
        good_for="fine-tuned classification of volumes; comparisons with published SwinUNETR weights",
        cost="2.5: two copies, forward and backward, and a decoder at full resolution",
    )
    ndims = (3,)
    least_batch = 2

    def __init__(self, config: SwinUNETRPretext.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if min(config.rotation, config.contrast, config.reconstruction) <= 0:
            raise ConfigError("objective.rotation, contrast and reconstruction are weights, above 0")
        if not (0 <= config.noise_share < 1 and 0 <= config.swap_share < 1):
            raise ConfigError(
                f"objective.noise_share {config.noise_share} and swap_share {config.swap_share}: from 0 to 1"
            )
        if len(config.block_side) != 2 or not 0 < config.block_side[0] <= config.block_side[1] <= 1:
            raise ConfigError(
                f"objective.block_side is {config.block_side}: two shares, 0 < low <= high <= 1"
            )
        self.rotation_head = nn.Linear(encoder.embed_dim, 4)
        self.contrast_head = nn.Linear(encoder.embed_dim, config.contrast_dim)
        self.decoder = PixelDecoder(encoder, encoder.in_channels, config.decoder_width, ndim=3)

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`. Raises ConfigError for a crop that a quarter turn does not fit."""
        if len(crop) != 3 or crop[1] != crop[2]:
            side = min(crop[1:])
            raise ConfigError(
                f"objective swinunetr turns volumes in the plane, and a crop of {list(crop)} is not square "
                f"there: set data.crop={[crop[0], side, side]}"
            )
        return [tuple(crop)]

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: the three losses before their weights, and `rotation_accuracy`."""
        config = self.config
        corrupted, clean, turns = self.corrupt(batch)
        features = encoder(corrupted, pyramid=True)
        logits = self.rotation_head(features.pooled).float()
        rotation = functional.cross_entropy(logits, turns)
        first, second = self.contrast_head(features.pooled).chunk(2)
        contrast = nt_xent(first, second, config.temperature)
        restored = self.decoder(features)
        reconstruction = (restored.float() - clean).abs().mean()
        loss = config.rotation * rotation + config.contrast * contrast
        loss = loss + config.reconstruction * reconstruction
        terms = {"rotation": rotation, "contrast": contrast, "reconstruction": reconstruction,
                 "rotation_accuracy": (logits.argmax(dim=1) == turns).float().mean()}  # fmt: skip
        views = features.pooled.detach().view(2, len(batch.image), -1)
        return Output(loss, {k: v.detach() for k, v in terms.items()}, views[0], views=views)

    def corrupt(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Both copies of each volume: corrupted and clean [2 B, C, D, H, W], and their turns int64 [2 B]."""
        self.sizes(batch.image.shape[2:])
        corrupted, clean, turns = [], [], []
        for copy in range(2):
            stream = f"swinunetr:{copy}"
            x = random_view(
                batch.image, self.config.view, batch.seed, batch.keys, spacing=batch.spacing,
                modality=batch.modality, limits=batch.limits, stream=stream,
            )  # fmt: skip
            x, turn = random_quarter_turns(x, batch.seed, batch.keys, stream=f"{stream}:turn")
            clean.append(x)
            turns.append(turn)
            corrupted.append(self._painted(x, batch, stream))
        return torch.cat(corrupted), torch.cat(clean), torch.cat(turns)

    def _painted(self, x: Tensor, batch: Batch, stream: str) -> Tensor:
        """Boxes of noise with the mean and the deviation of the volume, then boxes of the next volume."""
        config = self.config
        axes = tuple(range(2, x.ndim))
        noise = normal_torch(batch.seed, f"{stream}:noise", batch.position, x[0].numel(), device=x.device)
        mean, deviation = x.mean(dim=axes, keepdim=True), x.std(dim=axes, keepdim=True)
        filled = noise.view_as(x) * deviation + mean
        painted = x
        for name, share, other in (
            ("drop", config.noise_share, filled),
            ("swap", config.swap_share, x.roll(1, 0)),
        ):
            if share:
                where = random_blocks(
                    x, batch.seed, batch.keys, share=share, side=config.block_side, stream=f"{stream}:{name}"
                )
                painted = torch.where(where, other, painted)
        return painted

    @torch.no_grad()
    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """`input`, and of its first copy `turned`, `corrupted` and `reconstruction`."""
        corrupted, clean, _ = self.corrupt(batch)
        count = len(batch.image)
        restored = self.decoder(encoder(corrupted[:count], pyramid=True)).float()
        return {"input": batch.image, "turned": clean[:count], "corrupted": corrupted[:count],
                "reconstruction": restored}  # fmt: skip
