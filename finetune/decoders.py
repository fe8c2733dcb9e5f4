"""Decoders of segmentation: the U-Net of a pyramid, UNETR's for a plain transformer, one linear layer.

`Segmenter` serves every encoder, 2D and 3D: the U-Net of pretrain/decoders.py joins the pyramid's maps where
they belong, and below the finest of them a light convolutional stem looks at the image itself. A transformer
with patch 8 has no detail finer than 8 voxels; without the stem the boundary of a structure of 20 voxels
cannot be drawn, whatever the encoder knows. The price: two thirds of a step's arithmetic in 3D are the stem
and the last stage at `width` channels, and a part of any score is the decoder's own, which is why the same
network from random weights is always trained beside it.

`Unetr` (arXiv 2103.10504) asks more of the transformer: only full resolution is the image's, the strides
between are unfolded from the tokens of shallower blocks. Its unfolding is one transposed convolution a depth
in place of a stack of them, for a third of the arithmetic. It needs long training: from scratch on the
hippocampus it reached a Dice of 0.67 in 120 steps, the U-Net 0.75 (benchmarks/segmentation.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.errors import ConfigError
from ..pretrain.decoders import CONV, SMOOTH, TRANSPOSED, Block, Level, UNet, pyramid_levels
from ..pretrain.encoders.base import Encoder
from .config import HeadConfig


def decoder(
    encoder: Encoder,
    outputs: int,
    size: HeadConfig,
    *,
    foreground: Sequence[float] | None = None,
    ndim: int | None = None,
) -> nn.Module:
    """The network that `head.decoder` names, on an encoder.

    Raises:
        ConfigError: `unetr` on an encoder whose pyramid has several grids; a width group norm cannot take.
    """
    if size.decoder == "linear":
        return LinearSegmenter(encoder, outputs)
    kind = Unetr if size.decoder == "unetr" else Segmenter
    return kind(
        encoder, outputs, width=size.width, most=size.most, foreground=foreground, ndim=ndim,
        deep=size.deep_supervision,
    )  # fmt: skip


class LinearSegmenter(nn.Module):
    """One 1x1 convolution on the tokens, interpolated to the image: [B, K, *spatial].

    Its resolution is the patch grid's, so its Dice is a measure of the features and not of a segmentation.
    """

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.embed_dim)
        self.head = nn.Linear(encoder.embed_dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, *spatial] of normalised images [B, C, *spatial]."""
        features = self.encoder(x)
        assert features.grid is not None
        logits = self.head(self.norm(features.tokens)).transpose(1, 2)
        logits = logits.reshape(x.shape[0], -1, *features.grid)
        return functional.interpolate(logits, size=x.shape[2:], mode=SMOOTH[x.ndim - 2], align_corners=False)

    def scales(self, x: Tensor) -> list[Tensor]:
        """See `Segmenter.scales`: full resolution alone."""
        return [self(x)]


class Segmenter(UNet):
    """Encoder and convolutional decoder -> [B, K, *spatial] logits at the image's resolution.

    Args:
        encoder: any encoder with a pyramid (all of ours).
        outputs: K, structures and the background.
        width: channels at full resolution; doubled at each coarser stride up to `most`.
        foreground: (mean, deviation) of the structures in training cases. The stem, which starts from random
            weights anyway, sees the image standardised by them and cut at 5 deviations, as in nnU-Net's
            CT scheme; the encoder sees what it was pretrained with.
        ndim: spatial axes of the images, for an encoder that takes several; None: `encoder.ndim`.
        deep: coarser maps of the decoder that also give logits, for deep supervision (arXiv 1409.5185).
    """

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        width: int = 16,
        most: int = 128,
        foreground: Sequence[float] | None = None,
        ndim: int | None = None,
        deep: int = 0,
    ) -> None:
        axes, levels = ndim or encoder.ndim, pyramid_levels(encoder, ndim)
        super().__init__(self.joined(levels), outputs, width, most, details=True)
        self.centre, self.deviation = foreground if foreground else (0.0, 1.0)
        self.encoder = encoder
        stem: list[nn.Module] = []
        before = encoder.in_channels
        for index in range(self.stem_levels()):
            stem.append(Block(axes, before, self.channels[index]))
            before = self.channels[index]
        self.stem = nn.ModuleList(stem)
        self.source, self.unfold = self.unfolding(levels)
        deep = min(deep, len(self.channels) - 2)  # the coarsest map is the encoder's own
        self.deep = nn.ModuleList(
            CONV[axes](self.channels[index], outputs, 1) for index in range(1, deep + 1)
        )

    def joined(self, levels: list[Level]) -> list[Level]:
        """Maps of the pyramid that the U-Net joins by itself, the last ones."""
        return levels

    def stem_levels(self) -> int:
        """Strides that the stem gives: those finer than anything of the encoder."""
        return min(self.levels)

    def unfolding(self, levels: list[Level]) -> tuple[dict[int, int], nn.ModuleDict]:
        """Strides that the stem and the joined maps leave out: from which map, and what unfolds it."""
        return {}, nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, *spatial] of normalised images [B, C, *spatial]."""
        return self.head(self._maps(x)[-1])

    def scales(self, x: Tensor) -> list[Tensor]:
        """Logits for the loss: at full resolution, then at `deep` coarser ones, each [B, K, *size]."""
        maps = self._maps(x)
        coarser = [head(maps[-2 - index]) for index, head in enumerate(self.deep)]
        return [self.head(maps[-1]), *coarser]

    def _maps(self, x: Tensor) -> list[Tensor]:
        pyramid = self.encoder(x, pyramid=True).pyramid
        assert pyramid is not None
        sizes = self.sizes(x.shape[2:])
        details = self._stem(x, sizes) | self._unfolded(pyramid, sizes)
        return self.ascend(pyramid[-len(self.levels) :], x.shape[2:], details)

    def _unfolded(self, pyramid: list[Tensor], sizes: Sequence[tuple[int, ...]]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for index, source in self.source.items():
            maps = self.unfold[str(index)](pyramid[source])
            if maps.shape[2:] != sizes[index]:  # patches that are no power of two
                maps = functional.interpolate(
                    maps, size=sizes[index], mode=SMOOTH[maps.ndim - 2], align_corners=False
                )
            found[index] = maps
        return found

    def _stem(self, x: Tensor, sizes: Sequence[tuple[int, ...]]) -> dict[int, Tensor]:
        details: dict[int, Tensor] = {}
        detail = ((x - self.centre) / self.deviation).clamp(-5, 5)
        for index, block in enumerate(self.stem):
            if index:
                detail = functional.interpolate(detail, size=sizes[index], mode="area")
            detail = block(detail)
            details[index] = detail
        return details


class Unetr(Segmenter):
    """A `Segmenter` whose middle strides come from shallower blocks of a plain transformer."""

    def joined(self, levels: list[Level]) -> list[Level]:
        """The last depth. Raises ConfigError for a pyramid of several grids."""
        if any(level.stride != levels[-1].stride for level in levels):
            raise ConfigError(
                "head.decoder=unetr is for a plain transformer, this encoder has a pyramid of its own: "
                "give head.decoder=unet"
            )
        return levels[-1:]

    def stem_levels(self) -> int:
        """Full resolution alone."""
        return 1

    def unfolding(self, levels: list[Level]) -> tuple[dict[int, int], nn.ModuleDict]:
        """Each middle stride from a depth, the coarsest of them from the deepest but the last."""
        unfold, source = nn.ModuleDict(), {}
        coarsest = len(self.strides) - 2
        for index in range(1, coarsest + 1):
            source[index] = max(0, len(levels) - 2 - (coarsest - index))
            ratio = tuple(-(-p // s) for p, s in zip(self.strides[-1], self.strides[index], strict=True))
            here, before = self.channels[index], levels[source[index]].channels
            unfold[str(index)] = nn.Sequential(
                TRANSPOSED[len(ratio)](before, here, ratio, stride=ratio, bias=False),
                nn.GroupNorm(8, here), nn.LeakyReLU(0.01),
            )  # fmt: skip
        return source, unfold


def deep_loss(criterion: nn.Module, scales: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean of a loss over resolutions, each coarser one with half the weight (nnU-Net).

    Args:
        criterion: loss of logits [B, K, *size] and labels [B, 1, *size].
        scales: logits, the first at the resolution of the labels.
        labels: [B, 1, *spatial], shown to the coarser ones by nearest neighbour.
    """
    total, weights = torch.zeros((), device=labels.device), 0.0
    for level, logits in enumerate(scales):
        shown = labels
        if logits.shape[2:] != labels.shape[2:]:
            shown = functional.interpolate(labels.float(), size=logits.shape[2:], mode="nearest-exact").long()
        total = total + 0.5**level * criterion(logits.float(), shown)
        weights += 0.5**level
    return total / weights
