"""Run lengths and small masks inside annotation files -> outlines along the pixels' edges.

An outline runs between pixels, so its corners are whole numbers where the centre of the first pixel is at
0.5, and drawing it again (a pixel belongs to what holds its centre) gives exactly the pixels it came from.
Parts that touch only at a corner are two outlines. Cost: about 6 us a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CollectionError

Points = tuple[tuple[float, float], ...]

MOST_PIXELS = 1 << 28  # of one mask; more is a mistake or an attack

_EAST, _SOUTH, _WEST, _NORTH = range(4)


def outlines(mask: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[Points]:
    """Outlines of the parts of a mask, each followed by those of its holes; what encloses comes first.

    Args:
        mask: bool [H, W].
        offset: (y, x) of its first pixel.

    Returns:
        Closed polygons of (y, x); none for an empty mask.
    """
    from scipy import ndimage

    parts: np.ndarray = ndimage.label(mask)[0]  # type: ignore[index]
    found = []
    for number, window in enumerate(ndimage.find_objects(parts), 1):
        assert window is not None
        start = (offset[0] + window[0].start, offset[1] + window[1].start)
        loops = _loops(np.equal(parts[window], number))
        loops.sort(key=_area, reverse=True)  # the outline itself is larger than its holes
        found.append([tuple((float(y + start[0]), float(x + start[1])) for y, x in loop) for loop in loops])
    found.sort(key=lambda loops: _area(loops[0]), reverse=True)
    return [loop for loops in found for loop in loops]


def decode_runs(counts: Sequence[int] | str | bytes, size: Sequence[int]) -> np.ndarray:
    """The mask of COCO's run lengths: zeros first, down the columns; a list, or pycocotools' text.

    Args:
        size: (H, W).

    Returns:
        bool [H, W].

    Raises:
        CollectionError: the runs are not as many pixels as the size says.
    """
    height, width = (int(n) for n in size)
    if not 0 < height * width <= MOST_PIXELS:
        raise CollectionError(f"run lengths of {height} x {width} pixels, expected 1 to {MOST_PIXELS:,}")
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else counts
    if not all(isinstance(n, int) and 0 <= n <= height * width for n in runs) or sum(runs) != height * width:
        found = sum(n for n in runs if isinstance(n, int) and n >= 0)
        said = f"{found} pixels" if found <= MOST_PIXELS else "more pixels than an image has"
        raise CollectionError(f"run lengths for {said}, expected {height} x {width}: export it again")
    lengths = np.asarray(runs, np.int64)
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def _unpacked(counts: str | bytes) -> list[int]:
    """Run lengths from pycocotools' text (rleFrString): five bits a character, differences from the third."""
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        piece = byte - 48
        value |= (piece & 0x1F) << shift
        shift += 5
        if piece & 0x20:
            continue
        if piece & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def _loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Boundaries of one part as corners (y, x), the part always on the right hand of the way."""
    padded = np.pad(mask, 1).astype(np.int8)
    across = padded[1:, 1:-1] - padded[:-1, 1:-1]  # [H + 1, W]: 1 above a pixel, -1 below one
    down = (padded[1:-1, :-1] - padded[1:-1, 1:]).T  # [W + 1, H]: 1 right of a pixel, -1 left of one
    ways: dict[tuple[int, int, int], tuple[int, int]] = {}  # (y, x, direction) -> where it ends
    for line, start, stop, forward in _runs(across):
        if forward:
            ways[line, start, _EAST] = (line, stop)
        else:
            ways[line, stop, _WEST] = (line, start)
    for line, start, stop, forward in _runs(down):
        if forward:
            ways[start, line, _SOUTH] = (stop, line)
        else:
            ways[stop, line, _NORTH] = (start, line)
    loops = []
    while ways:
        y, x, direction = next(iter(ways))
        loop = []
        while (end := ways.pop((y, x, direction), None)) is not None:
            loop.append((y, x))
            y, x = end
            right, left = (direction + 1) % 4, (direction + 3) % 4
            direction = right if (y, x, right) in ways else left
        loops.append(loop)
    return loops


def _runs(lines: np.ndarray) -> list[tuple[int, int, int, bool]]:
    """(line, start, stop, positive) of the runs of equal values other than 0 in each line."""
    change = np.diff(np.pad(lines, ((0, 0), (1, 1))), axis=1)
    line, place = np.nonzero(change)
    value = np.pad(lines, ((0, 0), (0, 1)))[line, place]
    keep = np.flatnonzero(value)  # every line ends in zeros: a run's end is the next change in its line
    columns = (line[keep], place[keep], place[keep + 1], value[keep] > 0)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _area(loop: Sequence[Any]) -> float:
    """Enclosed area, whichever way round."""
    y, x = np.asarray(loop, float).T
    return abs(float(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1)))) / 2
