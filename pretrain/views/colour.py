"""Colour jitter, grayscale and solarisation of pictures in [0, 1], with torchvision's meaning of each number.

The order is fixed: brightness, contrast, saturation, hue. torchvision draws it for each picture; in a batch
that would be 24 programmes, and kornia draws one order a batch, which a batch of other company would change.
Hue is turned without a detour over a HSV image: with value v, chroma c and hue h in sixths of a turn, a
channel is v - c clamp(min(k, 4 - k), 0, 1), k = (offset + h) mod 6, offset 5, 3, 1 for R, G, B.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .draw import between, draw, per_sample, sometimes
from .normalise import Limits, in_unit, unit_limits

GREY = (0.2989, 0.587, 0.114)  # torchvision's weights of R, G and B


def grey(u: Tensor) -> Tensor:
    """[B, 3, ...] -> [B, 1, ...], torchvision's grayscale; one channel is returned as it is."""
    if u.shape[1] == 1:
        return u
    _require_rgb(u)
    return sum((u[:, k : k + 1] * GREY[k] for k in range(1, 3)), start=u[:, :1] * GREY[0])


def colour_jitter(u: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Change the colours of pictures u [B, 3 or 1, ...] in [0, 1]; 1, 1, 1 and 0 leave them alone exactly.

    Args:
        brightness: [B] factor on the pixels.
        contrast: [B] factor on the distance from the mean of the grey picture.
        saturation: [B] factor on the distance from the grey pixel.
        hue: [B] share of a turn, -0.5 to 0.5.
    """
    u = (u * per_sample(brightness, u)).clamp_(0, 1)
    u = _blend(u, grey(u).mean(tuple(range(1, u.ndim)), keepdim=True), contrast)
    if u.shape[1] == 1:
        return u
    u = _blend(u, grey(u), saturation)
    return torch.where(per_sample(hue == 0, u), u, _turn_hue(u, hue))


def grayscale(u: Tensor) -> Tensor:
    """The grey picture in all channels."""
    return grey(u).expand_as(u).contiguous()


def solarise(u: Tensor, threshold: Tensor) -> Tensor:
    """Invert pixels at or above threshold [B]; above 1 leaves the picture alone exactly."""
    return torch.where(u >= per_sample(threshold, u), 1 - u, u)


def random_colour(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    probability: float = 1.0,
    limits: Limits | None = None,
    only: Tensor | None = None,
    stream: str = "colour",
) -> Tensor:
    """`colour_jitter`: factors uniform in [max(0, 1 - a), 1 + a], hue uniform in +- `hue`.

    limits: black and white of x; None: x lies in [0, 1].
    """
    draws = draw(x, seed, stream, positions, 5)
    ranges = [(max(0.0, 1 - a), 1 + a) for a in (brightness, contrast, saturation)] + [(-hue, hue)]
    factors = [between(draws.u[:, k + 1], ends) for k, ends in enumerate(ranges)]

    def change(part: Tensor, black: Tensor, white: Tensor, *parameters: Tensor) -> Tensor:
        return in_unit(part, black, white, lambda u: colour_jitter(u, *parameters))

    return sometimes(x, draws.below(probability, only), change, *unit_limits(x, limits), *factors)


def random_grayscale(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    probability: float = 0.2,
    limits: Limits | None = None,
    only: Tensor | None = None,
    stream: str = "grayscale",
) -> Tensor:
    """`grayscale` with this probability."""
    draws = draw(x, seed, stream, positions, 1)

    def change(part: Tensor, black: Tensor, white: Tensor) -> Tensor:
        return in_unit(part, black, white, grayscale)

    return sometimes(x, draws.below(probability, only), change, *unit_limits(x, limits))


def random_solarise(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    threshold: float = 0.5,
    probability: float = 0.2,
    limits: Limits | None = None,
    only: Tensor | None = None,
    stream: str = "solarise",
) -> Tensor:
    """`solarise` at a fixed threshold with this probability."""
    draws = draw(x, seed, stream, positions, 1)

    def change(part: Tensor, black: Tensor, white: Tensor, at: Tensor) -> Tensor:
        return in_unit(part, black, white, lambda u: solarise(u, at))

    level = torch.full((len(x),), threshold, device=x.device)
    return sometimes(x, draws.below(probability, only), change, *unit_limits(x, limits), level)


def _blend(u: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(other, u, per_sample(factor, u)).clamp_(0, 1)  # exactly u for a factor of 1


def _turn_hue(u: Tensor, hue: Tensor) -> Tensor:
    red, green, blue = u[:, :1], u[:, 1:2], u[:, 2:3]
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    sixths = torch.where(
        value == red,
        (green - blue).mul_(scale),
        torch.where(value == green, (blue - red).mul_(scale).add_(2), (red - green).mul_(scale).add_(4)),
    ).add_(6 * per_sample(hue, u))
    out = torch.empty_like(u)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = sixths + offset
        k.sub_(torch.floor(k / 6).mul_(6))
        share = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.sub(value, share.mul_(chroma), out=out[:, channel : channel + 1])
    return out


def _require_rgb(u: Tensor) -> None:
    if u.shape[1] != 3:
        raise ValueError(f"colours have 3 channels, the images have {u.shape[1]}: switch this transform off")
