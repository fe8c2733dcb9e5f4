"""One open shard: its index, and where its bytes come from; everything that is read of a sample.

The bytes come from a descriptor (positioned reads, nothing shared) or from a function that fetches ranges, of
a store or of members in memory. What is read is verified either way: members as a whole, arrays chunk by
chunk.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError
from .format import DAMAGED, KIND_IMAGE, KIND_JPEG, KIND_JSON, KIND_MASK, checksum
from .frame import Fetch, read_box
from .index import Index, read_exactly
from .pictures import check_box, decode_jpeg, resize, resize_jpeg


class OpenShard:
    """A shard, open for reading; samples are named by their ordinal. See `Shards` for the methods.

    Args:
        path: name of the shard in messages.
        source: descriptor of the tar, closed with this object, or what fetches ranges of the tar.
    """

    __slots__ = ("index", "path", "source")

    def __init__(self, path: Path | str, index: Index, source: int | Fetch) -> None:
        self.path, self.index, self.source = path, index, source

    def __del__(self) -> None:
        if isinstance(self.source, int) and self.source >= 0:  # so that a forgotten `Shards` leaks nothing
            os.close(self.source)
            self.source = -1

    def meta(self, ordinal: int) -> dict[str, Any]:
        """`key.json` of the sample."""
        return json.loads(self._bytes(self._member(ordinal, KIND_JSON)))

    def jpeg(self, ordinal: int) -> bytes | None:
        """The JPEG as it is stored; None when the image is an array."""
        member = self._member(ordinal, KIND_IMAGE, KIND_JPEG)
        return self._bytes(member) if int(member["kind"]) == KIND_JPEG else None

    def read(
        self,
        ordinal: int,
        origin: Sequence[int] | None,
        shape: Sequence[int] | None,
        channels: Sequence[int] | None,
    ) -> np.ndarray:
        """The image or a box of it."""
        member = self._member(ordinal, KIND_IMAGE, KIND_JPEG)
        if int(member["kind"]) == KIND_IMAGE:
            return self._array(member, origin, shape, channels)
        with self._naming(member):
            image = decode_jpeg(self._bytes(member))
            origin, shape = _box(origin, shape, image.shape[1:])
            chosen = range(len(image)) if channels is None else _checked(channels, len(image))
            place = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
            return np.ascontiguousarray(image[(list(chosen), *place)])

    def read_mask(
        self, ordinal: int, origin: Sequence[int] | None, shape: Sequence[int] | None
    ) -> np.ndarray | None:
        """The label map, or a box of it."""
        member = self._member(ordinal, KIND_MASK, required=False)
        return None if member is None else self._array(member, origin, shape)

    def read_resized(self, ordinal: int, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        """A box of a picture at another size."""
        member = self._member(ordinal, KIND_IMAGE, KIND_JPEG)
        if int(self.index.samples[ordinal]["ndim"]) != 2:
            raise ShardError(f"{self.path}: sample {ordinal} is a volume, read_resized is for pictures")
        if int(member["kind"]) == KIND_JPEG:
            with self._naming(member):
                return resize_jpeg(self._bytes(member), box, size)
        full = tuple(int(n) for n in self.index.arrays[int(member["array"])]["shape"][1:3])
        with self._naming(member):
            check_box(box, full)
        levels = [m for m in self.index.members_of(ordinal) if int(m["kind"]) == KIND_IMAGE]
        shrink = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        level = min(len(levels) - 1, max(0, math.floor(math.log2(max(shrink, 1.0)))))
        member, scale = levels[level], 2.0**level
        extent = tuple(int(n) for n in self.index.arrays[int(member["array"])]["shape"][1:3])
        low = [math.floor(box[0] / scale), math.floor(box[1] / scale)]
        high = [min(math.ceil(b / scale), e) for b, e in zip(box[2:], extent, strict=True)]
        pixels = self._array(member, low, [h - o for h, o in zip(high, low, strict=True)])
        ends = [min(b / scale, e) for b, e in zip(box[2:], extent, strict=True)]
        inner = (box[0] / scale - low[0], box[1] / scale - low[1], ends[0] - low[0], ends[1] - low[1])
        return resize(pixels, inner, size)

    def _member(self, ordinal: int, *kinds: int, required: bool = True) -> Any:
        if not 0 <= ordinal < len(self.index):
            raise ShardError(f"{self.path}: no sample {ordinal}, there are {len(self.index)}")
        for member in self.index.members_of(ordinal):
            if int(member["kind"]) in kinds:
                return member
        if required:
            raise ShardError(f"{self.path}: sample {ordinal} has no image; restore or rebuild the shard")
        return None

    def _fetch(self, offset: int, size: int) -> bytes:
        if isinstance(self.source, int):
            return read_exactly(self.source, size, offset)
        return bytes(next(iter(self.source([(offset, size)]))))

    def _bytes(self, member: Any) -> bytes:
        with self._naming(member):
            data = self._fetch(int(member["offset"]), int(member["size"]))
            if checksum(data) != int(member["crc"]):
                raise ShardError(f"checksum differs; {DAMAGED}")
            return data

    def _array(
        self,
        member: Any,
        origin: Sequence[int] | None,
        shape: Sequence[int] | None,
        channels: Sequence[int] | None = None,
    ) -> np.ndarray:
        layout = self.index.array(int(member["array"]))
        full = layout.shape
        lead = 0 if int(member["kind"]) == KIND_MASK else 1
        with self._naming(member):
            origin, shape = _box(origin, shape, full[lead:])
            if channels is None or not lead:
                first, count = (0,) * lead, full[:lead]
                return read_box(self.source, self.index, member, (*first, *origin), (*count, *shape))
            wanted = _checked(channels, full[0])
            # Channels that share their chunks are decoded together; others cost nothing when left out.
            runs = _runs(wanted) if layout.chunk[0] == 1 else [(0, full[0])]
            parts = [
                read_box(self.source, self.index, member, (first, *origin), (count, *shape))
                for first, count in runs
            ]
            read = [channel for first, count in runs for channel in range(first, first + count)]
            image = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return image if read == wanted else image[[read.index(channel) for channel in wanted]]

    @contextmanager
    def _naming(self, member: Any) -> Iterator[None]:
        """Put shard and member into the message of whatever goes wrong inside."""
        try:
            yield
        except (ShardError, OSError, RuntimeError, ValueError) as error:
            name = self._name(member)
            if isinstance(error, ShardError) and name in str(error):
                error.member = name
                raise
            fault = ShardError(f"{self.path}: member {name}: {error}")
            fault.member = name
            raise fault from error

    def _name(self, member: Any) -> str:
        """Name of a member, from the tar header in front of it."""
        place = f"at byte {int(member['offset'])}"
        if not isinstance(self.source, int):
            return place
        header = os.pread(self.source, 100, int(member["offset"]) - 512)
        return header.split(b"\0", 1)[0].decode("ascii", "replace") or place


def _checked(channels: Sequence[int], stored: int) -> list[int]:
    wanted = [int(channel) for channel in channels]
    if not wanted or min(wanted) < 0 or max(wanted) >= stored:
        raise ShardError(f"channels {wanted}: the image has {stored}, numbered from 0")
    return wanted


def _runs(channels: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive channels among these, each once, ascending: (first, count)."""
    runs: list[tuple[int, int]] = []
    for channel in sorted(set(channels)):
        if runs and channel == sum(runs[-1]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((channel, 1))
    return runs


def _box(
    origin: Sequence[int] | None, shape: Sequence[int] | None, full: Sequence[int]
) -> tuple[list[int], list[int]]:
    start = [0] * len(full) if origin is None else [int(o) for o in origin]
    if len(start) != len(full) or (shape is not None and len(shape) != len(full)):
        raise ShardError(f"box of {len(start)} axes, the image has {len(full)}: give spatial axes only")
    extent = [f - o for f, o in zip(full, start, strict=True)] if shape is None else [int(n) for n in shape]
    if any(o < 0 or n < 1 or o + n > f for o, n, f in zip(start, extent, full, strict=True)):
        raise ShardError(f"box at {tuple(start)} of shape {tuple(extent)} is not inside {tuple(full)}")
    return start, extent
