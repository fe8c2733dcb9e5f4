"""What annotators said of an image, as it goes into a shard: no name, everything on the image's grid.

Annotators leave as salted keys, the same for one person in a whole dataset, so that agreement can be
computed from shards. The sample has one mask: the record's own; or, where the source says `masks_from:
polygons`, its outlines, drawn; or the consensus of its annotators' masks, where the source names a method.
Each annotator's own mask stays at the source: the sample keeps its size, and its Dice with the others and
with the sample's mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import CollectionError, ReadError
from ..layouts.base import Source
from ..privacy import subject_key
from ..readers import read_named_label_map
from ..sample import Image, Record, Shape
from .consensus import consensus, consensus_labels
from .kinds import tidy_labels
from .overlap import dice_by_value, voxels_by_value
from .rasterise import label_map
from .shapes import shapes_on, to_meta

POLYGONS = "polygons"  # of `masks_from`


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a record says of an image, on the image's stored grid. Annotators by the source's own words."""

    labels: dict[str, Any]
    said: dict[str, dict[str, Any]]  # annotator -> labels
    shapes: tuple[Shape, ...]
    mask: np.ndarray | None  # [D, H, W] or [H, W], unsigned integer
    origin: str | None  # of the mask: "file", "polygons", "majority" or "staple"
    masks: dict[str, np.ndarray]  # annotator -> mask
    names: Mapping[int, str]  # of the mask's values, as the collection or its own file says

    @property
    def annotators(self) -> list[str]:
        """All who read the image, in the record's order."""
        return list(dict.fromkeys((*self.said, *self.masks)))


def annotator_key(salt: bytes, dataset: str, annotator: str) -> str:
    """16 hex for an annotator: the same in all of a dataset, another in the next."""
    return subject_key(salt, dataset, f"annotator {annotator}")


def annotators_of(record: Record) -> Iterator[str]:
    """The source's own words for those who annotated a record: they may name a person."""
    yield from (reading.annotator for reading in record.readings)
    yield from (shape.annotator for shape in record.shapes if shape.annotator is not None)


def mask_paths(record: Record) -> Iterator[Path]:
    """Files of label maps: the record's own and its annotators'."""
    if record.mask is not None:
        yield record.mask
    yield from (reading.mask for reading in record.readings if reading.mask is not None)


def annotations_of(source: Source, record: Record, image: Image) -> Annotations:
    """Read, draw and combine all that is said of an image.

    Raises:
        ReadError: a mask or shape that does not fit the image, a label that its declaration does not allow.
    """
    shapes = shapes_on(image, record.shapes)
    labels, said = _labels(source, record)
    masks = dict(_masks(source, record, image, shapes))
    mask, origin, names = _own_mask(source, record, image, shapes)
    if mask is None and masks and source.consensus:
        mask, origin = consensus(list(masks.values()), source.consensus), source.consensus
    return Annotations(labels, said, shapes, mask, origin, masks, names)


def annotations_meta(source: Source, record: Record, found: Annotations, salt: bytes) -> dict[str, Any]:
    """The entries `labels`, `mask`, `shapes` and `readings` of `key.json`."""
    keys = {name: annotator_key(salt, record.dataset, name) for name in {*annotators_of(record)}}
    shapes = [to_meta(s, None if s.annotator is None else keys[s.annotator]) for s in found.shapes]
    readings = [
        {"annotator": keys[name], "labels": found.said.get(name, {}), "mask": _mask_facts(name, found, keys)}
        for name in found.annotators
    ]
    mask = None if found.mask is None else _mask_meta(found, source)
    return {"labels": found.labels, "mask": mask, "shapes": shapes, "readings": readings}


def _labels(source: Source, record: Record) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The record's labels, completed by consensus where the source wants it, and each annotator's."""
    kinds = source.label_kinds
    try:
        labels = tidy_labels(record.labels, kinds)
        said: dict[str, dict[str, Any]] = {}
        for reading in record.readings:
            said.setdefault(reading.annotator, {}).update(tidy_labels(reading.labels, kinds))
    except CollectionError as error:
        raise ReadError(str(error)) from error
    if source.consensus:
        labels = consensus_labels(list(said.values()), kinds) | labels
    return labels, said


def _own_mask(
    source: Source, record: Record, image: Image, shapes: tuple[Shape, ...]
) -> tuple[np.ndarray | None, str | None, Mapping[int, str]]:
    if record.mask is not None:
        mask, names = _read(source, record, record.mask, image)
        return mask, "file", names
    mine = [shape for shape in shapes if shape.annotator is None and shape.kind == "polygon"]
    if source.masks_from == POLYGONS and mine:
        return _drawn(source, image, mine), POLYGONS, source.mask_classes
    return None, None, source.mask_classes


def _masks(
    source: Source, record: Record, image: Image, shapes: tuple[Shape, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Masks of the annotators: their files, else their outlines."""
    read = {reading.annotator: reading.mask for reading in record.readings if reading.mask is not None}
    for annotator, path in read.items():
        yield annotator, _read(source, record, path, image)[0]
    if source.masks_from == POLYGONS:
        outlines: dict[str, list[Shape]] = {}
        for shape in shapes:
            if shape.kind == "polygon" and shape.annotator is not None and shape.annotator not in read:
                outlines.setdefault(shape.annotator, []).append(shape)
        for annotator, mine in outlines.items():
            yield annotator, _drawn(source, image, mine)


def _read(source: Source, record: Record, path: Path, image: Image) -> tuple[np.ndarray, dict[int, str]]:
    values = cast(Any, source.mask_values)
    return read_named_label_map(path, image, values, record.given, source.mask_classes)


def _drawn(source: Source, image: Image, shapes: list[Shape]) -> np.ndarray:
    values = {name: value for value, name in source.mask_classes.items()}
    return label_map(shapes, image.array.shape[1:], values)


def _mask_meta(found: Annotations, source: Source) -> dict[str, Any]:
    """Names of the classes: those of the collection, else of the mask's file, else the values that occur."""
    assert found.mask is not None
    present = [int(value) for value in np.unique(found.mask) if value]
    names = source.mask_classes or {value: found.names.get(value, str(value)) for value in present}
    return {
        "classes": {str(value): name for value, name in sorted(names.items())},
        "present": present,
        "shape": [int(n) for n in found.mask.shape],
        "dtype": found.mask.dtype.name,
        "origin": found.origin,
    }


def _mask_facts(name: str, found: Annotations, keys: Mapping[str, str]) -> dict[str, Any] | None:
    """Size of an annotator's mask, and its Dice with the sample's mask ("mask") and each other's (by key)."""
    mine = found.masks.get(name)
    if mine is None:
        return None
    dice = {keys[other]: dice_by_value(mine, mask) for other, mask in found.masks.items() if other != name}
    if found.mask is not None:
        dice["mask"] = dice_by_value(mine, found.mask)
    return {"voxels": voxels_by_value(mine), "dice": dice}
