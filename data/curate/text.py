"""How much looks like lettering in a picture: characters of one colour and height, in a row on one baseline.

Burnt-in names and dates are what must not leave a hospital. This is a suspicion, not a reading: strokes that
stand out from their surroundings and have one colour are cut into connected shapes, and shapes of a letter's
proportions count when at least four of them stand in a row. Letters that touch, handwriting, and letters on a
ground as bright as they are stay unseen; rulers of dashes may count. 20 ms for 500 x 500 pixels.
"""

from __future__ import annotations

from typing import cast

import numpy as np

IN_A_ROW = 4  # characters that make a line
_HEIGHTS = (5, 64)  # pixels
_STANDS_OUT = 0.3  # of the picture's range, against the surroundings
_ONE_COLOUR = 0.12  # of the picture's range: spread of the brightness in the inside of a character
_MOST_PIXELS = 1600  # of the longer side; larger pictures are looked at every second pixel
_MOST_SHAPES = 20_000  # more are texture


def characters(array: np.ndarray) -> int:
    """Number of shapes of a picture [C, H, W] that stand in lines of characters."""
    while max(array.shape[1:]) > _MOST_PIXELS:
        array = array[:, ::2, ::2]
    values = array[:3].astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if high <= low or min(values.shape[1:]) < 3 * _HEIGHTS[0]:
        return 0
    values = (values - low) / (high - low)
    return max(
        _lettering(values.max(axis=0)), _lettering(1 - values.min(axis=0))
    )  # bright letters, dark ones


def _lettering(plane: np.ndarray) -> int:
    """Bright characters of [H, W]."""
    from scipy.ndimage import find_objects, label, uniform_filter

    labels, found = cast(
        tuple[np.ndarray, int], label(plane - uniform_filter(plane, 31) > _STANDS_OUT, np.ones((3, 3)))
    )
    if not IN_A_ROW <= found <= _MOST_SHAPES:
        return 0
    boxes = []
    for number, place in enumerate(find_objects(np.asarray(labels)), 1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (_HEIGHTS[0] <= height <= _HEIGHTS[1] and height / 8 <= width <= 1.5 * height):
            continue
        inside = labels[place] == number
        values = plane[place][inside]
        filled = len(values) / (height * width)
        bright = values[values >= np.median(values)]  # the rim is blended with the ground
        if bright.std() <= _ONE_COLOUR and (0.15 <= filled <= 0.8 or width <= height / 3):
            boxes.append((rows.stop, height, columns.start, columns.stop, float(np.median(values))))
    return _in_lines(np.asarray(sorted(boxes, key=lambda box: box[2]), np.float32).reshape(-1, 5))


def _in_lines(boxes: np.ndarray) -> int:
    """How many of the shapes (bottom, height, left, right, brightness) stand in lines of four or more."""
    before = np.arange(len(boxes))  # the first shape of each one's line
    for here, (bottom, height, left, _, bright) in enumerate(boxes):
        gap = left - boxes[:here, 3]
        near = (gap >= -1) & (gap <= 1.5 * height) & (np.abs(boxes[:here, 4] - bright) < 0.15)
        near &= np.abs(boxes[:here, 0] - bottom) <= np.maximum(1, 0.15 * height)
        near &= (boxes[:here, 1] <= 1.5 * height) & (boxes[:here, 1] >= height / 1.5)
        if near.any():
            before[here] = before[np.flatnonzero(near)[np.argmin(gap[near])]]
    _, counts = np.unique(before, return_counts=True)
    return int(counts[counts >= IN_A_ROW].sum())
