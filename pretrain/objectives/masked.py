"""What masked objectives share: a view, a mask where the tissue is, a loss over hidden pixels, a panel.

A subclass says how patches are predicted (`reconstruct`), and may say what is hidden and what counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..losses.reconstruction import masked_mse, normalise_patches, patch_statistics
from ..masks import hide
from ..pixels import expand_mask, patchify, unpatchify
from ..tissue import patches_with, tissue
from ..views import ViewConfig, random_view
from .base import Batch, Objective, Output


@dataclass(kw_only=True)
class MaskedConfig:
    """Fields that every masked objective has; subclasses give them their own defaults."""

    norm_pixels: bool = True  # targets with mean 0 and variance 1 in each patch
    # At least this share of the hidden patches holds tissue, as far as the image has enough; 0: blind masks.
    foreground: float = 0.5
    skip_air: bool = True  # pixels of padding, cut-away faces and black air do not count in the loss
    # Light on purpose: left and right mirrored, a fifth of the images turned and zoomed a little (nnssl);
    # intensities stay, as they are the target. Where the side of the body is a label: view.flip=0.
    view: ViewConfig = field(default_factory=lambda: ViewConfig(affine=0.2, degrees=10.0, shift=0.0))

    def __post_init__(self) -> None:
        if not 0 <= self.foreground <= 1:
            raise ConfigError(f"objective.foreground is {self.foreground}: it is a share, 0 to 1")


class Prediction(NamedTuple):
    """What is predicted of a batch."""

    patches: Tensor  # [B, N, patch pixels · C], all patches, or those of `only`: [B, K, ...]
    pooled: Tensor  # [B, E]
    only: Tensor | None = None  # int64 [B, K]: hidden patches


class MaskedPixels(Objective):
    """Base of the objectives that predict hidden pixels."""

    def units(self, grid: Sequence[int], patch: Sequence[int]) -> tuple[Any, Any]:
        """(ratio, block) of `masks.hide` for a grid of tokens of `patch` pixels."""
        raise NotImplementedError

    def reconstruct(self, image: Tensor, hidden: Tensor, encoder: Encoder) -> Prediction:
        """Predict all patches, or the hidden ones."""
        raise NotImplementedError

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Term: `reconstruction`, the error of the hidden pixels."""
        image = self.view(batch)
        where = self.tissue(image, batch)
        hidden = self.hidden(image, batch, encoder, where)
        predicted, pooled, only = self.reconstruct(self.corrupted(image, batch), hidden, encoder)
        patch = encoder.patch_of(image.ndim - 2)
        target = patchify(image, patch, only)
        if self.config.norm_pixels:
            target = normalise_patches(target)
        counts = patchify(where, patch, only) if where is not None and self.config.skip_air else None
        hidden = hidden if only is None else hidden.gather(1, only)
        loss, terms = self.loss(predicted, target, hidden, counts)
        # Parameters that only `pooled` uses (a norm behind the pooling) get a gradient of zero instead of
        # none, which distributed training would take for an error.
        total = loss + 0.0 * pooled.float().sum()
        return Output(total, {name: value.detach() for name, value in terms.items()}, pooled.detach())

    def loss(
        self, predicted: Tensor, target: Tensor, hidden: Tensor, counts: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the terms to log; arguments as `masked_mse`."""
        loss = masked_mse(predicted, target, hidden, counts)
        return loss, {"reconstruction": loss}

    def corrupted(self, image: Tensor, batch: Batch) -> Tensor:
        """What the encoder is shown of the visible patches; the image itself unless a subclass adds noise."""
        return image

    def view(self, batch: Batch) -> Tensor:
        """The augmented images [B, C, *spatial], keyed by (seed, position)."""
        return random_view(
            batch.image, self.config.view, batch.seed, batch.keys, spacing=batch.spacing,
            modality=batch.modality, limits=batch.limits, stream="mae",
        )  # fmt: skip

    def tissue(self, image: Tensor, batch: Batch) -> Tensor | None:
        """bool [B, 1, *spatial], where there is something to see; None when nothing asks for it."""
        return tissue(image, batch.limits) if self.config.foreground or self.config.skip_air else None

    def hidden(self, image: Tensor, batch: Batch, encoder: Encoder, where: Tensor | None) -> Tensor:
        """bool [B, N]: the hidden patches of a view, keyed by (seed, position); `where` as from `tissue`."""
        grid, patch = encoder.grid(image.shape[2:]), encoder.patch_of(image.ndim - 2)
        ratio, block = self.units(grid, patch)
        if where is not None and self.config.foreground:
            where = patches_with(where, patch)
        else:
            where = None
        return hide(
            batch.seed, batch.position, grid, ratio, block, least=self.config.foreground,
            tissue=where, device=image.device,
        )  # fmt: skip

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return [tuple(self.config.view.size) or tuple(crop)]

    @torch.no_grad()
    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """`input`, `masked` (hidden patches 0), `reconstruction` (hidden patches predicted, visible as seen).

        The prediction is taken back to the units of the input with the true mean and deviation of each patch,
        as in the figures of the paper: its brightness flatters, its structure does not.
        """
        image = self.view(batch) if self.config.view.size else batch.image
        patch, grid = encoder.patch_of(image.ndim - 2), encoder.grid(image.shape[2:])
        hidden = self.hidden(image, batch, encoder, self.tissue(image, batch))
        shown = self.corrupted(image, batch)
        predicted, _, only = self.reconstruct(shown, hidden, encoder)
        target = patchify(image, patch).float()
        if only is not None:
            index = only.unsqueeze(-1).expand_as(predicted)
            predicted = predicted.new_zeros(target.shape).scatter(1, index, predicted)
        predicted = predicted.float()
        if self.config.norm_pixels:
            mean, deviation = patch_statistics(target)
            predicted = predicted * deviation + mean
        return {
            "input": image,
            "masked": shown.masked_fill(expand_mask(hidden, grid, patch), 0.0),
            "reconstruction": unpatchify(self.pasted(predicted, target, hidden), grid, patch),
        }

    def pasted(self, predicted: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
        """Patches that the panel shows as the reconstruction."""
        return torch.where(hidden.unsqueeze(-1), predicted, target)
