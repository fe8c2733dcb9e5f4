"""Masked autoencoder: predict the pixels of hidden patches from the visible ones, in 2D and 3D alike.

He et al., arXiv 2111.06377; the choice that won full fine-tuning of segmentation networks in the OpenMind
benchmark (arXiv 2412.17041). A transformer encodes visible tokens only, so that a mask of 75 % costs about
a third of a full step; a convolutional encoder sees its input with the hidden patches blanked by a learnt
value for each channel (for a U-Net decoder and sparse convolutions see spark.py). Both share a small
transformer decoder with its own sine-cosine positions, thrown away afterwards.

Targets are pixels normalised in each patch (mean 0, variance 1), and only hidden patches count. What to
expect: kNN probes stay modest while fine-tuning gains, so judge it by both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoders.base import Encoder
from ..encoders.patches import Filled
from ..masks import split, visible_tokens
from ..pixels import PatchDecoder, PixelToken, expand_mask
from .base import Facts
from .masked import MaskedConfig, MaskedPixels, Prediction


class MAE(MaskedPixels):
    """Masked autoencoder around any encoder."""

    @dataclass(kw_only=True)
    class Config(MaskedConfig):
        """Fields of the `objective` section."""

        name: str = "mae"
        mask_ratio: float = 0.75  # share of the patches that are hidden
        mask_block: int = 1  # tokens a side of one mask unit
        decoder_dim: int = 512
        decoder_depth: int = 4  # blocks
        decoder_heads: int = 8

    facts = Facts(
        title="masked autoencoder",
        paper="arXiv 2111.06377",
        predicts="normalised pixels of hidden patches from the visible ones",
        good_for="full fine-tuning, segmentation above all; frozen features are modest",
        cost="0.4 with a transformer (a mask of 75 % and a light decoder), 1.2 with a convolutional network",
    )

    def __init__(self, config: MAE.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.decoder = PatchDecoder(encoder, config.decoder_dim, config.decoder_depth, config.decoder_heads)
        if encoder.supports_keep:
            self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder_dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            self.pixel_token = PixelToken(encoder.in_channels)

    def units(self, grid: Sequence[int], patch: Sequence[int]) -> tuple[float, int]:
        """See `MaskedPixels.units`."""
        return self.config.mask_ratio, self.config.mask_block

    def reconstruct(self, image: Tensor, hidden: Tensor, encoder: Encoder) -> Prediction:
        """See `MaskedPixels.reconstruct`."""
        grid = encoder.grid(image.shape[2:])
        if encoder.supports_keep:
            mask = split(hidden, visible_tokens(grid, self.config.mask_ratio, self.config.mask_block))
            features = encoder(image, keep=mask.keep)
            visible = self.decoder.embed(features.tokens)
            tokens = Filled(self.mask_token[0].expand(math.prod(grid), -1), visible, mask.keep)
        else:
            features = encoder(
                self.pixel_token(image, expand_mask(hidden, grid, encoder.patch_of(len(grid))))
            )
            tokens = self.decoder.embed(features.tokens)
            mask = None
        only = None if mask is None else mask.masked  # what is visible is not asked for
        return Prediction(self.decoder(tokens, grid, only), features.pooled, only)
