"""SparK: masked autoencoding for convolutional networks, with a U-Net decoder over their whole pyramid.

Tian et al., arXiv 2301.03580; in 3D the S3D of arXiv 2410.23132. The encoder leaves hidden places out of
every convolution and norm (encoders/sparse.py); each map of its pyramid is then filled up with a mask token
of its own, mixed by a 3-wide "densify" convolution (all but the finest), and decoded to pixels. Of these
steps only the densify convolution moved the score (+0.3 Dice), so `sparse: false` is the plain variant of
nnssl: hidden places are zero in the image, and everything else is an ordinary U-Net.

Hidden units are cells of the coarsest map (32 pixels as a rule). Targets are the pixels as they are; the 2D
paper normalises each patch, `norm_pixels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..decoders import CONV, PixelDecoder, pyramid_levels
from ..encoders.base import Encoder, Features
from ..encoders.sparse import sparse
from ..pixels import expand_mask, patchify
from .base import Facts
from .masked import MaskedConfig, MaskedPixels, Prediction


class SparK(MaskedPixels):
    """Masked autoencoder around a convolutional encoder."""

    @dataclass(kw_only=True)
    class Config(MaskedConfig):
        """Fields of the `objective` section."""

        name: str = "spark"
        mask_ratio: float = 0.6  # share of the cells of the coarsest map that are hidden
        sparse: bool = True  # False: hidden places are zeros in the image, and nothing is filled in
        norm_pixels: bool = False
        decoder_width: int = 32  # channels at full resolution, doubled at each coarser one
        decoder_most: int = 256  # largest number of channels

    facts = Facts(
        title="SparK, masked autoencoder of a convolutional network",
        paper="arXiv 2301.03580",
        predicts="pixels of hidden cells from the visible ones, by a U-Net",
        good_for="fine-tuning convolutional networks for segmentation, decoder included",
        cost="2.0: a convolution computes hidden places too, and the U-Net works at full resolution",
    )

    def __init__(self, config: SparK.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        levels = pyramid_levels(encoder)
        self.decoder = PixelDecoder(
            encoder, encoder.in_channels, width=config.decoder_width, most=config.decoder_most
        )
        if config.sparse:
            shape = [1] * encoder.ndim
            self.tokens = nn.ParameterList(
                nn.init.trunc_normal_(torch.empty(1, level.channels, *shape), std=0.02) for level in levels
            )
            self.densify = nn.ModuleList(
                CONV[encoder.ndim](level.channels, level.channels, 3, padding=1) if index else nn.Identity()
                for index, level in enumerate(levels)
            )

    @classmethod
    def refuses(cls, encoder: Encoder) -> str | None:
        """See `Objective.refuses`."""
        if not encoder.convolutional:
            return (
                "it cannot leave hidden places out as SparK asks: choose objective.name=mae or simmim, or a "
                "convolutional encoder (convnet, resenc, segresnet, convnext3d)"
            )
        return super().refuses(encoder)

    def units(self, grid: Sequence[int], patch: Sequence[int]) -> tuple[float, int]:
        """See `MaskedPixels.units`."""
        return self.config.mask_ratio, 1

    def reconstruct(self, image: Tensor, hidden: Tensor, encoder: Encoder) -> Prediction:
        """See `MaskedPixels.reconstruct`."""
        grid, patch = encoder.grid(image.shape[2:]), encoder.patch_of(image.ndim - 2)
        if self.config.sparse:
            with sparse(encoder, ~hidden.reshape(-1, *grid)):
                features = encoder(image, pyramid=True)
            assert features.pyramid is not None
            features = Features(
                features.pooled, features.tokens, features.grid, self.filled(features.pyramid, hidden, grid)
            )
        else:
            features = encoder(image.masked_fill(expand_mask(hidden, grid, patch), 0.0), pyramid=True)
        return Prediction(patchify(self.decoder(features), patch), features.pooled)

    def filled(self, pyramid: Sequence[Tensor], hidden: Tensor, grid: Sequence[int]) -> list[Tensor]:
        """The maps with mask tokens at hidden places, mixed with their surroundings."""
        out = []
        for maps, token, mix in zip(pyramid, self.tokens, self.densify, strict=True):
            cell = [size // tokens for size, tokens in zip(maps.shape[2:], grid, strict=True)]
            out.append(mix(torch.where(expand_mask(hidden, grid, cell), token.to(maps.dtype), maps)))
        return out
