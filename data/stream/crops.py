"""Where a crop lies, and which channels it takes: pure functions of uniform draws in [0, 1).

Pictures: a box of random area and aspect (Szegedy et al. 2015, "Inception" crops, as torchvision's
RandomResizedCrop), but without its rejection loop: the box is cut to the picture, then to the aspect limits.
Volumes: a box of fixed size, aimed at tissue for a share of the crops. Its origin is snapped to the grid of
stored blocks where the volume is larger, since an aligned 96^3 box touches 27 blocks of 32 and any other 64:
2.2 ms instead of 4.2. The price is 32^3 times fewer origins; a random affine on the device brings them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

PICTURE_DRAWS = 4
VOLUME_DRAWS = 5


def picture_box(
    shape: Sequence[int],
    size: Sequence[int],
    draws: Sequence[float],
    *,
    area: Sequence[float],
    aspect: Sequence[float],
) -> tuple[float, float, float, float]:
    """Draw the box of a picture (H, W) that will be resized to `size` (h, w).

    Args:
        draws: four numbers in [0, 1): area, aspect, vertical and horizontal place.
        area: least and largest share of the picture, uniform.
        aspect: least and largest stretch of width against height after resizing, log-uniform.

    Returns:
        (y0, x0, y1, x1) in pixels, fractions, inside the picture. On a picture far longer than wide the
        aspect limits win over the area.
    """
    height, width = float(shape[0]), float(shape[1])
    square = size[1] / size[0]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = square * math.exp(low + (high - low) * draws[1])
    pixels = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    h, w = min(math.sqrt(pixels / ratio), height), min(math.sqrt(pixels * ratio), width)
    h, w = min(h, w / (square * aspect[0])), min(w, h * square * aspect[1])
    y, x = draws[2] * (height - h), draws[3] * (width - w)
    return y, x, min(y + h, height), min(x + w, width)


def volume_box(
    shape: Sequence[int],
    size: Sequence[int],
    draws: Sequence[float],
    *,
    occupied: np.ndarray,
    brick: int,
    foreground: float,
    snap: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Draw the box of a volume (D, H, W), at most `size`; an axis shorter than `size` is taken whole.

    Args:
        draws: five numbers in [0, 1): aim at tissue or not, which brick, place along each axis.
        occupied: boolean [d, h, w], bricks with tissue, at least one.
        brick: voxels along the edge of a brick.
        foreground: share of the crops whose centre lies in an occupied brick (where the edges allow).
        snap: grid of the origins along each axis, for axes with at least that much room; the last possible
            origin is allowed too, so that every voxel can be seen.

    Returns:
        origin and extent, three integers each.
    """
    extent = [min(n, s) for n, s in zip(size, shape, strict=True)]
    room = [s - n for s, n in zip(shape, extent, strict=True)]
    if draws[0] < foreground:
        chosen = np.flatnonzero(occupied)
        place = np.unravel_index(chosen[int(draws[1] * len(chosen))], occupied.shape)
        centres = [(int(p) + u) * brick for p, u in zip(place, draws[2:5], strict=True)]
        wanted = [c - n / 2 for c, n in zip(centres, extent, strict=True)]
    else:
        wanted = [u * (r + 1) - 0.5 for u, r in zip(draws[2:5], room, strict=True)]
    origin = [_snapped(w, r, g) for w, r, g in zip(wanted, room, snap, strict=True)]
    return origin, extent


def _snapped(wanted: float, room: int, grid: int) -> int:
    """The allowed origin nearest to `wanted` in [0, room]."""
    if room < grid:
        grid = 1
    nearest = min(max(math.floor(wanted / grid + 0.5) * grid, 0), room // grid * grid)
    return room if abs(room - wanted) < abs(nearest - wanted) else nearest


class Zoomed(NamedTuple):
    """What becomes of the box of a volume: resampled to `inner` voxels, in the middle of `crop`."""

    inner: tuple[int, ...]
    crop: tuple[int, ...]


def zoom_of(draw: float, limits: Sequence[float]) -> float:
    """Factor of a crop's extent from one number in [0, 1), log-uniform between `limits`."""
    low, high = math.log(limits[0]), math.log(limits[1])
    return math.exp(low + (high - low) * draw)


def zoomed(extent: Sequence[int], wanted: Sequence[int], zoom: float, crop: Sequence[int]) -> Zoomed:
    """How a box of `extent` voxels fills a frame of `crop`: wholly where it has all the voxels `wanted`.

    An axis that is shorter in the volume is resampled by the same factor, and padded.
    """
    inner = [
        c if e == w else min(c, max(1, round(e / zoom))) for e, w, c in zip(extent, wanted, crop, strict=True)
    ]
    return Zoomed(tuple(inner), tuple(crop))


def pad_to(image: np.ndarray, size: Sequence[int], value: np.ndarray) -> np.ndarray:
    """Centre an image [C, ...] in a larger frame filled with `value` [C], cut to the range of the dtype."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        value = np.clip(np.rint(value.astype(np.float64)), limits.min, limits.max)
    padded = np.empty((image.shape[0], *size), image.dtype)
    padded[:] = value.astype(image.dtype).reshape(-1, *[1] * len(size))
    place = tuple(slice((s - n) // 2, (s - n) // 2 + n) for s, n in zip(size, image.shape[1:], strict=True))
    padded[(slice(None), *place)] = image
    return padded


def channel_choice(stored: int, wanted: int, draws: Sequence[float]) -> list[int]:
    """Which of `stored` channels to take to have `wanted`: a drawn subset, or all of them, repeated in turn.

    Args:
        draws: `stored` numbers in [0, 1).
    """
    if stored <= wanted:
        return [i % stored for i in range(wanted)]
    order = sorted(range(stored), key=lambda i: draws[i])
    return sorted(order[:wanted])
