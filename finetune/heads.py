"""What is put on an encoder: a classifier, a linear segmenter, and a convolutional decoder.

The decoder serves every encoder, 2D and 3D. It walks from the coarsest features to full resolution by
factors of two; at each stride it joins whatever is there: a pyramid level of a convolutional encoder, and
below the finest level a light convolutional stem on the image itself, as UNETR (arXiv 2103.10504) does. A
transformer with patch 8 has no detail finer than 8 voxels; without the image-resolution stem the boundary
of a structure of 20 voxels cannot be drawn, whatever the encoder knows. The price: two thirds of a step's
arithmetic in 3D are the stem and the last stage at `width` channels, and a part of any score is the
decoder's own, which is why the same network from random weights is always trained beside it.

Sizes are explicit (interpolation to ceil(size / stride)), so patches that are no power of two (14) work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.errors import ConfigError
from ..pretrain.encoders.base import Encoder, Features

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_SMOOTH = {2: "bilinear", 3: "trilinear"}


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


class LinearClassifier(nn.Module):
    """Frozen-feature probe: standardised `summary` -> [B, classes] logits; the layer is fitted, not trained.

    `mean`, `std` and `head` come from the logistic regression of `protocols.fit_logistic`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(2 * encoder.embed_dim))
        self.register_buffer("std", torch.ones(2 * encoder.embed_dim))
        self.head = nn.Linear(2 * encoder.embed_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, *spatial]."""
        return self.head((summary(self.encoder(x)).float() - self.mean) / self.std)


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
        return functional.interpolate(logits, size=x.shape[2:], mode=_SMOOTH[x.ndim - 2], align_corners=False)


class Segmenter(nn.Module):
    """Encoder and convolutional decoder -> [B, K, *spatial] logits at the image's resolution.

    Args:
        encoder: any encoder with a pyramid (all of ours).
        outputs: K, structures and the background.
        width: channels at full resolution; doubled at each coarser stride up to `most`.
        foreground: (mean, deviation) of the structures in training cases. The stem, which starts from random
            weights anyway, sees the image standardised by them and cut at 5 deviations, as in nnU-Net's
            CT scheme; the encoder sees what it was pretrained with.
    """

    def __init__(
        self,
        encoder: Encoder,
        outputs: int,
        width: int = 16,
        most: int = 128,
        foreground: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.centre, self.deviation = foreground if foreground else (0.0, 1.0)
        if width % 8 or most % 8:
            raise ConfigError(f"head.width {width} and head.most {most}: give multiples of 8 (group norm)")
        self.encoder = encoder
        ndim = encoder.ndim
        self.strides = stride_chain(encoder.patch_size)
        channels = [min(width * 2**level, most) for level in range(len(self.strides))]
        self.levels, skips = _assign_levels(encoder, self.strides)
        stem: list[nn.Module] = []
        before = encoder.in_channels
        for level in range(min(self.levels)):  # strides finer than anything that the encoder gives
            stem.append(Block(ndim, before, channels[level]))
            before = channels[level]
        self.stem = nn.ModuleList(stem)
        self.lateral = nn.ModuleDict(
            {str(level): _project(ndim, found, channels[level]) for level, found in skips.items()}
        )
        steps: list[nn.Module] = []
        narrow: list[nn.Module] = []
        for level in range(len(self.strides) - 2, -1, -1):
            joined = channels[level] if level < len(self.stem) or level in skips else 0
            narrow.append(_CONV[ndim](channels[level + 1], channels[level], 1))
            steps.append(Block(ndim, channels[level] + joined, channels[level]))
        self.narrow, self.steps = nn.ModuleList(narrow), nn.ModuleList(steps)
        self.head = _CONV[ndim](channels[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K, *spatial] of normalised images [B, C, *spatial]."""
        pyramid = self.encoder(x, pyramid=True).pyramid
        assert pyramid is not None
        sizes = [
            tuple(-(-s // f) for s, f in zip(x.shape[2:], stride, strict=True)) for stride in self.strides
        ]
        skips = self._from_encoder(pyramid, sizes)
        detail = ((x - self.centre) / self.deviation).clamp(-5, 5)
        for level, block in enumerate(self.stem):
            if level:
                detail = functional.interpolate(detail, size=sizes[level], mode="area")
            detail = block(detail)
            skips[level] = detail
        last = len(sizes) - 1
        y = skips[last]
        for narrow, block, level in zip(self.narrow, self.steps, range(last - 1, -1, -1), strict=True):
            # Narrowed before it is enlarged: the same function of the input at an eighth of the cost in 3D.
            y = functional.interpolate(
                narrow(y), size=sizes[level], mode=_SMOOTH[x.ndim - 2], align_corners=False
            )
            y = block(torch.cat([y, skips[level]], dim=1) if level in skips else y)
        return self.head(y)

    def _from_encoder(self, pyramid: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> dict[int, Tensor]:
        """Join the pyramid's maps by stride and project them: level -> [B, C_level, *size]."""
        found: dict[int, list[Tensor]] = {}
        for level, features in zip(self.levels, pyramid, strict=True):
            if features.shape[2:] != sizes[level]:
                mode = _SMOOTH[features.ndim - 2]
                features = functional.interpolate(features, size=sizes[level], mode=mode, align_corners=False)
            found.setdefault(level, []).append(features)
        return {level: self.lateral[str(level)](torch.cat(maps, 1)) for level, maps in found.items()}


class Block(nn.Module):
    """Two 3-wide convolutions with group norm and a residual: [B, in, *s] -> [B, out, *s]."""

    def __init__(self, ndim: int, before: int, after: int) -> None:
        super().__init__()
        conv = _CONV[ndim]
        self.first = conv(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, after)
        self.second = conv(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, after)
        self.skip = conv(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm1(self.first(x)), 0.01, inplace=True)
        return functional.leaky_relu(self.norm2(self.second(y)) + self.skip(x), 0.01, inplace=True)


def stride_chain(patch: Sequence[int]) -> list[tuple[int, ...]]:
    """Strides from 1 to the patch: (4, 16, 16) gives (1,1,1), (1,2,2), (1,4,4), (2,8,8), (4,16,16)."""
    chain = [tuple(int(side) for side in patch)]
    while max(chain[-1]) > 1:
        chain.append(tuple(-(-side // 2) for side in chain[-1]))
    return chain[::-1]


def _project(ndim: int, before: int, after: int) -> nn.Module:
    return nn.Sequential(
        _CONV[ndim](before, after, 1, bias=False), nn.GroupNorm(8, after), nn.LeakyReLU(0.01)
    )


def _assign_levels(encoder: Encoder, strides: Sequence[tuple[int, ...]]) -> tuple[list[int], dict[int, int]]:
    """With one blank image: the level of each pyramid map, and level -> channels that join there."""
    size = [2 * side for side in encoder.patch_size]
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        weight = next(encoder.parameters())
        blank = torch.zeros(1, encoder.in_channels, *size, device=weight.device, dtype=weight.dtype)
        pyramid = encoder(blank, pyramid=True).pyramid
    encoder.train(training)
    if not pyramid:
        raise ConfigError("this encoder gives no feature pyramid: choose vit, vit3d or convnet")
    levels: list[int] = []
    channels: dict[int, int] = {}
    for features in pyramid:
        finest = max(s / g for s, g in zip(size, features.shape[2:], strict=True))
        level = min(range(len(strides)), key=lambda index: abs(max(strides[index]) - finest))
        levels.append(level)
        channels[level] = channels.get(level, 0) + features.shape[1]
    if len(strides) - 1 not in channels:
        raise ConfigError(
            "this encoder's pyramid does not reach its patch grid: choose vit, vit3d or convnet"
        )
    return levels, channels
