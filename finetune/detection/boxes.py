"""Boxes of an image, and where the reference ones come from: marks of the source, or its label map.

Coordinates are pixels of the stored array, (low corner, high corner) in array order: (y0, x0, y1, x1) or
(z0, y0, x0, z1, y1, x1), edges and not centres, so that a box of one pixel has sides of 1. Outlines count as
the box around them. In volumes hardly any source draws boxes: there the connected parts of a label map are
the objects, as in nnDetection (Baumgartner et al., MICCAI 2021). Reading every mask once is its price; the
boxes are kept beside the shards.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.errors import CollectionError, nearest

if TYPE_CHECKING:
    from ..data import Case, TaskData
    from ..record import TaskRecord

logger = logging.getLogger(__name__)

_RULE = 1  # of `mask_boxes`: part of the name of the kept boxes


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes of one image; `scores` only where they were predicted, then highest first."""

    corners: np.ndarray  # float64 [N, 2 * axes]
    labels: np.ndarray  # int64 [N], index in the record's names
    scores: np.ndarray | None = None  # float64 [N], 0 to 1

    def __len__(self) -> int:
        return len(self.corners)

    def of(self, label: int) -> Boxes:
        """Those with one label."""
        chosen = self.labels == label
        return Boxes(
            self.corners[chosen], self.labels[chosen], None if self.scores is None else self.scores[chosen]
        )

    def scaled(self, before: Sequence[int], after: Sequence[int]) -> Boxes:
        """The same boxes when an image of shape `before` is resampled to shape `after`."""
        ratio = np.asarray(after, float) / np.asarray(before, float)
        return Boxes(self.corners * np.tile(ratio, 2), self.labels, self.scores)

    @property
    def sides(self) -> np.ndarray:
        """Lengths [N, axes] in pixels."""
        axes = self.corners.shape[1] // 2
        return self.corners[:, axes:] - self.corners[:, :axes]


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [A, B] of boxes [A, 2 * axes] and [B, 2 * axes]."""
    axes = a.shape[1] // 2
    low = np.maximum(a[:, None, :axes], b[None, :, :axes])
    high = np.minimum(a[:, None, axes:], b[None, :, axes:])
    inner = np.clip(high - low, 0, None).prod(axis=2)
    volume = [(x[:, axes:] - x[:, :axes]).prod(axis=1) for x in (a, b)]
    union = volume[0][:, None] + volume[1][None, :] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def shape_boxes(meta: Mapping[str, Any], names: Sequence[str]) -> Boxes:
    """Boxes and outlines that the source marked, those with one of `names`; parts of a group are one box."""
    axes = int(meta["ndim"])
    found: dict[object, tuple[int, list[np.ndarray]]] = {}
    for number, shape in enumerate(meta.get("shapes") or ()):
        if shape["kind"] not in ("box", "polygon") or shape["label"] not in names:
            continue
        group = shape.get("group")
        one = number if group is None else (shape.get("annotator"), group, shape["label"])
        points = np.asarray(shape["points"], float)
        found.setdefault(one, (names.index(shape["label"]), []))[1].append(points)
    corners, labels = [], []
    size = np.asarray(meta["shape"][1:], float)
    for label, parts in found.values():
        points = np.clip(np.concatenate(parts), 0, size)
        low, high = points.min(axis=0), points.max(axis=0)
        if (high > low).all():
            corners.append([*low, *high])
            labels.append(label)
    return _boxes(corners, labels, axes)


def mask_boxes(mask: np.ndarray, values: Mapping[int, int], *, components: bool = True) -> Boxes:
    """Boxes around the objects of a label map [*spatial].

    Args:
        values: mask value -> label. Other values are no objects.
        components: each connected part (touching corners included) of a value is an object; else all of it.
    """
    from scipy import ndimage

    corners: list[list[float]] = []
    labels: list[int] = []
    whole = ndimage.find_objects(mask.astype(np.int32, copy=False))
    for value, label in sorted(values.items()):
        place = whole[value - 1] if value <= len(whole) else None
        if place is None:
            continue
        parts = [place]
        if components:
            numbered = _parts(mask[place] == value)
            inner = (part for part in ndimage.find_objects(numbered) if part is not None)
            parts = [
                tuple(slice(p.start + o.start, p.stop + o.start) for p, o in zip(part, place, strict=True))
                for part in inner
            ]
        for part in parts:
            corners.append([*(float(s.start) for s in part), *(float(s.stop) for s in part)])
            labels.append(label)
    return _boxes(corners, labels, mask.ndim)


def _parts(mask: np.ndarray) -> np.ndarray:
    """Connected parts of a mask, numbered from 1."""
    from scipy import ndimage

    numbered = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=numbered)
    return numbered


def survey(
    record: TaskRecord, data: TaskData, folder: Path, progress: Callable[[int, int, str], None] | None
) -> None:
    """Fill `data.boxes` with the reference boxes of every case (those of masks are kept in `folder`).

    Raises:
        CollectionError: no case has a box with one of the record's names.
    """
    names = record.names
    if record.boxes == "shapes":
        for case in data.cases:
            data.boxes[case.key] = shape_boxes(case.meta, names)
        _say_others(record, data)
    else:
        _survey_masks(record, data, folder, progress)
    if not any(len(boxes) for boxes in data.boxes.values()):
        marked = {shape["label"] for case in data.cases for shape in case.meta.get("shapes") or ()}
        hint = nearest(names[0], marked) if marked else ", and nothing is marked in its images"
        raise CollectionError(f"task {record.name}: no box named {', '.join(names)}{hint}")


def _survey_masks(
    record: TaskRecord, data: TaskData, folder: Path, progress: Callable[[int, int, str], None] | None
) -> None:
    components = record.boxes == "components"
    values = {value: label for label, value in enumerate(sorted(record.structures))}
    stamp = hashlib.blake2b(
        json.dumps([data.shards.manifest.hash, sorted(values), components, _RULE]).encode(), digest_size=6
    ).hexdigest()

    def around(case: Case, mask: np.ndarray) -> dict[str, np.ndarray]:
        own = values if components else {int(v): 0 for v in np.unique(mask) if v}
        boxes = mask_boxes(mask, own, components=components)
        return {case.key: np.column_stack([boxes.labels, boxes.corners])}

    kept = data.of_masks(folder / f"boxes-{stamp}.npz", around, "boxes of masks", progress)
    for case in data.cases:
        table = kept[case.key]
        data.boxes[case.key] = Boxes(table[:, 1:], table[:, 0].astype(np.int64))


def _say_others(record: TaskRecord, data: TaskData) -> None:
    """Log what is marked in the images and is not asked for: a misspelt class shows here."""
    shapes = [shape for case in data.cases for shape in case.meta.get("shapes") or ()]
    others = Counter(shape["label"] for shape in shapes if shape["label"] not in record.names)
    if others:
        listing = ", ".join(f"{count} {label}" for label, count in others.most_common(5))
        logger.warning("%s: marks that are none of the classes are background: %s", record.name, listing)


def _boxes(corners: Sequence[Sequence[float]], labels: Sequence[int], axes: int) -> Boxes:
    return Boxes(np.asarray(corners, np.float64).reshape(-1, 2 * axes), np.asarray(labels, np.int64))
