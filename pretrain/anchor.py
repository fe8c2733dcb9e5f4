"""The Gram teacher: a snapshot of the averaged encoder, whose similarities between patches are held.

DINOv3, arXiv 2508.10104, section 4. Dense features get worse in long runs while pooled ones still improve; a
snapshot from before that happened keeps the similarities of the patches of an image, not the features
themselves. With `scale` 2 it sees the same crops at twice the resolution and without changes of intensity,
and its smoother features are brought to the student's grid (section 4.3). The price is one more forward pass
on the global crops (4 to 16 times as dear at `scale` 2) once it is on, and one more copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.errors import ConfigError
from .encoders.base import Encoder
from .losses.gram import gram_loss, resample_tokens
from .objectives.base import Batch
from .teacher import Teacher
from .views import CropConfig, multi_crop
from .views.config import PROBABILITIES


@dataclass(kw_only=True)
class GramConfig:
    """Gram anchoring, off by default; shares are of the steps of the run."""

    weight: float = 0.0  # 0: off; DINOv3 has 2
    snapshot: float = 0.2  # share after which the snapshot is taken; 0: the weights that the run starts with
    start: float = 0.7  # share from which the loss counts
    every: float = 0.0  # from `start` on, a new snapshot after this share (DINOv3: 0.01); 0: never
    scale: float = 1.0  # resolution of what the Gram teacher sees, against the global crops; DINOv3 has 2

    def __post_init__(self) -> None:
        if not 0 <= self.snapshot <= self.start <= 1 or self.every < 0:
            raise ConfigError(
                f"objective.gram: snapshot {self.snapshot}, start {self.start}, every {self.every}: "
                "they are shares of the steps, 0 <= snapshot <= start <= 1"
            )
        if self.scale < 1 or self.weight < 0:
            raise ConfigError(
                f"objective.gram: scale {self.scale} is at least 1, weight {self.weight} at least 0"
            )


class GramAnchor(nn.Module):
    """Snapshot and loss; when it counts is a function of the step."""

    def __init__(self, config: GramConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.teacher = Teacher(encoder=encoder)

    def counts(self, step: int, steps: int) -> bool:
        """Whether the loss is part of optimiser step `step`."""
        return step >= round(self.config.start * steps)

    def loss(self, student: Tensor, seen: Tensor, batch: Batch, crops: Sequence[CropConfig]) -> Tensor:
        """`gram_loss` of the student's tokens [G · B, N, E] of the global crops.

        Args:
            seen: [G · B, C, *size], what the teacher sees.
            crops: sections that `seen` was cut with, to cut it anew at `scale`.
        """
        encoder: Encoder = self.teacher.encoder  # type: ignore[assignment]
        if self.config.scale != 1:
            crops = [self._clean(crop, seen.shape[2:]) for crop in crops]
            (fine,) = multi_crop(batch.image, crops, batch.seed, batch.keys, spacing=batch.spacing)
            grid, images = encoder.grid(fine.image.shape[2:]), fine.image
        else:
            grid, images = encoder.grid(seen.shape[2:]), seen
        with torch.no_grad():
            anchor = resample_tokens(encoder(images).tokens, grid, encoder.grid(seen.shape[2:]))
        return gram_loss(student, anchor)

    def sizes(self, size: Sequence[int]) -> list[tuple[int, ...]]:
        """What sizes meet the encoder when the global crops have `size` pixels."""
        return [] if self.config.scale == 1 else [tuple(round(s * self.config.scale) for s in size)]

    def follow(self, step: int, steps: int, teacher: Encoder) -> None:
        """Take the snapshots that are due after optimiser step `step`."""
        done, start = step + 1, round(self.config.start * steps)
        every = round(self.config.every * steps)
        again = every > 0 and done > start and (done - start) % every == 0
        if done == round(self.config.snapshot * steps) or again:
            self.teacher.update(0.0, encoder=teacher)

    def _clean(self, crop: CropConfig, size: Sequence[int]) -> CropConfig:
        """The same place, finer, without changes of intensity: draws depend on the name of the crop alone."""
        still = {name: 0.0 for name in PROBABILITIES if name not in ("flip", "affine")}
        return replace(crop, size=list(self.sizes(size)[0]), view=replace(crop.view, **still))
