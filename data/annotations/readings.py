"""What annotators said of an image, as it goes into a shard: no name, everything on the image's grid.

Annotators leave as salted keys, the same for one person in a whole dataset, so that agreement can be computed
from shards; their labels stay beside the record's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ReadError
from ..layouts.base import Source
from ..privacy import subject_key
from ..sample import Image, Record
from .kinds import tidy_labels
from .shapes import shapes_on, to_meta


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


def annotations_meta(source: Source, record: Record, image: Image, salt: bytes) -> dict[str, Any]:
    """The entries `labels`, `shapes` and `readings` of `key.json`.

    Raises:
        ReadError: a shape that does not fit the image, or a label that its declaration does not allow.
    """

    def key(annotator: str | None) -> str | None:
        return None if annotator is None else annotator_key(salt, record.dataset, annotator)

    try:
        labels = tidy_labels(record.labels, source.label_kinds)
        said = [(reading, tidy_labels(reading.labels, source.label_kinds)) for reading in record.readings]
    except CollectionError as error:
        raise ReadError(str(error)) from error
    shapes = shapes_on(image, record.shapes)
    return {
        "labels": labels,
        "shapes": [to_meta(shape, key(shape.annotator)) for shape in shapes],
        "readings": [{"annotator": key(reading.annotator), "labels": found} for reading, found in said],
    }
