"""What every pretraining objective promises: one `step` from a batch and an encoder to a loss.

The objective owns what it alone trains (decoder, heads, mask tokens); the encoder is handed to each call, so
that it exists once in the run and can be exchanged. Every random draw is keyed by (seed, position): a resumed
or a re-sharded run sees the same masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..encoders.base import Encoder
from ..views import Limits


@dataclass(slots=True)
class Batch:
    """Images on the device, normalised, and the keys of their random draws."""

    image: Tensor  # [B, C, *spatial] float
    position: Tensor  # int64 [B]: place in the global sample order
    seed: int
    modality: Tensor | None = None  # int64 [B], code in data.sample.MODALITIES
    spacing: Tensor | None = None  # float32 [B, ndim] mm
    limits: Limits | None = None  # black and white of `image`, for transforms of colours
    host_position: Tensor | None = None  # `position` on the CPU: views then compute drawn samples only

    @property
    def keys(self) -> Tensor:
        """Positions to draw views from, on the host where it knows them."""
        return self.position if self.host_position is None else self.host_position


@dataclass(slots=True)
class Output:
    """What a step gives back."""

    loss: Tensor  # scalar, with gradient
    terms: dict[str, Tensor]  # scalars, detached, to be logged
    features: Tensor  # [B, E] pooled, detached, for the diagnostics


class Objective(nn.Module):
    """Base of the objectives; the constructor takes (config, encoder) and must not keep the encoder."""

    Config: ClassVar[type[Any]]

    config: Any

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """Make views and masks on the device, encode, and return the loss."""
        raise NotImplementedError

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """Pictures of what the objective does: name -> [B, C, *spatial] in the units of `batch.image`.

        Empty when there is nothing to look at.
        """
        return {}
