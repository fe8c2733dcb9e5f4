"""Crops of volumes that show more, or less, than their voxels: resampled on the device to one size.

The loader hands over what is stored, boxes of any size in one row without padding (`data.zoom`): a box of
twice the crop has eight times its voxels, so a batch padded to its largest would be several times as large.
The price is a loop over the samples, a few kernels each, for the few volumes of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .boxes import whole
from .separable import resize


def unzoom(
    batch: Mapping[str, Any], channels: int, to_float: Callable[[Mapping[str, Any], int], Tensor]
) -> Tensor:
    """Normalise and resample the crops of a batch whose `image` [n] is a row of boxes.

    Antialiased (`resize`): a voxel of the crop is the mean of what it covers, as of a coarser scan. What the
    volume does not fill is the lowest value that the normalised image can have.

    Args:
        batch: `shape` [C, D, H, W] of each box and `zoomed`, what becomes of it (`data.stream.crops.Zoomed`).
        to_float: normalises a batch of one box.

    Returns:
        float32 [B, channels, *crop].
    """
    crops, start = [], 0
    for row, (shape, (inner, crop)) in enumerate(zip(batch["shape"], batch["zoomed"], strict=True)):
        numbers = {n: batch[n][row : row + 1, : shape[0]] for n in ("low", "high", "mean", "std")}
        stop = start + math.prod(shape)
        x = to_float(numbers | {"image": batch["image"][start:stop].view(1, *shape)}, channels)
        start = stop
        if tuple(inner) != tuple(x.shape[2:]):
            x = resize(x, whole(x), inner)
        if tuple(inner) != tuple(crop):
            black = ((numbers["low"] - numbers["mean"]) / numbers["std"]).to(torch.float32)
            black = black.view(1, -1, *[1] * len(crop))
            before = [(c - i) // 2 for c, i in zip(crop, inner, strict=True)]
            sides = [(b, c - i - b) for b, c, i in zip(before, crop, inner, strict=True)]
            padding = [n for pair in reversed(sides) for n in pair]
            x = functional.pad(x - black, padding).add_(black)
        crops.append(x)
    return torch.cat(crops)
