"""Small pictures of some images of a map: those nearest to the middles of the cells of a grid over it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...data.normalise import intensity
from ...data.shards.reader import SampleRef, Shards
from ..tasks.base import resized
from .images import Item
from .table import Row

logger = logging.getLogger(__name__)

SIDE = 56  # pixels
CELLS = 8  # of the grid, along a side


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture of one row."""

    row: int
    pixels: np.ndarray  # uint8 [h, w, 3]


def thumbnails(rows: Sequence[Row], items: Sequence[Item], places: np.ndarray) -> list[Thumbnail]:
    """Pictures of rows that are spread over the map; files that cannot be read again are left out.

    Args:
        places: [N, 2] of the rows.
    """
    by_file = {item.file: item for item in items}
    found = []
    for row in spread_out(places):
        item = by_file.get(rows[row].file)
        if item is None:
            continue
        try:
            images = item.read()
            for _ in range(rows[row].image):
                next(images)
            found.append(Thumbnail(row, _picture(*next(images))))
        except Exception as error:  # a picture of a picture is not worth the map
            logger.warning(
                "a thumbnail is left out: its file cannot be read again (%s)", type(error).__name__
            )
    return found


def spread_out(places: np.ndarray) -> list[int]:
    """For each cell of the grid that holds points, the one nearest to its middle."""
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - low) / np.maximum(high - low, 1e-12) * CELLS
    cells = np.minimum(scaled.astype(int), CELLS - 1)
    away = np.abs(scaled - cells - 0.5).sum(axis=1)
    best: dict[tuple[int, int], int] = {}
    for number, cell in enumerate(map(tuple, cells.tolist())):
        if cell not in best or away[number] < away[best[cell]]:
            best[cell] = number
    return sorted(best.values())


def _picture(shards: Shards, ref: SampleRef) -> np.ndarray:
    """The picture, or a volume's middle slice, at SIDE pixels, its sides in proportion."""
    meta = shards.meta(ref)
    shape = [int(n) for n in meta["shape"][1:]]
    height, width = shape[-2:]
    size = [max(1, round(SIDE * n / max(height, width))) for n in (height, width)]
    if len(shape) == 3:
        pixels = resized(shards.read(ref, (shape[0] // 2, 0, 0), (1, height, width))[:, 0], size)
    else:
        pixels = shards.read_resized(ref, (0, 0, height, width), size)
    rule = intensity(meta)
    low, high = (np.asarray(v).reshape(-1, 1, 1) for v in (rule.low, rule.high))
    shown = (np.clip(pixels, low, high) - low) / np.maximum(high - low, 1e-12) * 255
    shown = shown.astype(np.uint8)
    return np.moveaxis(shown if len(shown) == 3 else shown[[0, 0, 0]], 0, -1)
