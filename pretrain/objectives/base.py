"""What every pretraining objective promises: one `step` from a batch and an encoder to a loss.

The objective owns what it alone trains (decoder, heads, mask tokens, teacher); the encoder is handed to each
call, so that it exists once in the run and can be exchanged. Every random draw is keyed by (seed, position)
and every schedule is a function of (step, steps): a resumed or a re-sharded run sees the same masks and the
same momentum. An objective speaks of tokens and grids, never of H and W alone: one file serves 2D and 3D.

A step runs as: `step` (for each micro-batch) -> gradients averaged over the ranks -> `before_update` ->
clipping -> optimiser -> `after_update`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data.errors import ConfigError
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
    step: int = 0  # optimiser step, the first is 0
    steps: int = 1  # optimiser steps of the whole run
    label: Tensor | None = None  # int64 [B], index into the run's classes; -1: unknown
    mask: Tensor | None = None  # int64 [B, *spatial], label map on the voxels of `image`; -1: unknown

    @property
    def keys(self) -> Tensor:
        """Positions to draw views from, on the host where it knows them."""
        return self.position if self.host_position is None else self.host_position


@dataclass(slots=True)
class Output:
    """What a step gives back."""

    loss: Tensor  # scalar, with gradient: the mean over the rows of this rank (see ranks.py)
    terms: dict[str, Tensor]  # scalars, detached, on the device, to be logged
    features: Tensor  # [B, E] pooled, detached, for the diagnostics; one row an image
    views: Tensor | None = None  # [V, B, E] pooled features of true views of the same images, detached


@dataclass(frozen=True)
class Facts:
    """What `medloom methods` and the docs say of a method."""

    title: str
    paper: str  # "arXiv 2111.06377"
    predicts: str  # from what to what
    good_for: str
    cost: str  # of a step against one plain forward and backward pass of the encoder on one view


class Objective(nn.Module):
    """Base of the objectives; the constructor takes (config, encoder) and must not keep the encoder."""

    Config: ClassVar[type[Any]]
    facts: ClassVar[Facts]
    ndims: ClassVar[tuple[int, ...]] = (2, 3)  # where the method is defined
    least_batch: ClassVar[int] = 1  # samples a rank and micro-batch that the loss needs

    config: Any

    def __init__(self, config: Any, encoder: Encoder) -> None:
        super().__init__()
        reason = self.refuses(encoder)
        if reason is not None:
            raise ConfigError(f"objective {config.name} with encoder {encoder.config.name}: {reason}")
        self.config = config

    @classmethod
    def refuses(cls, encoder: Encoder) -> str | None:
        """Why this method makes no sense with this encoder, and what to use instead; None: it does."""
        if not set(encoder.axes) & set(cls.ndims):
            return f"the method is defined in {cls.ndims[0]}D only: choose a {cls.ndims[0]}D encoder"
        return None

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """Spatial sizes that meet the encoder when the loader gives images of `crop` pixels."""
        return [tuple(crop)]

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """Make views and masks on the device, encode, and return the loss of one micro-batch."""
        raise NotImplementedError

    def before_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Change complete gradients before they are clipped, e.g. hold a layer still for some steps."""

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move what follows the weights (a teacher) after optimiser step `step`, the first being 0."""

    def released(self, encoder: Encoder) -> Encoder:
        """The encoder that is saved, probed and shown: the student, or the teacher of self-distillation."""
        return encoder

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """Pictures of what the objective does: name -> [B, C, *spatial] in the units of `batch.image`.

        Empty when there is nothing to look at.
        """
        return {}
