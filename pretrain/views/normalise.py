"""From the loader's integers to what an encoder sees, and where black and white lie in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .zoom import unzoom


class Limits(NamedTuple):
    """Values of the normalised image that stand for 0 and 1 of an ordinary picture; float32 [B, C] each."""

    black: Tensor
    white: Tensor


def to_float(batch: Mapping[str, Any], channels: int) -> Tensor:
    """Normalise a batch as it left the loader: (clip(image, low, high) - mean) / std.

    Args:
        batch: `image` [B, C, ...] in any integer or float dtype; `low`, `high`, `mean`, `std` [B, C]. Crops
            to be zoomed are resampled, see `unzoom`.
        channels: of the result; a grey image is repeated.

    Returns:
        float32 [B, channels, ...].

    Raises:
        ValueError: the image has neither one nor `channels` channels.
    """
    if "zoomed" in batch:
        return unzoom(batch, channels, to_float)
    image: Tensor = batch["image"]
    if image.shape[1] not in (1, channels):
        raise ValueError(f"the image has {image.shape[1]} channels, the encoder sees {channels}")
    shape = (*batch["low"].shape, *[1] * (image.ndim - 2))
    low, high, mean, std = (
        batch[name].to(torch.float32).view(shape) for name in ("low", "high", "mean", "std")
    )
    x = image.to(torch.float32)
    x = (torch.minimum(torch.maximum(x, low), high) - mean) / std
    if x.shape[1] != channels:
        x = x.expand(-1, channels, *[-1] * (x.ndim - 2)).contiguous()
    return x


def limits(batch: Mapping[str, Any], channels: int) -> Limits:
    """The least and largest value that `to_float` can give, for each sample and channel."""
    low, high, mean, std = (batch[name].to(torch.float32) for name in ("low", "high", "mean", "std"))
    black, white = (((end - mean) / std).expand(-1, channels) for end in (low, high))
    return Limits(black, white)


def in_unit(x: Tensor, black: Tensor, white: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a change of pictures in [0, 1] to x, whose black and white are [B, C]."""
    shape = (*black.shape, *[1] * (x.ndim - 2))
    low, span = black.view(shape), (white - black).view(shape)
    return torch.addcmul(low, span, change((x - low).div_(span).clamp_(0, 1)))


def unit_limits(x: Tensor, given: Limits | None) -> Limits:
    """`given`, or black 0 and white 1: then x is taken for a picture in [0, 1]."""
    if given is not None:
        return Limits(*(end.to(torch.float32).expand(-1, x.shape[1]) for end in given))
    zero = torch.zeros(x.shape[:2], device=x.device)
    return Limits(zero, zero + 1)
