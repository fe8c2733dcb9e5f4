"""Boxes, landmarks and outlines: from the file's own pixels to those of the stored image.

A shape is written in pixels of the file, (y, x) or (z, y, x), the centre of the first pixel at 0.5; a reader
may have turned the image to closest canonical since. Axes are only swapped and flipped, so a shape follows
exactly, and a box stays a box. What the reader did is in the image's facts (`orientation`: where the file's
axes ran); pictures are as they are displayed.

A shape far outside the image is a fault of the data (x and y exchanged, annotated on a copy of another size):
the record is refused, and the reason names what fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ReadError
from ..sample import Image, Shape

KINDS = {"box": 2, "point": 1, "polygon": 3}  # least number of points

OUTSIDE = 0.02  # share of a side, at least 2 pixels, by which a shape may stick out
_CANONICAL = {"S": 0, "I": 0, "A": 1, "P": 1, "R": 2, "L": 2}
_FLIPPED = "IPL"


def shapes_on(image: Image, shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes in pixels of `image.array`; corners of boxes low first.

    Raises:
        ReadError: an unknown kind, too few points, another number of axes, or a shape outside the image.
    """
    if not shapes:
        return ()
    order, flipped = turn_of(image)
    size = np.asarray(image.array.shape[1:], float)
    file_size = size[list(order)]
    result = []
    for shape in shapes:
        points = _checked(shape, len(size))
        _check_inside(shape, points, file_size)
        turned = np.empty_like(points)
        for axis, target in enumerate(order):
            turned[:, target] = file_size[axis] - points[:, axis] if flipped[axis] else points[:, axis]
        if shape.kind == "box":
            turned = np.stack([turned.min(0), turned.max(0)])
        result.append(replace(shape, points=tuple(tuple(float(v) for v in point) for point in turned)))
    return tuple(result)


def turn_of(image: Image) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For each axis of the file: the axis of the stored array that it became, and whether it was flipped."""
    axes = image.ndim
    codes = str(image.facts.get("orientation") or "")
    if image.affine is None or len(codes) != 3 or not set(codes) <= set(_CANONICAL):
        return tuple(range(axes)), (False,) * axes
    codes = codes[-axes:]  # a file of two axes: its first one is not there
    places = sorted(_CANONICAL[code] for code in codes)
    return tuple(places.index(_CANONICAL[code]) for code in codes), tuple(code in _FLIPPED for code in codes)


def to_meta(shape: Shape, annotator: str | None) -> dict[str, Any]:
    """The shape as `key.json` holds it; `annotator` is a salted key. Points to 1/10,000 of a pixel."""
    points = [[round(value, 4) for value in point] for point in shape.points]
    return {"kind": shape.kind, "label": shape.label, "points": points, "annotator": annotator,
            "group": shape.group}  # fmt: skip


def from_meta(said: dict[str, Any]) -> Shape:
    """The shape of an entry of `key.json`."""
    points = tuple(tuple(float(value) for value in point) for point in said["points"])
    return Shape(kind=said["kind"], label=said["label"], points=points, annotator=said["annotator"],
                 group=said["group"])  # fmt: skip


def _checked(shape: Shape, axes: int) -> np.ndarray:
    """Points [N, axes]."""
    if shape.kind not in KINDS:
        raise ReadError(f"shape {shape.label}: unknown kind {shape.kind!r}, expected {', '.join(KINDS)}")
    least = KINDS[shape.kind]
    if len(shape.points) < least or (shape.kind != "polygon" and len(shape.points) != least):
        raise ReadError(f"{shape.kind} {shape.label}: {len(shape.points)} points, expected {least}; mend it")
    if any(len(point) != axes for point in shape.points):
        found = len(shape.points[0])
        raise ReadError(f"{shape.kind} {shape.label}: {found} coordinates a point, the image has {axes} axes")
    points = np.asarray(shape.points, float)
    if not np.isfinite(points).all():
        raise ReadError(f"{shape.kind} {shape.label}: NaN or infinite coordinates; mend or drop it")
    return points


def _check_inside(shape: Shape, points: np.ndarray, size: np.ndarray) -> None:
    slack = np.maximum(OUTSIDE * size, 2.0)
    if (points >= -slack).all() and (points <= size + slack).all():
        return
    worst = points.max(0) if (points > size + slack).any() else points.min(0)
    where = ", ".join(f"{value:g}" for value in worst)
    found = " x ".join(f"{int(n)}" for n in size)
    turned = size[[*range(len(size) - 2), -1, -2]]
    if size[-1] != size[-2] and (points >= -slack).all() and (points <= turned + slack).all():
        why = (
            "it fits the transposed image: x and y exchanged, or marked before the picture was turned (EXIF)"
        )
    else:
        why = "was it marked on a copy of another size or crop?"
    raise ReadError(f"{shape.kind} {shape.label}: reaches to ({where}) in an image of {found} pixels; {why}")
