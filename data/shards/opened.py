"""One open shard: its index, and where its bytes come from; everything that is read of a sample.

The bytes come from a descriptor (positioned reads, nothing shared) or from a function that fetches ranges, of
a store or of members in memory. What is read is verified either way: members as a whole, arrays chunk by
chunk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ..errors import ShardError
from .format import DAMAGED, KIND_IMAGE, KIND_JPEG, KIND_MASK, checksum
from .frame import Fetch, read_box
from .index import Index, MemberRow, read_exactly
from .pictures import check_box, decode_jpeg, nearest_voxels, resize, resize_jpeg

LONGEST_AHEAD = 4 << 20  # bytes of a JPEG that is fetched with its JSON


class OpenShard:
    """A shard, open for reading; samples are named by their ordinal. See `Shards` for the methods.

    Args:
        path: name of the shard in messages.
        source: descriptor of the tar, closed with this object, or what fetches ranges of the tar.
    """

    __slots__ = ("_ahead", "index", "path", "source")

    def __init__(self, path: Path | str, index: Index, source: int | Fetch) -> None:
        self.path, self.index, self.source = path, index, source
        self._ahead: dict[int, bytes] = {}  # offset -> members of the sample that `meta` has fetched last

    def __del__(self) -> None:
        if isinstance(self.source, int) and self.source >= 0:  # so that a forgotten `Shards` leaks nothing
            os.close(self.source)
            self.source = -1

    def meta(self, ordinal: int, *, ahead: bool = False) -> dict[str, Any]:
        """`key.json` of the sample; with `ahead` its JPEG is fetched too, for the read that follows."""
        rows = self._members(ordinal)
        if ahead and len(rows) > 1 and rows[1].kind == KIND_JPEG and rows[1].size <= LONGEST_AHEAD:
            with self._naming(rows[0]):
                self._ahead = dict(zip((r.offset for r in rows[:2]), self._fetch(rows[:2]), strict=True))
        return orjson.loads(self._bytes(rows[0]))

    def jpeg(self, ordinal: int) -> bytes | None:
        """The JPEG as it is stored; None when the image is an array."""
        member = self._image(ordinal)
        return self._bytes(member) if member.kind == KIND_JPEG else None

    def read(
        self,
        ordinal: int,
        origin: Sequence[int] | None,
        shape: Sequence[int] | None,
        channels: Sequence[int] | None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The image or a box of it."""
        member = self._image(ordinal)
        if member.kind == KIND_IMAGE:
            return self._array(member, origin, shape, channels, out)
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
        member = next((row for row in self._members(ordinal) if row.kind == KIND_MASK), None)
        return None if member is None else self._array(member, origin, shape)

    def read_mask_resized(self, ordinal: int, box: Sequence[float], size: Sequence[int]) -> np.ndarray | None:
        """A box of the label map at another size, by nearest neighbour."""
        member = next((row for row in self._members(ordinal) if row.kind == KIND_MASK), None)
        if member is None:
            return None
        axes = len(size)
        with self._naming(member):
            place = [
                nearest_voxels(low, high, n)
                for low, high, n in zip(box[:axes], box[axes:], size, strict=True)
            ]
            low = [int(p[0]) for p in place]
            labels = self._array(member, low, [int(p[-1]) + 1 - o for p, o in zip(place, low, strict=True)])
        if labels.shape == tuple(size):  # not a voxel between the first and the last is left out
            return labels
        return labels[np.ix_(*(p - o for p, o in zip(place, low, strict=True)))]

    def read_resized(self, ordinal: int, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        """A box of a picture at another size."""
        member = self._image(ordinal)
        if self.index.ndim_of(ordinal) != 2:
            raise ShardError(f"{self.path}: sample {ordinal} is a volume, read_resized is for pictures")
        if member.kind == KIND_JPEG:
            with self._naming(member):
                return resize_jpeg(self._bytes(member), box, size)
        full = self.index.array(member.array).shape[1:3]
        with self._naming(member):
            check_box(box, full)
        levels = {m.level: m for m in self.index.members_of(ordinal) if m.kind == KIND_IMAGE}
        shrink = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        level = max(n for n in levels if n <= math.log2(max(shrink, 1.0)))
        member, scale = levels[level], 2.0**level
        extent = self.index.array(member.array).shape[1:3]
        low = [math.floor(box[0] / scale), math.floor(box[1] / scale)]
        high = [min(math.ceil(b / scale), e) for b, e in zip(box[2:], extent, strict=True)]
        pixels = self._array(member, low, [h - o for h, o in zip(high, low, strict=True)])
        ends = [min(b / scale, e) for b, e in zip(box[2:], extent, strict=True)]
        inner = (box[0] / scale - low[0], box[1] / scale - low[1], ends[0] - low[0], ends[1] - low[1])
        return resize(pixels, inner, size)

    def _members(self, ordinal: int) -> list[MemberRow]:
        if not 0 <= ordinal < len(self.index):
            raise ShardError(f"{self.path}: no sample {ordinal}, there are {len(self.index)}")
        return self.index.members_of(ordinal)

    def _image(self, ordinal: int) -> MemberRow:
        """The image at full resolution."""
        for member in self._members(ordinal):
            if member.kind in (KIND_IMAGE, KIND_JPEG):
                return member
        raise ShardError(f"{self.path}: sample {ordinal} has no image; restore or rebuild the shard")

    def _fetch(self, members: Sequence[MemberRow]) -> list[bytes]:
        """Bytes of neighbouring members: one read of a file, and as a rule one request to a store."""
        if not isinstance(self.source, int):
            return [bytes(data) for data in self.source([(row.offset, row.size) for row in members])]
        start, last = members[0].offset, members[-1]
        data = read_exactly(self.source, last.offset + last.size - start, start)
        return [data[row.offset - start :][: row.size] for row in members] if len(members) > 1 else [data]

    def _bytes(self, member: MemberRow) -> bytes:
        with self._naming(member):
            data = self._ahead.pop(member.offset, None)
            if data is None:
                (data,) = self._fetch([member])
            if checksum(data) != member.crc:
                raise ShardError(f"checksum differs; {DAMAGED}")
            return data

    def _array(
        self,
        member: MemberRow,
        origin: Sequence[int] | None,
        shape: Sequence[int] | None,
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        layout = self.index.array(member.array)
        full = layout.shape
        lead = 0 if member.kind == KIND_MASK else 1
        with self._naming(member):
            origin, shape = _box(origin, shape, full[lead:])
            if channels is None or not lead:
                first, count = (0,) * lead, full[:lead]
                return read_box(self.source, self.index, member, (*first, *origin), (*count, *shape), out)
            wanted = _checked(channels, full[0])
            # Channels that share their chunks are decoded together; others cost nothing when left out.
            runs = _runs(wanted) if layout.chunk[0] == 1 else [(0, full[0])]
            parts = [
                read_box(self.source, self.index, member, (first, *origin), (count, *shape), out)
                for first, count in runs
            ]
            read = [channel for first, count in runs for channel in range(first, first + count)]
            image = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return image if read == wanted else image[[read.index(channel) for channel in wanted]]

    def _naming(self, member: MemberRow) -> _Naming:
        """Put shard and member into the message of whatever goes wrong inside."""
        return _Naming(self, member)

    def _name(self, member: MemberRow) -> str:
        """Name of a member, from the tar header in front of it."""
        place = f"at byte {member.offset}"
        if not isinstance(self.source, int):
            return place
        header = os.pread(self.source, 100, member.offset - 512)
        return header.split(b"\0", 1)[0].decode("ascii", "replace") or place


class _Naming:
    """A class, since a generator would cost a twentieth of a picture's overhead each time."""

    __slots__ = ("_member", "_shard")

    def __init__(self, shard: OpenShard, member: MemberRow) -> None:
        self._shard, self._member = shard, member

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, (ShardError, OSError, RuntimeError, ValueError)):
            return
        name = self._shard._name(self._member)
        if isinstance(error, ShardError) and name in str(error):
            error.member = name
            return
        fault = ShardError(f"{self._shard.path}: member {name}: {error}")
        fault.member = name
        raise fault from error


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
