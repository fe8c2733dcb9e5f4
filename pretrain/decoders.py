"""From features back to pixels: what reconstruction, restoration and supervised objectives put on an encoder.

`UNet` walks from the coarsest features to full resolution by the strides of the pyramid and joins each of
its maps where it belongs; below the finest map it goes on by factors of two. The segmentation head of
finetune/heads.py is this network with a stem on the image beside it. `PixelDecoder` has no such stem,
because a decoder that saw the image would have nothing to predict.

A plain transformer keeps one grid at all depths, and a U-Net over four equal grids would cost more than the
encoder: there the decoder is one linear layer from a token to the pixels of its patch, as in SimMIM
(arXiv 2111.09886). Sizes are explicit (interpolation to ceil(size / stride)), so patches that are no power
of two (14) work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.errors import ConfigError
from .encoders.base import Encoder, Features

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
SMOOTH = {2: "bilinear", 3: "trilinear"}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Level(NamedTuple):
    """One map of a pyramid."""

    channels: int
    stride: tuple[int, ...]  # pixels of one cell


class PixelDecoder(nn.Module):
    """`Features` with a pyramid -> [B, channels_out, *spatial] at the image's resolution.

    Args:
        encoder: measured once with a blank image, not kept.
        channels_out: channels of the result, e.g. those of the image.
        width: channels at full resolution; doubled at each coarser stride up to `most`. Multiples of 8.
        ndim: spatial axes, for an encoder that takes several; None: `encoder.ndim`.
    """

    def __init__(
        self, encoder: Encoder, channels_out: int, width: int = 16, most: int = 128, ndim: int | None = None
    ) -> None:
        super().__init__()
        ndim = ndim or encoder.ndim
        levels = pyramid_levels(encoder, ndim)
        self.patch_size = levels[-1].stride
        self.linear: nn.Module | None = None
        self.unet: UNet | None = None
        if all(level.stride == self.patch_size for level in levels):
            # A transposed convolution of kernel = stride is the linear layer and the unpatchifying in one.
            linear = TRANSPOSED[ndim](
                levels[-1].channels, channels_out, self.patch_size, stride=self.patch_size
            )
            nn.init.trunc_normal_(linear.weight, std=0.02)
            self.linear = linear
        else:
            self.unet = UNet(levels, channels_out, width, most)

    def forward(self, features: Features) -> Tensor:
        """Raises ValueError for features that were computed without `pyramid=True`."""
        if features.pyramid is None:
            raise ValueError("a decoder needs the pyramid: call encoder(image, pyramid=True)")
        if self.linear is not None:
            return self.linear(features.pyramid[-1])
        assert self.unet is not None
        grid = features.pyramid[-1].shape[2:]
        return self.unet.decode(features.pyramid, [g * p for g, p in zip(grid, self.patch_size, strict=True)])


class UNet(nn.Module):
    """The upward half of a U-Net over a pyramid.

    Args:
        levels: maps of the pyramid, fine to coarse, as `pyramid_levels` gives them.
        outputs: channels of the result.
        width: channels at full resolution; doubled at each coarser stride up to `most`. Multiples of 8.
        details: whether maps finer than the pyramid will be handed to `decode`.
    """

    def __init__(
        self, levels: Sequence[Level], outputs: int, width: int, most: int, details: bool = False
    ) -> None:
        super().__init__()
        if width % 8 or most % 8:
            raise ConfigError(f"decoder width {width} and most {most}: give multiples of 8 (group norm)")
        ndim = len(levels[-1].stride)
        self.strides = strides_of(levels)
        self.channels = [min(width * 2**index, most) for index in range(len(self.strides))]
        self.levels = [self.strides.index(level.stride) for level in levels]
        joined: dict[int, int] = {}
        for index, level in zip(self.levels, levels, strict=True):
            joined[index] = joined.get(index, 0) + level.channels
        self.lateral = nn.ModuleDict(
            {str(index): _project(ndim, found, self.channels[index]) for index, found in joined.items()}
        )
        steps: list[nn.Module] = []
        narrow: list[nn.Module] = []
        for index in range(len(self.strides) - 2, -1, -1):
            here = self.channels[index]
            skip = here if index in joined or (details and index < min(self.levels)) else 0
            narrow.append(CONV[ndim](self.channels[index + 1], here, 1))
            steps.append(Block(ndim, here + skip, here))
        self.narrow, self.steps = nn.ModuleList(narrow), nn.ModuleList(steps)
        self.head = CONV[ndim](self.channels[0], outputs, 1)

    def sizes(self, spatial: Sequence[int]) -> list[tuple[int, ...]]:
        """Sizes of the maps at each stride, for an image of `spatial` pixels."""
        return [tuple(-(-s // f) for s, f in zip(spatial, stride, strict=True)) for stride in self.strides]

    def decode(
        self,
        pyramid: Sequence[Tensor],
        spatial: Sequence[int],
        details: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """[B, outputs, *spatial] from the pyramid; `details`: number of a stride -> [B, channels, *size]."""
        return self.head(self.ascend(pyramid, spatial, details)[-1])

    def ascend(
        self,
        pyramid: Sequence[Tensor],
        spatial: Sequence[int],
        details: Mapping[int, Tensor] | None = None,
    ) -> list[Tensor]:
        """Maps of the decoder, coarse to fine, the last at full resolution: each [B, channels, *size]."""
        sizes = self.sizes(spatial)
        mode = SMOOTH[len(spatial)]
        skips = self._laterals(pyramid, sizes) | dict(details or {})
        last = len(sizes) - 1
        maps = [skips[last]]
        for narrow, block, index in zip(self.narrow, self.steps, range(last - 1, -1, -1), strict=True):
            # Narrowed before it is enlarged: the same function of the input at an eighth of the cost in 3D.
            y = functional.interpolate(narrow(maps[-1]), size=sizes[index], mode=mode, align_corners=False)
            maps.append(block(torch.cat([y, skips[index]], dim=1) if index in skips else y))
        return maps

    def _laterals(self, pyramid: Sequence[Tensor], sizes: Sequence[tuple[int, ...]]) -> dict[int, Tensor]:
        """Join the pyramid's maps by stride and project them: index -> [B, channels[index], *size]."""
        found: dict[int, list[Tensor]] = {}
        for index, maps in zip(self.levels, pyramid, strict=True):
            if maps.shape[2:] != sizes[index]:
                maps = functional.interpolate(
                    maps, size=sizes[index], mode=SMOOTH[maps.ndim - 2], align_corners=False
                )
            found.setdefault(index, []).append(maps)
        return {index: self.lateral[str(index)](torch.cat(maps, 1)) for index, maps in found.items()}


class Block(nn.Module):
    """Two 3-wide convolutions with group norm and a residual: [B, in, *s] -> [B, out, *s]."""

    def __init__(self, ndim: int, before: int, after: int) -> None:
        super().__init__()
        conv = CONV[ndim]
        self.first = conv(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, after)
        self.second = conv(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, after)
        self.skip = conv(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.leaky_relu(self.norm1(self.first(x)), 0.01, inplace=True)
        return functional.leaky_relu(self.norm2(self.second(y)) + self.skip(x), 0.01, inplace=True)


def _project(ndim: int, before: int, after: int) -> nn.Module:
    return nn.Sequential(CONV[ndim](before, after, 1, bias=False), nn.GroupNorm(8, after), nn.LeakyReLU(0.01))


def stride_chain(patch: Sequence[int]) -> list[tuple[int, ...]]:
    """Strides from 1 to the patch: (4, 16, 16) gives (1,1,1), (1,2,2), (1,4,4), (2,8,8), (4,16,16)."""
    chain = [tuple(int(side) for side in patch)]
    while max(chain[-1]) > 1:
        chain.append(tuple(-(-side // 2) for side in chain[-1]))
    return chain[::-1]


def strides_of(levels: Sequence[Level]) -> list[tuple[int, ...]]:
    """Strides of a decoder from 1 to the coarsest: halvings down from the finest map, then each map's own."""
    own = sorted({level.stride for level in levels})
    return [*stride_chain(own[0])[:-1], *own]


def pyramid_levels(encoder: Encoder, ndim: int | None = None) -> list[Level]:
    """What the encoder's pyramid holds, fine to coarse, measured with one blank image of `ndim` axes.

    Raises:
        ConfigError: an encoder without a pyramid, or one whose pyramid does not end at the patch grid.
    """
    patch = encoder.patch_of(ndim or encoder.ndim)
    size = [2 * side for side in patch]
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    with torch.no_grad():
        weight = next(encoder.parameters())
        blank = torch.zeros(1, encoder.in_channels, *size, device=weight.device, dtype=weight.dtype)
        pyramid = encoder(blank, pyramid=True).pyramid
    for module, training in modes:
        module.training = training
    name = encoder.config.name
    if not pyramid:
        raise ConfigError(f"encoder {name} gives no feature pyramid: choose vit, vit3d, convnet or resenc")
    levels = [
        Level(maps.shape[1], tuple(s // g for s, g in zip(size, maps.shape[2:], strict=True)))
        for maps in pyramid
    ]
    if levels[-1].stride != tuple(patch):
        raise ConfigError(
            f"the pyramid of encoder {name} ends at {levels[-1].stride} pixels, not at its patch {patch}: "
            "choose vit, vit3d, convnet or resenc"
        )
    return levels
