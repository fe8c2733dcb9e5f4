"""What objectives of views share: which crops an encoder gets, making them, encoding them size by size.

Crops of one size share a forward pass, so that two global and eight local crops are two passes. Every crop
is keyed by (seed, position, its name) and stays what it is whatever the batch. Of a crop with `visible` below
1 the trained transformer computes a random part of the patches (as FLIP does, arXiv 2212.00794): a half costs
less than half, so that the same time holds more steps; slow copies of the network see all patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..masks import hide, split, visible_tokens
from ..views import CropConfig, Crops, Limits, multi_crop, preset
from .base import Batch

CropsOf = dict[int, list[CropConfig]]  # by number of spatial axes


def crops_for(given: Sequence[CropConfig], encoder: Encoder, presets: Mapping[int, str]) -> CropsOf:
    """The crops of an objective for each number of axes that its encoder takes.

    Args:
        given: `objective.crops`; each is for images with as many axes as its size has sides, without a size
            for all of them.
        presets: names in `views.PRESETS` by number of axes, where nothing is given.

    Raises:
        ConfigError: a size that the encoder does not take.
    """
    axes = [ndim for ndim in encoder.axes if ndim in presets]
    for crop in given:
        if crop.size and len(crop.size) not in axes:
            takes = " and ".join(f"{ndim}D" for ndim in axes)
            raise ConfigError(
                f"objective.crops: size {list(crop.size)} of {crop.name!r} has {len(crop.size)} sides, the "
                f"encoder takes {takes} images: give {' or '.join(map(str, axes))} sides"
            )
    chosen: CropsOf = {}
    for ndim in axes:
        own = [crop for crop in given if len(crop.size) in (0, ndim)]
        chosen[ndim] = own or preset(presets[ndim])
        for crop in chosen[ndim]:
            _fits(crop, encoder)
    return chosen


def count(crops: CropsOf) -> dict[int, int]:
    """Views of an image by number of axes."""
    return {ndim: sum(crop.count for crop in each) for ndim, each in crops.items()}


def sizes_of(crops: CropsOf, crop: Sequence[int]) -> list[tuple[int, ...]]:
    """Sizes that meet the encoder when the loader gives images of `crop`, each once."""
    sizes = [tuple(c.size) or tuple(crop) for c in crops.get(len(crop), [])]
    return list(dict.fromkeys(sizes))


def make(batch: Batch, crops: CropsOf) -> list[Crops]:
    """All crops of a batch, by size. Images that come without limits are their own black and white."""
    x = batch.image
    limits = batch.limits
    if limits is None:
        flat = x.flatten(2)
        limits = Limits(flat.amin(dim=2), flat.amax(dim=2))
    return multi_crop(
        x, crops[x.ndim - 2], batch.seed, batch.keys, spacing=batch.spacing, modality=batch.modality,
        limits=limits,
    )  # fmt: skip


def pooled(groups: Sequence[Crops], encoder: Encoder, batch: Batch | None = None) -> Tensor:
    """Pooled features [V, B, E] of all crops, in the order of `names`.

    Args:
        groups: of `make`.
        encoder: what encodes them.
        batch: whose keys the visible patches are drawn from; None: all patches are seen, as by a teacher.
    """
    parts = []
    for group in groups:
        features = encoder.embed(group.image, None if batch is None else seen(group, encoder, batch))
        parts.append(features.view(len(group.names), -1, features.shape[-1]))
    return torch.cat(parts)


def seen(group: Crops, encoder: Encoder, batch: Batch) -> Tensor | None:
    """Indices [K B, n] of the patches that the trained encoder sees, a stream for each crop; None: of all."""
    if group.visible == 1:
        return None
    grid, ratio = encoder.grid(group.image.shape[2:]), 1 - group.visible
    count, device = visible_tokens(grid, ratio), group.image.device
    drawn = [
        split(hide(batch.seed, batch.keys, grid, ratio, stream=f"{name}:visible", device=device), count).keep
        for name in group.names
    ]
    return torch.cat(drawn)


def names(groups: Sequence[Crops]) -> list[str]:
    """Names of all V crops: "global:0", ..."""
    return [name for group in groups for name in group.names]


def pictures(batch: Batch, crops: CropsOf, most: int = 4) -> dict[str, Tensor]:
    """The images and the first crops of each size, for `Objective.panel`."""
    shown = {"input": batch.image}
    for group in make(batch, crops):
        shown |= {name: group.of(name) for name in group.names[: most // 2]}
    return shown


def _fits(crop: CropConfig, encoder: Encoder) -> None:
    if crop.visible < 1 and not encoder.supports_keep:
        raise ConfigError(
            f"objective.crops: visible {crop.visible} of {crop.name!r}: encoder {encoder.config.name} cannot "
            "compute a part of the patches; leave visible out, or choose a plain transformer"
        )
    if not crop.size:
        return
    try:
        grid = encoder.grid(crop.size)
        visible_tokens(grid, 1 - crop.visible)
    except ConfigError as error:
        raise ConfigError(f"objective.crops: size of {crop.name!r}: {error}") from error
