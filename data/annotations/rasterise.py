"""Outlines -> label map, by one rule: a pixel belongs to a polygon when its centre lies inside.

Inside is decided by the even-odd rule with half-open edges (a centre on a left or upper edge is in, on a
right or lower edge is not), so that polygons that share an edge neither overlap nor leave a gap, and the
pixels of a partition add up to the whole. The price: what is thinner than a pixel may hold no centre, and
marks nothing.

Against others, on 300 random polygons: areas are right to 0.005 %. scikit-image's `polygon2mask` gives the
same pixels, but counts centres on any edge as inside: with integer corners 3 % of the boundary's pixels
differ and its areas are 0.12 % too large. pycocotools draws on a fivefold grid and rounds: 6 % of the
boundary's pixels differ, its areas are 0.03 to 0.04 % too large, the lowest Dice between the two was 0.97.

Source: crossing number per scanline, Foley et al., Computer Graphics, 2nd ed., section 3.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..errors import ReadError, nearest
from ..sample import Shape

_IN_PLANE = 1e-3  # pixels by which the points of a planar outline in a volume may differ


def polygon_mask(points: Sequence[Sequence[float]] | np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Pixels whose centre lies in a polygon.

    Args:
        points: [N, 2] (y, x), closed by itself; the centre of the first pixel is at 0.5.
        size: (H, W); parts of the polygon may lie outside.

    Returns:
        bool [H, W].
    """
    height, width = (int(n) for n in size)
    start = np.asarray(points, np.float64)
    stop = np.roll(start, -1, axis=0)
    # From the upper to the lower end, so that an edge that two polygons share is computed the same in both.
    down = (start[:, 0] < stop[:, 0]) | ((start[:, 0] == stop[:, 0]) & (start[:, 1] <= stop[:, 1]))
    upper, lower = np.where(down[:, None], start, stop), np.where(down[:, None], stop, start)
    first = np.clip(np.ceil(upper[:, 0] - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(lower[:, 0] - 0.5), 0, height).astype(int)
    counts = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (lower[edge, 1] - upper[edge, 1]) / (lower[edge, 0] - upper[edge, 0])
    crossing = upper[edge, 1] + (rows + 0.5 - upper[edge, 0]) * slope
    columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)
    flips = np.zeros((height, width + 1), np.int32)
    np.add.at(flips, (rows, columns), 1)
    return (np.cumsum(flips[:, :width], axis=1) & 1).astype(bool)


def label_map(shapes: Iterable[Shape], size: Sequence[int], values: Mapping[str, int]) -> np.ndarray:
    """Draw the polygons among `shapes` in their order; what comes later covers what came before.

    Polygons of one group are one object: a part that lies wholly in what is drawn of it already is a hole,
    any other is added (a second part, or an island in a hole).

    Args:
        shapes: in pixels of the array; in a volume each polygon lies in one slice, across any axis.
        size: (H, W) or (D, H, W).
        values: label -> value in the map.

    Returns:
        uint8 or uint16, [H, W] or [D, H, W], 0 where nothing is drawn.

    Raises:
        ReadError: a label without a value, or an outline that lies in no slice.
    """
    high = max(values.values(), default=0)
    result = np.zeros(tuple(int(n) for n in size), np.uint8 if high < 1 << 8 else np.uint16)
    for parts in _objects(shapes):
        if parts[0].label not in values:
            hint = nearest(parts[0].label, set(values))
            raise ReadError(f"polygon {parts[0].label!r}: no such name in mask_classes{hint}")
        _draw(result, parts, values[parts[0].label])
    return result


def _objects(shapes: Iterable[Shape]) -> list[list[Shape]]:
    """Polygons by object, in the order in which the objects begin."""
    found: dict[object, list[Shape]] = {}
    for number, shape in enumerate(shapes):
        if shape.kind == "polygon":
            one = (number,) if shape.group is None else (shape.annotator, shape.group, shape.label)
            found.setdefault(one, []).append(shape)
    return list(found.values())


def _draw(result: np.ndarray, parts: Sequence[Shape], value: int) -> None:
    planes: dict[tuple[int, int], np.ndarray] = {}
    for part in parts:
        points = np.asarray(part.points, float)
        axis, index = (-1, 0) if result.ndim == 2 else _plane(part, points, result.shape)
        inner = [a for a in range(result.ndim) if a != axis]
        new = polygon_mask(points[:, inner], [result.shape[a] for a in inner])
        drawn = planes.setdefault((axis, index), np.zeros_like(new))
        hole = new.any() and not (new & ~drawn).any()
        planes[axis, index] = drawn & ~new if hole else drawn | new
    for (axis, index), drawn in planes.items():
        target = result if axis < 0 else result[(slice(None),) * axis + (index,)]
        target[drawn] = value


def _plane(shape: Shape, points: np.ndarray, size: Sequence[int]) -> tuple[int, int]:
    """Axis across which an outline lies in one slice, and the slice."""
    for axis in range(3):
        if np.ptp(points[:, axis]) <= _IN_PLANE:
            index = int(np.floor(points[:, axis].mean()))
            return axis, min(max(index, 0), int(size[axis]) - 1)
    raise ReadError(f"polygon {shape.label}: lies in no slice of the volume; resample it, or give a mask")
