"""`reading` of a source: how much of long and large files is read, whatever layout finds them.

Slides, films and ultrasound loops are read in part; which part is said once for the source and joins what the
layout knows of each file (`Record.given`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .config import structured
from .errors import ConfigError
from .sample import Given, Record


@dataclass
class ReadingConfig:
    """Keys of `reading`; those left out are the layout's, or the reader's own."""

    every: float | None = None  # film: seconds from one frame that is kept to the next
    most: int = 0  # film, slide: frames or tiles kept of one file, evenly spread; 0: all
    crop: bool = False  # ultrasound: only the regions that hold the scan, not the texts around them
    mpp: float | None = None  # slide: micrometres a pixel; makes a slide of a .tif
    tile: int = 512  # slide: pixels of a tile's edge
    tissue: float = 0.5  # slide: least share of a tile that is tissue; 0 keeps every tile
    spacing: list[float] | None = (
        None  # mm a pixel or voxel of files that do not state it: [y, x] or [z, y, x]
    )

    def __post_init__(self) -> None:
        bounds = {
            "every": self.every is None or self.every > 0,
            "most": self.most >= 0,
            "mpp": self.mpp is None or self.mpp > 0,
            "tile": 16 <= self.tile <= 16384,
            "tissue": 0 <= self.tissue <= 1,
            "spacing": self.spacing is None or (len(self.spacing) in (2, 3) and min(self.spacing) > 0),
        }
        for key, good in bounds.items():
            if not good:
                raise ConfigError(f"{key}: {getattr(self, key)} is out of bounds; see docs/formats.md")


def parse_reading(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys that the source gives, checked. Raises ConfigError."""
    config = structured(ReadingConfig, dict(raw), where=where)
    found = {key: getattr(config, key) for key in raw}
    if found.get("spacing") is not None:
        found["spacing"] = tuple(found["spacing"])
    return found


def told(record: Record, reading: Mapping[str, Any]) -> Record:
    """The record with what its source says of reading it; the source's word counts over the layout's."""
    if not reading:
        return record
    return replace(record, given=replace(record.given or Given(), **reading))
