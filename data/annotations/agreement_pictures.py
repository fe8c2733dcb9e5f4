"""One image with what each annotator marked on it, a colour each: the slice in which they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..ingest.preprocess import describe
from ..inspect.thumbnails import OUTLINES, draw_outlines, window_of
from ..layouts.base import Source
from ..readers import each
from ..sample import Modality, Organ, Record, Shape
from ..shards.pictures import resize
from .readings import annotations_of, annotator_key

Pixels = np.ndarray  # [H, W, 3] uint8

SIDE = 420  # pixels of the longer side
LEAST = 48  # pixels of the image that are shown at least, along each axis


def colour_of(number: int) -> str:
    """CSS colour of the annotator with this number (A is 0)."""
    red, green, blue = OUTLINES[number % len(OUTLINES)]
    return f"#{red:02x}{green:02x}{blue:02x}"


def picture(source: Source, record: Record, salt: bytes, numbers: Mapping[str, int], what: str) -> Pixels:
    """Draw a case: outlines of one structure, or boxes of one label, by every annotator.

    Args:
        numbers: annotator's key -> number, which chooses the colour.
        what: name of the structure or label.

    Raises:
        ReadError: the image or an annotation cannot be read.
    """
    image = next(iter(each(record.paths, fourth_axis=source.fourth_axis, given=record.given)))
    found = annotations_of(replace(source, consensus=None), record, image)
    size = image.array.shape[1:]
    values = {name: value for value, name in source.mask_classes.items()}
    layers: dict[int, np.ndarray] = {}
    for name in dict.fromkeys(
        (*found.masks, *(s.annotator for s in found.shapes if s.annotator is not None))
    ):
        number = numbers[annotator_key(salt, record.dataset, name)]
        if name in found.masks:
            layers[number] = found.masks[name] == values.get(what, int(what) if what.isdigit() else -1)
        else:
            marks = [shape for shape in found.shapes if shape.annotator == name and shape.label == what]
            layers[number] = _filled(marks, size)
    array, spacing = image.array, image.spacing
    if image.ndim == 3:
        index = _slice(list(layers.values()))
        array, spacing = array[:, index, ::-1, ::-1], None if spacing is None else spacing[1:]
        layers = {number: layer[index, ::-1, ::-1] for number, layer in layers.items()}  # radiologist's view
    rows, columns = _around(list(layers.values()))
    array = array[:, rows, columns]
    layers = {number: layer[rows, columns] for number, layer in layers.items()}
    modality = record.modality or image.modality or Modality.OTHER
    facts = describe(image.array, None if image.facts.get("normalised") else modality)
    meta = {"stats": facts, "modality": str(modality), "organ": str(record.organ or Organ.OTHER),
            "ndim": image.ndim, "shape": list(image.array.shape), "dtype": image.array.dtype.name,
            "facts": image.facts}  # fmt: skip
    return _drawn(array, spacing, window_of(meta), layers)


def _drawn(
    array: np.ndarray,
    spacing: Sequence[float] | None,
    window: tuple[np.ndarray, np.ndarray],
    layers: Mapping[int, np.ndarray],
) -> Pixels:
    extent = [n * mm for n, mm in zip(array.shape[1:], spacing or (1.0, 1.0), strict=True)]
    target = [max(1, round(SIDE * mm / max(extent))) for mm in extent]
    shown = slice(0, 3) if array.shape[0] == 3 else slice(0, 1)
    low, high = (end[shown, None, None] for end in window)
    scaled = resize(np.ascontiguousarray(array[shown]), (0, 0, *array.shape[1:]), target)
    grey = (scaled.astype(np.float32) - low) / np.maximum(high - low, np.float32(1e-12))
    planes = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    pixels = np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))
    for number, layer in sorted(layers.items()):
        pixels = draw_outlines(pixels, layer.astype(np.uint16) * (number + 1))
    return pixels


def _slice(layers: Sequence[np.ndarray]) -> int:
    """The slice with most voxels that some marked and others did not; else the fullest."""
    stack = np.stack(layers)
    differing = (stack.any(0) & ~stack.all(0)).sum((1, 2))
    return int(np.argmax(differing if differing.any() else stack.any(0).sum((1, 2))))


def _around(layers: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """Rows and columns of all marks, with as much again on each side, at least LEAST pixels in all."""
    union = np.any(layers, axis=0)
    box = []
    for axis, length in enumerate(union.shape):
        hit = np.flatnonzero(union.any(axis=1 - axis))
        first, last = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, length)
        margin = max(last - first, -(-(LEAST - (last - first)) // 2))
        box.append(slice(max(0, first - margin), min(length, last + margin)))
    return box[0], box[1]


def _filled(shapes: Sequence[Shape], size: Sequence[int]) -> np.ndarray:
    """The boxes among shapes, filled, so that their border is drawn."""
    result = np.zeros(tuple(size), bool)
    for shape in shapes:
        if shape.kind == "box":
            low, high = (np.clip(np.rint(point), 0, size).astype(int) for point in shape.points)
            result[tuple(slice(int(a), max(int(a) + 1, int(b))) for a, b in zip(low, high, strict=True))] = (
                True
            )
    return result
