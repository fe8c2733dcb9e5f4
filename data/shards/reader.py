"""Read shards: metadata, whole images, boxes, resized boxes, label maps. Random access, partial, verified.

Only positioned reads (`pread`) are used, so a `Shards` may be shared by fork; it pickles as its path and
opens files again where it lands (spawn, forkserver). Open files are kept in a least-recently-used table. One
reader serves one thread.
"""

from __future__ import annotations

import json
import logging
import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError
from ..sample import Sample
from . import index as indexing
from .codec import single_threaded
from .format import DAMAGED, KIND_IMAGE, KIND_JPEG, KIND_JSON, KIND_MASK, checksum
from .frame import read_box
from .index import Index, key_hash, read_exactly
from .manifest import Manifest, SourceEntry
from .pictures import check_box, decode_jpeg, resize, resize_jpeg

log = logging.getLogger(__name__)

OPEN_SHARDS = 256  # file descriptors a reader holds at most


@dataclass(frozen=True, slots=True, order=True)
class SampleRef:
    """Where a sample lies: shard in manifest order (all shards of all sources), ordinal inside the shard."""

    shard: int
    ordinal: int


class _Handle:
    """An open shard. The descriptor is closed with the object, so a forgotten `Shards` leaks nothing."""

    __slots__ = ("descriptor", "index", "path")

    def __init__(self, path: Path, index: Index) -> None:
        self.descriptor = -1
        self.path, self.index = path, index
        try:
            self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be opened ({error.strerror}); run the build again, or copy it again"
            ) from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Shards:
    """A folder of shards, open for reading."""

    def __init__(self, root: str | Path, *, open_shards: int = OPEN_SHARDS) -> None:
        single_threaded()
        self.root = Path(root)
        self.manifest = Manifest.load(self.root)
        self._entries = self.manifest.shards
        starts, self._first = 0, []
        for source in self.manifest.sources:
            self._first.append(starts)
            starts += len(source.shards)
        self._handles: OrderedDict[int, _Handle] = OrderedDict()
        self._open_shards = open_shards

    @classmethod
    def open(cls, path: str | Path) -> Shards:
        """Open a folder that `build` wrote.

        Raises:
            ShardError: no manifest there, or one of another format version.
        """
        return cls(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Shards, (self.root,))

    def __len__(self) -> int:
        return self.manifest.count

    def source_of(self, shard: int) -> SourceEntry:
        """The source that shard number `shard` belongs to."""
        return self.manifest.sources[bisect_right(self._first, shard) - 1]

    def refs(self, source_id: str | None = None) -> Iterator[SampleRef]:
        """All samples in storage order, or those of one source. Raises ShardError for an unknown source."""
        known = [source.id for source in self.manifest.sources]
        if source_id is not None and source_id not in known:
            raise ShardError(f"{self.root}: no source {source_id!r}; it holds {', '.join(known)}")
        for source, first in zip(self.manifest.sources, self._first, strict=True):
            if source_id in (None, source.id):
                for number, entry in enumerate(source.shards, first):
                    yield from (SampleRef(number, ordinal) for ordinal in range(entry.count))

    def find(self, key: str) -> SampleRef:
        """The sample with this key, by its hash in the indices. Raises ShardError when there is none."""
        wanted = np.uint64(key_hash(key))
        for number in range(len(self._entries)):
            for ordinal in np.flatnonzero(self._handle(number).index.samples["key_hash"] == wanted):
                ref = SampleRef(number, int(ordinal))
                if self.meta(ref)["key"] == key:
                    return ref
        raise ShardError(f"{self.root}: no sample {key!r}")

    def meta(self, ref: SampleRef) -> dict[str, Any]:
        """`key.json` of the sample (keys: see `format.META_KEYS`)."""
        handle, member = self._member(ref, KIND_JSON)
        return json.loads(self._bytes(handle, member))

    def read(
        self, ref: SampleRef, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """The image, native dtype: whole [C, D, H, W] or [C, H, W], or a spatial box of it.

        Args:
            origin: first voxel of the box, spatial axes only; None for the start.
            shape: extent of the box, spatial axes only; None for the rest.

        Raises:
            ShardError: the box is not inside the image, or what is stored is damaged.
        """
        handle, member = self._member(ref, KIND_IMAGE, KIND_JPEG)
        if int(member["kind"]) == KIND_IMAGE:
            return self._array(handle, member, origin, shape)
        with self._naming(handle, member):
            image = decode_jpeg(self._bytes(handle, member))
            origin, shape = _box(origin, shape, image.shape[1:])
            place = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
            return np.ascontiguousarray(image[(slice(None), *place)])

    def read_mask(
        self, ref: SampleRef, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """The label map [D, H, W] or [H, W], or a box of it; None when the sample has none."""
        handle, member = self._member(ref, KIND_MASK, required=False)
        return None if member is None else self._array(handle, member, origin, shape)

    def read_resized(self, ref: SampleRef, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        """A box of a picture at another size, antialiased (triangle filter), native dtype: [C, h, w].

        Decodes the stored level, or the JPEG scale, nearest above the output: cost follows the output.

        Args:
            box: (y0, x0, y1, x1) in full-resolution pixels, y1 and x1 exclusive, fractions allowed.
            size: (h, w) of the result.

        Raises:
            ShardError: the sample is a volume, the box is empty or not inside, or what is stored is damaged.
        """
        handle, member = self._member(ref, KIND_IMAGE, KIND_JPEG)
        if int(handle.index.samples[ref.ordinal]["ndim"]) != 2:
            raise ShardError(f"{handle.path}: sample {ref.ordinal} is a volume, read_resized is for pictures")
        if int(member["kind"]) == KIND_JPEG:
            with self._naming(handle, member):
                return resize_jpeg(self._bytes(handle, member), box, size)
        full = tuple(int(n) for n in handle.index.arrays[int(member["array"])]["shape"][1:3])
        with self._naming(handle, member):
            check_box(box, full)
        levels = [m for m in handle.index.members_of(ref.ordinal) if int(m["kind"]) == KIND_IMAGE]
        shrink = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        level = min(len(levels) - 1, max(0, math.floor(math.log2(max(shrink, 1.0)))))
        member, scale = levels[level], 2.0**level
        extent = tuple(int(n) for n in handle.index.arrays[int(member["array"])]["shape"][1:3])
        low = [math.floor(box[0] / scale), math.floor(box[1] / scale)]
        high = [min(math.ceil(b / scale), e) for b, e in zip(box[2:], extent, strict=True)]
        pixels = self._array(handle, member, low, [h - o for h, o in zip(high, low, strict=True)])
        ends = [min(b / scale, e) for b, e in zip(box[2:], extent, strict=True)]
        inner = (box[0] / scale - low[0], box[1] / scale - low[1], ends[0] - low[0], ends[1] - low[1])
        return resize(pixels, inner, size)

    def sample(self, ref: SampleRef) -> Sample:
        """Everything stored for one sample, decoded."""
        meta = self.meta(ref)
        handle, member = self._member(ref, KIND_IMAGE, KIND_JPEG)
        jpeg = self._bytes(handle, member) if int(member["kind"]) == KIND_JPEG else None
        mask = self.read_mask(ref)
        return Sample(key=meta["key"], image=self.read(ref), mask=mask, jpeg=jpeg, meta=meta)

    def close(self) -> None:
        """Close every open shard; reading again opens them again."""
        self._handles.clear()

    def _handle(self, shard: int) -> _Handle:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if not 0 <= shard < len(self._entries):
            raise ShardError(f"{self.root}: no shard {shard}, there are {len(self._entries)}")
        path = self.root / self._entries[shard].file
        index = self._index(shard, path)
        self._handles[shard] = _Handle(path, index)
        while len(self._handles) > self._open_shards:
            self._handles.popitem(last=False)
        return self._handles[shard]

    def _index(self, shard: int, path: Path) -> Index:
        entry = self._entries[shard]
        try:
            index = indexing.load(indexing.index_path(path))
        except ShardError as error:
            log.warning("%s; reading %s once to rebuild it", error, path.name)
            index = indexing.rebuild(path, sha256=entry.sha256, write=os.access(path.parent, os.W_OK))
        if len(index) != entry.count or index.tar_bytes != entry.bytes:
            raise ShardError(
                f"{path}: the index counts {len(index)} samples in {index.tar_bytes} bytes, the manifest "
                f"{entry.count} in {entry.bytes}; delete the .idx, or restore the shard"
            )
        return index

    def _member(self, ref: SampleRef, *kinds: int, required: bool = True) -> tuple[_Handle, Any]:
        handle = self._handle(ref.shard)
        if not 0 <= ref.ordinal < len(handle.index):
            raise ShardError(f"{handle.path}: no sample {ref.ordinal}, there are {len(handle.index)}")
        for member in handle.index.members_of(ref.ordinal):
            if int(member["kind"]) in kinds:
                return handle, member
        if required:
            raise ShardError(
                f"{handle.path}: sample {ref.ordinal} has no image; restore or rebuild the shard"
            )
        return handle, None

    def _bytes(self, handle: _Handle, member: Any) -> bytes:
        with self._naming(handle, member):
            data = read_exactly(handle.descriptor, int(member["size"]), int(member["offset"]))
            if checksum(data) != int(member["crc"]):
                raise ShardError(f"checksum differs; {DAMAGED}")
            return data

    def _array(
        self, handle: _Handle, member: Any, origin: Sequence[int] | None, shape: Sequence[int] | None
    ) -> np.ndarray:
        row = handle.index.arrays[int(member["array"])]
        full = [int(n) for n in row["shape"][: int(row["ndim"])]]
        lead = [] if int(member["kind"]) == KIND_MASK else full[:1]
        with self._naming(handle, member):
            origin, shape = _box(origin, shape, full[len(lead) :])
            return read_box(handle.descriptor, handle.index, member, [0] * len(lead) + origin, lead + shape)

    @contextmanager
    def _naming(self, handle: _Handle, member: Any) -> Iterator[None]:
        """Put shard and member into the message of whatever goes wrong inside."""
        try:
            yield
        except (ShardError, OSError, RuntimeError, ValueError) as error:
            name = member_name(handle.descriptor, member)
            if isinstance(error, ShardError) and name in str(error):
                error.member = name
                raise
            fault = ShardError(f"{handle.path}: member {name}: {error}")
            fault.member = name
            raise fault from error


def member_name(descriptor: int, member: Any) -> str:
    """Name of a member, from the tar header in front of it."""
    header = os.pread(descriptor, 100, int(member["offset"]) - 512)
    return header.split(b"\0", 1)[0].decode("ascii", "replace") or f"at byte {int(member['offset'])}"


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
