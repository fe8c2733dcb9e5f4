"""Pictures of the worst cases: the image, the reference outline in green, the prediction in magenta.

A volume is shown on the slice (across the first axis) where prediction and reference differ most; grey
values are windowed between the image's stored percentiles, CT between -160 and 240 HU. No text is drawn:
captions are the report's, so that pictures stay readable at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.atomic import replacing
from ..data.normalise import intensity, kind
from .data import Case

REFERENCE, PREDICTION = (64, 200, 96), (235, 64, 200)
_SIDE = 384  # pixels of the longer side
_TILE, _FRAME = 124, 4  # pixels of one picture of a row, and of its frame


def segmentation_overlay(
    path: Path, case: Case, image: np.ndarray, reference: np.ndarray, prediction: np.ndarray
) -> Path:
    """Write a PNG with both outlines.

    Args:
        image: [C, *spatial], native.
        reference, prediction: [*spatial] label maps.
    """
    grey = to_rgb(case, image)
    if reference.ndim == 3:
        wrong = (reference != prediction).reshape(len(reference), -1).sum(axis=1)
        shown = wrong if wrong.any() else (reference > 0).reshape(len(reference), -1).sum(axis=1)
        at = int(shown.argmax())
        # Rows of a volume run to the front (A); a reader expects the front on top.
        grey, reference, prediction = grey[at, ::-1], reference[at, ::-1], prediction[at, ::-1]
    factor = max(1, _SIDE // max(reference.shape))
    picture = _enlarge(grey, factor)
    for labels, colour in ((reference, REFERENCE), (prediction, PREDICTION)):
        picture[_outline(_enlarge(labels, factor))] = colour
    return _save(path, picture)


def classification_overlay(path: Path, case: Case, image: np.ndarray) -> Path:
    """Write the image itself ([C, H, W], or the middle slice of [C, D, H, W]) as a PNG."""
    grey = to_rgb(case, image)
    if grey.ndim == 4:
        grey = grey[len(grey) // 2, ::-1]
    return _save(path, _enlarge(grey, max(1, _SIDE // max(grey.shape[:2]))))


def retrieval_overlay(path: Path, shown: Sequence[tuple[Case, np.ndarray]], relevant: Sequence[bool]) -> Path:
    """Write a row of pictures: the query, and what came first, framed by whether it is relevant."""
    tiles = []
    for place, (case, image) in enumerate(shown):
        picture = to_rgb(case, image)
        picture = picture[len(picture) // 2, ::-1] if picture.ndim == 4 else picture
        tile = np.full((_TILE, _TILE, 3), 255, dtype=np.uint8)
        small = _fitted(picture, _TILE - 2 * _FRAME)
        if place:
            tile[:] = REFERENCE if relevant[place - 1] else PREDICTION
        rows, columns = ((_TILE - side) // 2 for side in small.shape[:2])
        tile[rows : rows + small.shape[0], columns : columns + small.shape[1]] = small
        tiles += [tile, np.full((_TILE, _FRAME, 3), 255, dtype=np.uint8)]
    return _save(path, np.concatenate(tiles[:-1], axis=1))


def _fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture whose longer side is `side`."""
    from PIL import Image

    scale = side / max(picture.shape[:2])
    size = tuple(max(1, round(n * scale)) for n in picture.shape[1::-1])
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((size[0], size[1])))


def box_overlay(
    path: Path, case: Case, image: np.ndarray, reference: np.ndarray, prediction: np.ndarray
) -> Path:
    """Write a PNG with both sets of boxes ([N, 2 * axes] edges in pixels), the predicted ones on top.

    A volume is shown on the slice that most reference boxes meet, or predicted ones where there are none.
    """
    grey = to_rgb(case, image)
    sets = [np.asarray(boxes, float).reshape(-1, 2 * (grey.ndim - 1)) for boxes in (reference, prediction)]
    if grey.ndim == 4:
        counted = sets[0] if len(sets[0]) else sets[1]
        met = np.zeros(len(grey), dtype=int)
        for box in counted:
            met[int(box[0]) : max(int(box[0]) + 1, round(box[3]))] += 1
        at = int(met.argmax())
        height = grey.shape[1]
        grey = grey[at, ::-1]
        through = [boxes[(boxes[:, 0] < at + 1) & (boxes[:, 3] > at)][:, [1, 2, 4, 5]] for boxes in sets]
        sets = [np.column_stack([height - b[:, 2], b[:, 1], height - b[:, 0], b[:, 3]]) for b in through]
    factor = max(1, _SIDE // max(grey.shape[:2]))
    picture = _enlarge(grey, factor).copy()
    for boxes, colour in zip(sets, (REFERENCE, PREDICTION), strict=True):
        for box in np.round(boxes * factor).astype(int):
            _frame(picture, box, colour)
    return _save(path, picture)


def _frame(picture: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw the inner border of a box (y0, x0, y1, x1), as wide as it is seen when a large picture shrinks."""
    wide = max(1, max(picture.shape[:2]) // _SIDE)
    y0, x0 = np.clip(box[:2], 0, np.array(picture.shape[:2]) - 1)
    y1, x1 = np.clip(box[2:], [y0 + 1, x0 + 1], picture.shape[:2])
    inside = picture[y0:y1, x0:x1]
    for edge in (inside[:wide], inside[-wide:], inside[:, :wide], inside[:, -wide:]):
        edge[...] = colour


def to_rgb(case: Case, image: np.ndarray) -> np.ndarray:
    """Windowed uint8 [*spatial, 3]; of several channels the first, unless they are colours."""
    rule = intensity(case.meta)
    low, high = rule.low[:1], rule.high[:1]
    if kind(case.meta) == "hu":
        low, high = np.array([-160.0]), np.array([240.0])
    channels = image if image.shape[0] == 3 and kind(case.meta) == "colour" else image[:1]
    unit = (channels.astype(np.float32) - low[0]) / max(float(high[0] - low[0]), 1e-6)
    shown = (np.clip(unit, 0, 1) * 255).astype(np.uint8)
    return np.moveaxis(np.repeat(shown, 3 // len(shown), axis=0), 0, -1)


def _outline(labels: np.ndarray) -> np.ndarray:
    """Pixels at the inner border of every label, bool [H, W]."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        for step in (1, -1):
            moved = np.roll(labels, step, axis=axis)
            # Rolling wraps around: what leaves on one side is background on the other.
            border: list[slice | int] = [slice(None), slice(None)]
            border[axis] = 0 if step == 1 else -1
            moved[tuple(border)] = 0
            edge |= (labels != moved) & (labels > 0)
    return edge


def _enlarge(array: np.ndarray, factor: int) -> np.ndarray:
    return np.repeat(np.repeat(array, factor, axis=0), factor, axis=1)


def _save(path: Path, picture: np.ndarray) -> Path:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((2 * _SIDE, 2 * _SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
    return path
