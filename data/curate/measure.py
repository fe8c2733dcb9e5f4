"""Look at every image once: hashes, thumbnails and numbers, a file of each for a unit of work.

Units are those of a build (ingest/units.py): parallel, crash-proof, resumable by receipts, one image in
memory at a time. What is kept costs 5 kB a picture and 50 kB a volume; decisions are taken from it without
opening an image again, so that other thresholds cost seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import replacing
from ..ingest.ingest import content_hash
from ..ingest.units import UNITS, Unit
from ..layouts.base import Source
from ..readers import each
from ..sample import Modality, Record
from ..shards.writer import explain_os_errors
from . import hashes, quality
from .thumbs import SIDE_2D, SIDE_3D, planes_of, thumb_of

VERSION = f"{hashes.VERSION}.{quality.VERSION}"

NUMBERS = (
    "mode", "entropy", "structure", "band", "edges", "low", "high", "aspect", "colour", "red", "blue",
    "characters", "body_edge", "extent_low", "extent_high", "spacing_low", "spacing_high",
)  # fmt: skip
SHAPES = {"2d": (SIDE_2D, SIDE_2D), "3d": (SIDE_3D,) * 3, "planes": (3, SIDE_2D, SIDE_2D)}

_ROW = np.dtype([
    ("record", "i4"), ("image", "i4"), ("ndim", "i1"), ("modality", "U24"), ("pixels", "i8"),
    ("content", "S32"), ("exact", "S32"), ("numbers", "f4", len(NUMBERS)),
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measure:
    """One image, looked at."""

    row: np.ndarray  # [] of `_ROW`, the number of the record left open
    thumb: np.ndarray
    planes: np.ndarray | None  # of a volume


def measures_of(source: Source, record: Record) -> Iterator[Measure]:
    """Read a record's images and look at each. Raises ReadError as the readers do."""
    for number, image in enumerate(each(record.paths, fourth_axis=source.fourth_axis, given=record.given)):
        modality = record.modality or image.modality or Modality.OTHER
        found = quality.measure(image.array, modality, image.spacing)
        row = np.zeros((), _ROW)
        row["image"], row["ndim"], row["modality"] = number, image.ndim, str(modality)
        row["pixels"] = image.array.size
        row["content"] = content_hash(image.array)
        row["exact"] = content_hash(plain_values(image.array))
        row["numbers"] = [found.get(name, np.nan) for name in NUMBERS]
        thumb = thumb_of(image.array)
        yield Measure(row, thumb, planes_of(image.array) if image.ndim == 3 else None)


def plain_values(array: np.ndarray) -> np.ndarray:
    """The same values in the smallest integer type that holds them, so that a copy stored wider is equal."""
    if array.dtype.kind == "f" and (not (np.abs(array) < 1 << 31).all() or (array != np.rint(array)).any()):
        return array
    low, high = int(array.min()), int(array.max())
    kind = "u" if low >= 0 else "i"
    for size in (1, 2, 4):
        limits = np.iinfo(f"{kind}{size}")
        if limits.min <= low and high <= limits.max:
            return array.astype(f"{kind}{size}", copy=False)
    return array


def write_measures(
    out: Path, unit: Unit, records: Iterable[Record], refuse: Callable[[Record, Exception], None]
) -> None:
    """Look at the records of a unit and write its files; a record that cannot be read is refused as a whole.

    Raises:
        ShardError: the disk is full or unwritable.
    """
    place = {id(record): number for number, record in enumerate(unit.records)}
    rows: list[np.ndarray] = []
    thumbs: dict[str, list[np.ndarray]] = {kind: [] for kind in SHAPES}
    for record in records:
        try:
            with one_thread():
                measured = list(measures_of(unit.source, record))
        except Exception as error:
            refuse(record, error)
            continue
        for measure in measured:
            row = measure.row.copy()
            row["record"] = place[id(record)]
            rows.append(row)
            thumbs["2d" if measure.planes is None else "3d"].append(measure.thumb)
            if measure.planes is not None:
                thumbs["planes"].append(measure.planes)
    with explain_os_errors(out, 0):
        for kind, shape in SHAPES.items():
            stack = np.stack(thumbs[kind]) if thumbs[kind] else np.zeros((0, *shape), np.uint8)
            save(path_of(out, unit.name, kind), stack)
        save(path_of(out, unit.name, "rows"), np.array(rows, _ROW))


def one_thread() -> contextlib.AbstractContextManager[Any]:
    """BLAS on one thread: the same figures everywhere, and no fight among workers (five times the time)."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def path_of(out: Path, unit: str, kind: str) -> Path:
    """Where the measures of a unit lie: "rows", "2d", "3d" or "planes"."""
    return out / UNITS / f"{unit}.{kind}.npy"


def complete(out: Path, unit: str) -> bool:
    """Whether all files of a unit are there."""
    return all(path_of(out, unit, kind).is_file() for kind in ("rows", *SHAPES))


def save(path: Path, array: np.ndarray) -> None:
    """Write a .npy, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
