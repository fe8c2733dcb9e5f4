"""What is put on an encoder: a classifier, a linear segmenter, and a convolutional decoder.

The decoder serves every encoder, 2D and 3D: the U-Net of pretrain/decoders.py joins the pyramid's maps, and
below the finest of them a light convolutional stem on the image itself, as UNETR (arXiv 2103.10504) does. A
transformer with patch 8 has no detail finer than 8 voxels; without the image-resolution stem the boundary
of a structure of 20 voxels cannot be drawn, whatever the encoder knows. The price: two thirds of a step's
arithmetic in 3D are the stem and the last stage at `width` channels, and a part of any score is the
decoder's own, which is why the same network from random weights is always trained beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..pretrain.decoders import SMOOTH, Block, UNet, pyramid_levels
from ..pretrain.encoders.base import Encoder, Features


def summary(features: Features) -> Tensor:
    """Image descriptor [B, 2E]: the pooled vector and the mean of the patch tokens."""
    return torch.cat([features.pooled, features.tokens.mean(dim=1)], dim=1)


class Classifier(nn.Module):
    """Encoder -> [B, classes] logits, from `summary`, by one linear layer behind a LayerNorm."""

    def __init__(self, encoder: Encoder, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(2 * encoder.embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * encoder.embed_dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, *spatial]."""
        return self.head(self.dropout(self.norm(summary(self.encoder(x)))))


class FrozenProbe(nn.Module):
    """A head on a frozen encoder, in two steps, so that the first is done once for all probes (features.py).

    `reads` names what `described` takes from the encoder; probes with one name read the same rows.
    """

    encoder: Encoder
    reads: str = "summary"
    settled: bool = False  # `answer` gives predictions, and not what a task's `activate` takes

    def described(self, x: Tensor) -> Tensor:
        """Rows [B, ...] of normalised images [B, C, *spatial]; depends on the encoder alone."""
        return summary(self.encoder(x)).float()

    def answer(self, rows: Tensor) -> Tensor:
        """Logits [B, outputs] of rows [B, ...]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, outputs] of normalised images [B, C, *spatial]."""
        return self.answer(self.described(x))


class LinearClassifier(FrozenProbe):
    """Frozen-feature probe: standardised `summary` -> [B, classes] logits; the layer is fitted, not trained.

    `mean`, `std` and `head` come from the logistic regression of `protocols.logistic`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(2 * encoder.embed_dim))
        self.register_buffer("std", torch.ones(2 * encoder.embed_dim))
        self.head = nn.Linear(2 * encoder.embed_dim, classes)

    def answer(self, rows: Tensor) -> Tensor:
        return self.head((rows - self.mean) / self.std)


class LinearSegmenter(nn.Module):
    """Frozen-feature probe: one 1x1 convolution on the tokens, interpolated to the image: [B, K, *spatial].

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
    """

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        width: int = 16,
        most: int = 128,
        foreground: Sequence[float] | None = None,
        ndim: int | None = None,
    ) -> None:
        super().__init__(pyramid_levels(encoder, ndim), outputs, width, most, details=True)
        self.centre, self.deviation = foreground if foreground else (0.0, 1.0)
        self.encoder = encoder
        stem: list[nn.Module] = []
        before = encoder.in_channels
        for index in range(min(self.levels)):  # strides finer than anything that the encoder gives
            stem.append(Block(ndim or encoder.ndim, before, self.channels[index]))
            before = self.channels[index]
        self.stem = nn.ModuleList(stem)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, *spatial] of normalised images [B, C, *spatial]."""
        pyramid = self.encoder(x, pyramid=True).pyramid
        assert pyramid is not None
        sizes = self.sizes(x.shape[2:])
        details: dict[int, Tensor] = {}
        detail = ((x - self.centre) / self.deviation).clamp(-5, 5)
        for index, block in enumerate(self.stem):
            if index:
                detail = functional.interpolate(detail, size=sizes[index], mode="area")
            detail = block(detail)
            details[index] = detail
        return self.decode(pyramid, x.shape[2:], details)
