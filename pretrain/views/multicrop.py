"""Several crops of each loaded image in one go: global and local views, grouped by size, with their boxes.

The i-th crop of a name draws from the stream "name:i" ("global:0", "local:7"), so that a crop stays what it
is when another is added. Crops are cut from what the loader read: load more pixels than the largest crop
shows (a local crop of a twentieth of 224 x 224 has 50 pixels to fill 96), whole images for recipes whose
scale is a share of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import random_boxes
from .config import CropConfig
from .draw import on_device, require_float32
from .normalise import Limits
from .placement import random_placement
from .view import random_appearance


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """Crops of one size, K of each of B images. Row k B + b is crop k of image b."""

    names: tuple[str, ...]  # of the K crops: "global:0", ...
    image: Tensor  # float32 [K B, C, *size]
    box: Tensor  # float32 [K B, n, 2] edges in voxels of the loaded image, before rotation
    flips: Tensor  # bool [K B, n]
    matrix: Tensor  # float32 [K B, n, n + 1]: crop -> loaded image, both counted from their centres
    sample: Tensor  # int64 [K B]: b
    spacing: Tensor | None  # float32 [K B, n] mm a voxel of the crop
    visible: float = 1.0  # share of the patches that the trained encoder computes

    def of(self, name: str) -> Tensor:
        """Images [B, C, *size] of one crop."""
        k, batch = self.names.index(name), len(self.image) // len(self.names)
        return self.image[k * batch : (k + 1) * batch]


def multi_crop(
    x: Tensor,
    crops: Sequence[CropConfig],
    seed: int,
    positions: Tensor,
    *,
    spacing: Tensor | None = None,
    modality: Tensor | None = None,
    limits: Limits | None = None,
) -> list[Crops]:
    """Cut, resize, turn and change all `crops` of each image.

    Args:
        x: [B, C, *spatial] float32, normalised, as loaded.
        positions, spacing, modality, limits: see `random_view`.

    Returns:
        One `Crops` a size (and a share of visible patches), in the order in which they are named first.

    Raises:
        TypeError, ValueError: as `random_view`.
    """
    require_float32(x)
    groups: dict[tuple[float, ...], list[Crops]] = {}
    numbers: dict[str, int] = {}
    for config in crops:
        for _ in range(config.count):
            number = numbers.get(config.name, 0)
            numbers[config.name] = number + 1
            crop = random_crop(
                x, config, seed, positions, spacing=spacing, modality=modality, limits=limits,
                stream=f"{config.name}:{number}",
            )  # fmt: skip
            groups.setdefault((config.visible, *crop.image.shape[2:]), []).append(crop)
    return [_joined(group) for group in groups.values()]


def random_crop(
    x: Tensor,
    config: CropConfig,
    seed: int,
    positions: Tensor,
    *,
    spacing: Tensor | None = None,
    modality: Tensor | None = None,
    limits: Limits | None = None,
    stream: str = "crop",
) -> Crops:
    """One crop of each image; see `multi_crop`."""
    size = tuple(config.size) or tuple(x.shape[2:])
    if len(size) != x.ndim - 2:
        raise ValueError(
            f"crops.size {list(size)} of {config.name!r} is no size of images {list(x.shape[2:])}"
        )
    box = None
    if config.scale:
        box = random_boxes(
            x, seed, positions, size=size, scale=config.scale, aspect=config.aspect, depth=config.depth,
            stream=f"{stream}:box",
        )  # fmt: skip
    place = random_placement(
        x, config.view, seed, positions, spacing=spacing, stream=stream, box=box, size=size
    )
    image = random_appearance(
        place.image(x), config.view, seed, positions, modality=modality, limits=limits, stream=stream
    )
    return Crops(
        names=(stream,), image=image, box=place.box, flips=place.flips, matrix=place.matrix,
        sample=torch.arange(len(x), device=x.device),
        spacing=None if spacing is None else place.spacing(on_device(spacing, x.device).to(torch.float32)),
        visible=config.visible,
    )  # fmt: skip


def _joined(group: Sequence[Crops]) -> Crops:
    spacings = [crop.spacing for crop in group if crop.spacing is not None]
    return Crops(
        names=tuple(name for crop in group for name in crop.names),
        image=torch.cat([crop.image for crop in group]),
        box=torch.cat([crop.box for crop in group]),
        flips=torch.cat([crop.flips for crop in group]),
        matrix=torch.cat([crop.matrix for crop in group]),
        sample=torch.cat([crop.sample for crop in group]),
        spacing=torch.cat(spacings) if spacings else None,
        visible=group[0].visible,
    )
