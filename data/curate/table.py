"""All images that were looked at, as one table, and their thumbnails, which stay on disk.

A million images take 0.3 GB of rows; thumbnails are mapped and read in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..ingest.units import Unit
from ..layouts.base import Source
from ..sample import Record
from .measure import NUMBERS, path_of


@dataclass(slots=True)
class Table:
    """Images in the order of the collection. Columns are arrays [N]."""

    records: list[tuple[Source, Record]]  # by `record`
    held: np.ndarray  # bool [records]
    rows: np.ndarray  # as measured; "record" counts through all records
    thumbs: dict[str, Stack]  # "2d", "3d", "planes"
    place: np.ndarray  # of each image in its stack: "2d" by dimensions 2, "3d" and "planes" by dimensions 3

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """One of the numbers, float32 [N], NaN where it does not apply."""
        return self.rows["numbers"][:, NUMBERS.index(name)]

    def source(self, image: int) -> Source:
        """The source of an image."""
        return self.records[int(self.rows["record"][image])][0]

    def record(self, image: int) -> Record:
        """The record of an image."""
        return self.records[int(self.rows["record"][image])][1]

    @property
    def held_out(self) -> np.ndarray:
        """Which images are held out, bool [N]."""
        return self.held[self.rows["record"]]


class Stack:
    """Thumbnails of all units as if they were one array."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one thumbnail."""
        return self._parts[0].shape[1:] if self._parts else ()

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """Copies of these thumbnails, uint8 [P, ...], in this order."""
        places = np.asarray(places)
        found = np.empty((len(places), *self.shape), np.uint8)
        units = np.searchsorted(self._ends, places, side="right")
        for unit in np.unique(units):
            here = np.flatnonzero(units == unit)
            start = int(self._ends[unit]) - len(self._parts[unit])
            found[here] = self._parts[unit][places[here] - start]
        return found


def load(out: Path, units: Sequence[Unit], held: set[int]) -> Table:
    """The table of finished units.

    Args:
        held: `id` of the records that are held out.
    """
    records: list[tuple[Source, Record]] = []
    rows, parts = [], {"2d": [], "3d": [], "planes": []}
    for unit in units:
        mine = np.load(path_of(out, unit.name, "rows"))
        mine["record"] += len(records)
        rows.append(mine)
        records += [(unit.source, record) for record in unit.records]
        for kind, stacks in parts.items():
            stacks.append(np.load(path_of(out, unit.name, kind), mmap_mode="r"))
    every = np.concatenate(rows)
    place = np.zeros(len(every), np.int64)
    for ndim in (2, 3):
        mine = every["ndim"] == ndim
        place[mine] = np.arange(int(mine.sum()))
    flags = np.array([id(record) in held for _, record in records], bool)
    return Table(records, flags, every, {kind: Stack(stacks) for kind, stacks in parts.items()}, place)
