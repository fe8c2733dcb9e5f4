"""SimMIM: hidden patches become mask tokens inside the encoder, and one linear layer predicts raw pixels.

Xie et al., arXiv 2111.09886. The encoder sees all positions, so that it also works for Swin and for CNN
pyramids, where tokens cannot be left out; the price is a whole forward pass. Mask units are larger than
tokens (32 pixels, 16 voxels), because small holes are filled by interpolation. L1 on the hidden pixels.
An encoder without tokens (a CNN) has its input blanked by a learnt value for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from ..encoders.base import Encoder, Hide
from ..encoders.patches import Wanted
from ..losses.reconstruction import masked_l1
from ..masks import fitting_block, split, visible_tokens
from ..pixels import PatchHead, PixelToken, expand_mask
from .base import Facts
from .masked import MaskedConfig, MaskedPixels, Prediction

UNIT = {2: 32, 3: 16}  # pixels, voxels


class SimMIM(MaskedPixels):
    """Masked image modelling with a one-layer head."""

    @dataclass(kw_only=True)
    class Config(MaskedConfig):
        """Fields of the `objective` section."""

        name: str = "simmim"
        mask_ratio: float = 0.6  # share of the mask units that are hidden
        # Pixels a side of a mask unit; empty: 32 in 2D, 16 in 3D, or less where the crop asks for it.
        mask_unit: list[int] = field(default_factory=list)
        norm_pixels: bool = False

    facts = Facts(
        title="SimMIM",
        paper="arXiv 2111.09886",
        predicts="raw pixels of hidden patches, mask tokens inside the encoder",
        good_for="Swin and convolutional pyramids; a transformer fine-tunes a little worse than after MAE",
        cost="1.0: all tokens are computed, the head is one layer",
    )

    def __init__(self, config: SimMIM.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.head = PatchHead(encoder, encoder.embed_dim)
        if encoder.supports_hide:
            self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.token_dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            self.pixel_token = PixelToken(encoder.in_channels)

    def units(self, grid: Sequence[int], patch: Sequence[int]) -> tuple[float, list[int]]:
        """See `MaskedPixels.units`."""
        unit = self.config.mask_unit
        if not unit:
            return self.config.mask_ratio, fitting_block(grid, patch, UNIT[len(grid)])
        if len(unit) != len(grid) or any(u < p or u % p for u, p in zip(unit, patch, strict=True)):
            raise ConfigError(
                f"objective.mask_unit {list(unit)} is no multiple of the patch {list(patch)} of the encoder: "
                "write one number of pixels an axis"
            )
        return self.config.mask_ratio, [u // p for u, p in zip(unit, patch, strict=True)]

    def reconstruct(self, image: Tensor, hidden: Tensor, encoder: Encoder) -> Prediction:
        """See `MaskedPixels.reconstruct`."""
        grid = encoder.grid(image.shape[2:])
        if encoder.supports_hide:
            patch = encoder.patch_of(len(grid))
            only = split(hidden, visible_tokens(grid, *self.units(grid, patch))).masked
            features = encoder.some(image, Wanted(only), hide=Hide(hidden, self.mask_token))
        else:
            only = None
            whole = expand_mask(hidden, grid, encoder.patch_of(len(grid)))
            features = encoder(self.pixel_token(image, whole))
        return Prediction(self.head(features.tokens, len(grid)), features.pooled, only)

    def loss(
        self, predicted: Tensor, target: Tensor, hidden: Tensor, counts: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `MaskedPixels.loss`."""
        loss = masked_l1(predicted, target, hidden, counts)
        return loss, {"reconstruction": loss}
