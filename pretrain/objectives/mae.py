"""Masked autoencoder: predict the pixels of hidden patches from the visible ones, in 2D and 3D alike.

He et al., arXiv 2111.06377; the choice that won full fine-tuning of segmentation networks in the OpenMind
benchmark (arXiv 2412.17041). A transformer encodes visible tokens only, so that a mask of 75 % costs about
a third of a full step; a convolutional encoder sees its input with the hidden patches blanked by a learnt
value for each channel (the plain variant: SparK's sparse convolutions are worth less than 0.3 Dice, arXiv
2410.23132). Both share a small transformer decoder with its own sine-cosine positions, thrown away
afterwards.

Targets are pixels normalised in each patch (mean 0, variance 1), and only hidden patches count. What to
expect: kNN probes stay modest while fine-tuning gains, so judge it by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..encoders.positions import sincos
from ..losses.reconstruction import masked_mse, normalise_patches
from ..masks import Mask, block_keep
from ..views import ViewConfig, random_view
from .base import Batch, Facts, Objective, Output


class MAE(Objective):
    """Masked autoencoder around any encoder."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "mae"
        mask_ratio: float = 0.75  # share of the patches that are hidden
        mask_block: int = 1  # tokens a side of one mask unit
        norm_pixels: bool = True  # targets with mean 0 and variance 1 in each patch
        decoder_dim: int = 512
        decoder_depth: int = 4  # blocks
        decoder_heads: int = 8
        # Light on purpose: left and right mirrored, a fifth of the images turned and zoomed a little (nnssl);
        # intensities stay, as they are the target. Where the side of the body is a label: view.flip=0.
        view: ViewConfig = field(default_factory=lambda: ViewConfig(affine=0.2, degrees=10.0, shift=0.0))

    facts = Facts(
        title="masked autoencoder",
        paper="arXiv 2111.06377",
        predicts="normalised pixels of hidden patches from the visible ones",
        good_for="full fine-tuning, segmentation above all; frozen features are modest",
        cost="0.4 with a transformer (a mask of 75 % and a light decoder), 1.2 with a convolutional network",
    )

    def __init__(self, config: MAE.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        from timm.layers import trunc_normal_
        from timm.models.vision_transformer import Block

        if config.decoder_dim % config.decoder_heads:
            raise ConfigError(
                f"objective.decoder_dim {config.decoder_dim} is not a multiple of "
                f"{config.decoder_heads} decoder_heads"
            )
        self.patch_size = tuple(encoder.patch_size)
        self.channels = encoder.in_channels
        dim = config.decoder_dim
        self.embed = nn.Linear(encoder.embed_dim, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, qkv_bias=True) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, self.channels * _product(self.patch_size))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        if encoder.supports_keep:
            self.mask_token = nn.Parameter(trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        else:
            self.pixel_token = nn.Parameter(torch.zeros(1, self.channels, *[1] * encoder.ndim))

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `reconstruction`, the loss itself."""
        image = self.view(batch)
        mask = self.mask(batch, encoder)
        predicted, pooled = self.reconstruct(image, mask, encoder)
        target = patchify(image, self.patch_size)
        if self.config.norm_pixels:
            target = normalise_patches(target)[0]
        loss = masked_mse(predicted, target, mask.hidden())
        # Parameters that only `pooled` uses (a norm behind the pooling) get a gradient of zero instead of
        # none, which distributed training would take for an error.
        total = loss + 0.0 * pooled.float().sum()
        return Output(total, {"reconstruction": loss.detach()}, pooled.detach())

    def view(self, batch: Batch) -> Tensor:
        """The augmented images [B, C, *spatial], keyed by (seed, position)."""
        return random_view(
            batch.image, self.config.view, batch.seed, batch.keys, spacing=batch.spacing,
            modality=batch.modality, limits=batch.limits, stream="mae",
        )  # fmt: skip

    def mask(self, batch: Batch, encoder: Encoder) -> Mask:
        """The hidden patches of this batch."""
        grid = encoder.grid(batch.image.shape[2:])
        block = [self.config.mask_block] * len(grid)
        return block_keep(
            batch.seed, batch.position, grid, self.config.mask_ratio, block, device=batch.image.device
        )

    def reconstruct(self, image: Tensor, mask: Mask, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Predict all patches: ([B, N, patch pixels · C], pooled [B, E])."""
        grid = encoder.grid(image.shape[2:])
        if encoder.supports_keep:
            features = encoder(image, keep=mask.keep)
            visible = self.embed(features.tokens)
            hidden = self.mask_token.to(visible.dtype).expand(visible.shape[0], mask.masked.shape[1], -1)
            order = mask.restore.unsqueeze(-1).expand(-1, -1, visible.shape[-1])
            tokens = torch.cat([visible, hidden], dim=1).gather(1, order)
        else:
            features = encoder(self.blank(image, mask, grid))
            tokens = self.embed(features.tokens)
        tokens = tokens + sincos(grid, self.config.decoder_dim, image.device).to(self.norm.weight.dtype)
        for block in self.blocks:
            tokens = block(tokens)
        return self.predict(self.norm(tokens)), features.pooled

    def blank(self, image: Tensor, mask: Mask, grid: Sequence[int]) -> Tensor:
        """The image with its hidden patches replaced by the learnt value of each channel."""
        hidden = expand_mask(mask.hidden(), grid, self.patch_size)
        return torch.where(hidden, self.pixel_token.to(image.dtype), image)

    @torch.no_grad()
    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """`input`, `masked` (hidden patches 0), `reconstruction` (hidden patches predicted, visible as seen).

        The prediction is taken back to the units of the input with the true mean and deviation of each patch,
        as in the figures of the paper: its brightness flatters, its structure does not.
        """
        image = batch.image
        grid = encoder.grid(image.shape[2:])
        mask = self.mask(batch, encoder)
        predicted = self.reconstruct(image, mask, encoder)[0].float()
        target = patchify(image, self.patch_size).float()
        if self.config.norm_pixels:
            _, mean, deviation = normalise_patches(target)
            predicted = predicted * deviation + mean
        pasted = torch.where(mask.hidden().unsqueeze(-1), predicted, target)
        hidden = expand_mask(mask.hidden(), grid, self.patch_size)
        return {
            "input": image,
            "masked": image.masked_fill(hidden, 0.0),
            "reconstruction": unpatchify(pasted, grid, self.patch_size),
        }


def patchify(image: Tensor, patch_size: Sequence[int]) -> Tensor:
    """[B, C, *spatial] -> [B, N, patch pixels · C], patches row-major, channels last inside a patch."""
    batch, channels, *spatial = image.shape
    axes = len(patch_size)
    split: list[int] = []
    for size, patch in zip(spatial, patch_size, strict=True):
        split += [size // patch, patch]
    x = image.reshape(batch, channels, *split)
    grid_axes = [2 + 2 * axis for axis in range(axes)]
    patch_axes = [3 + 2 * axis for axis in range(axes)]
    x = x.permute(0, *grid_axes, *patch_axes, 1)
    return x.reshape(batch, _product(split[0::2]), _product(patch_size) * channels)


def unpatchify(patches: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of `patchify`: [B, N, patch pixels · C] -> [B, C, *spatial]."""
    axes = len(grid)
    channels = patches.shape[-1] // _product(patch_size)
    x = patches.reshape(patches.shape[0], *grid, *patch_size, channels)
    order = [0, 1 + 2 * axes]
    for axis in range(axes):
        order += [1 + axis, 1 + axes + axis]
    spatial = [g * p for g, p in zip(grid, patch_size, strict=True)]
    return x.permute(order).reshape(patches.shape[0], channels, *spatial)


def expand_mask(hidden: Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """bool [B, N] over patches -> bool [B, 1, *spatial] over pixels."""
    x = hidden.reshape(hidden.shape[0], 1, *grid)
    for axis, patch in enumerate(patch_size):
        x = x.repeat_interleave(patch, dim=2 + axis)
    return x


def _product(sizes: Sequence[int]) -> int:
    out = 1
    for size in sizes:
        out *= int(size)
    return out
