"""Augmentation of images and their boxes: flips, scale and shift, then intensity, drawn as for other tasks.

No rotation: the box around a turned box is larger than the object, and the network would learn that. A box
that a view cuts is cut too, and is left out where less than half of it can still be seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...pretrain.views import ViewConfig, random_placement
from ..augment import STREAM, alter
from ..config import AugmentConfig

_SEEN = 0.5  # least share of a box that a view must show
_SHIFT = 0.1  # largest shift, share of a side


def augment_boxes(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    positions: Tensor,
    config: AugmentConfig,
    *,
    seed: int,
    flips: Sequence[int] = (),
    foreground: Sequence[float] | None = None,
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Draw and apply; returns the images and {"boxes", "labels"} of each.

    Args:
        image: [B, C, *spatial] float, normalised.
        boxes: [B, M, 2 * axes] edges in pixels of the image.
        labels: int64 [B, M]; negative where there is no box.
        positions: int64 [B], best on the CPU.
        flips: spatial axes, from 0, that may be mirrored.
        foreground: (mean, deviation) of what is in the boxes, the unit of the intensity changes.
    """
    geometry = ViewConfig(
        flip=0.5, flip_axes=list(flips), affine=config.affine, degrees=0.0, scale=list(config.scale),
        shift=_SHIFT, padding="zeros",
    )  # fmt: skip
    place = random_placement(image, geometry, seed, positions, stream=STREAM)
    spatial = image.shape[2:]
    targets = [
        visible(*viewed(boxes[index], labels[index], place.matrix[index], spatial), spatial)
        for index in range(len(image))
    ]
    image = alter(place.image(image), positions, config, seed=seed, foreground=foreground)
    return image, targets


def viewed(boxes: Tensor, labels: Tensor, matrix: Tensor, spatial: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Boxes [M, 2 * axes] of an image as they lie in a view of the same size; padding is taken out.

    Args:
        matrix: [axes, axes + 1] view -> image, both counted from their centres; no rotation.
    """
    axes = len(spatial)
    kept = labels >= 0
    half = torch.tensor([side / 2 for side in spatial], device=boxes.device)
    step, offset = matrix[:, :axes].diagonal().to(boxes), matrix[:, axes].to(boxes)
    ends = [(part - half - offset) / step + half for part in boxes[kept].split(axes, dim=1)]
    return torch.cat([torch.minimum(*ends), torch.maximum(*ends)], dim=1), labels[kept]


def visible(boxes: Tensor, labels: Tensor, spatial: Sequence[int]) -> dict[str, Tensor]:
    """Boxes cut to the image, without those of which too little is left."""
    axes = len(spatial)
    size = torch.tensor([*spatial, *spatial], device=boxes.device, dtype=boxes.dtype)
    cut = torch.minimum(boxes.clamp_min(0), size)
    sides = [part[:, axes:] - part[:, :axes] for part in (cut, boxes)]
    kept = (sides[0].clamp_min(0).prod(dim=1) >= _SEEN * sides[1].prod(dim=1)) & (sides[0] > 0).all(dim=1)
    return {"boxes": cut[kept], "labels": labels[kept]}
