"""Read shards: metadata, whole images, boxes, resized boxes, label maps. Random access, partial, verified.

Only positioned reads are used, so a `Shards` may be shared by fork; it pickles as its path or URL and opens
files again where it lands (spawn, forkserver). Open shards are kept in a least-recently-used table. One
reader serves one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError
from ..remote.stores import is_url
from ..sample import Sample
from .codec import single_threaded
from .folder import LocalFolder, ShardFolder
from .index import Index, key_hash
from .manifest import ShardEntry, SourceEntry
from .opened import OpenShard

OPEN_SHARDS = 256  # file descriptors a reader holds at most


@dataclass(frozen=True, slots=True, order=True)
class SampleRef:
    """Where a sample lies: shard in manifest order (all shards of all sources), ordinal inside the shard."""

    shard: int
    ordinal: int


class Shards:
    """A folder of shards, open for reading.

    Args:
        root: path or URL; for a URL with options see `medloom.data.remote.shards.open_remote`.
        open_shards: shards held open at most; None: what suits the folder.
        folder: in place of `root`.

    Raises:
        ShardError: no manifest there, or one of another format version.
        StoreError: the store behind a URL cannot be read.
    """

    def __init__(
        self, root: str | Path = "", *, open_shards: int | None = None, folder: ShardFolder | None = None
    ) -> None:
        single_threaded()
        if folder is None and is_url(root):
            from ..remote.shards import open_remote

            folder = open_remote(str(root))
        self.folder = folder or LocalFolder(str(root).removeprefix("file://"), open_shards or OPEN_SHARDS)
        self.root = self.folder.root
        self.manifest = self.folder.manifest()
        self._entries = self.manifest.shards
        starts, self._first = 0, []
        for source in self.manifest.sources:
            self._first.append(starts)
            starts += len(source.shards)
        self._handles: OrderedDict[int, OpenShard] = OrderedDict()
        self._open_shards = open_shards or self.folder.open_shards

    @classmethod
    def open(cls, path: str | Path) -> Shards:
        """Open a folder that `build` wrote, by its path or URL. Raises ShardError, StoreError."""
        return cls(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.folder, self._open_shards))

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
            for ordinal in np.flatnonzero(self.index(number).samples["key_hash"] == wanted):
                ref = SampleRef(number, int(ordinal))
                if self.meta(ref)["key"] == key:
                    return ref
        raise ShardError(f"{self.root}: no sample {key!r}")

    def index(self, shard: int) -> Index:
        """Index of shard number `shard`; the shard itself is not fetched for it."""
        handle = self._handles.get(shard)
        return self.folder.index(self._entries[shard]) if handle is None else handle.index

    def check(self, entries: Iterable[ShardEntry]) -> None:
        """Look whether these shards are there, as far as that is cheap. Raises ShardError."""
        self.folder.check(entries)

    def meta(self, ref: SampleRef, *, ahead: bool = False) -> dict[str, Any]:
        """`key.json` of the sample (keys: see `format.META_KEYS`).

        Args:
            ahead: fetch its JPEG with it, in one read; the next read of this sample finds it.
        """
        return self._handle(ref.shard).meta(ref.ordinal, ahead=ahead)

    def read(
        self,
        ref: SampleRef,
        origin: Sequence[int] | None = None,
        shape: Sequence[int] | None = None,
        *,
        channels: Sequence[int] | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The image, native dtype: whole [C, D, H, W] or [C, H, W], or a spatial box of it.

        Args:
            origin: first voxel of the box, spatial axes only; None for the start.
            shape: extent of the box, spatial axes only; None for the rest.
            channels: which, in this order; None for all. Others of a volume are neither read nor decoded.
            out: an array of the result's shape and dtype to decode into, where that saves a copy; whether it
                was used shows in whether it is what is returned.

        Raises:
            ShardError: the box is not inside the image, or what is stored is damaged.
        """
        return self._handle(ref.shard).read(ref.ordinal, origin, shape, channels, out)

    def read_mask(
        self, ref: SampleRef, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """The label map [D, H, W] or [H, W], or a box of it; None when the sample has none."""
        return self._handle(ref.shard).read_mask(ref.ordinal, origin, shape)

    def read_resized(self, ref: SampleRef, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        """A box of a picture at another size, antialiased (triangle filter), native dtype: [C, h, w].

        Decodes the stored level, or the JPEG scale, nearest above the output: cost follows the output.

        Args:
            box: (y0, x0, y1, x1) in full-resolution pixels, y1 and x1 exclusive, fractions allowed.
            size: (h, w) of the result.

        Raises:
            ShardError: the sample is a volume, the box is empty or not inside, or what is stored is damaged.
        """
        return self._handle(ref.shard).read_resized(ref.ordinal, box, size)

    def read_mask_resized(
        self, ref: SampleRef, box: Sequence[float], size: Sequence[int]
    ) -> np.ndarray | None:
        """A box of the label map at another size: the label under the centre of each pixel or voxel.

        On the same box and size it lies on the pixels of `read_resized`. All stored voxels of the box are
        decoded; label maps have no smaller levels.

        Args:
            box: (y0, x0, y1, x1) or (z0, y0, x0, z1, y1, x1), ends exclusive, fractions allowed.
            size: spatial shape of the result.

        Returns:
            Unsigned integers [*size]; None when the sample has no label map.

        Raises:
            ShardError: the box is not inside the map, or what is stored is damaged.
        """
        return self._handle(ref.shard).read_mask_resized(ref.ordinal, box, size)

    def sample(self, ref: SampleRef) -> Sample:
        """Everything stored for one sample, decoded."""
        meta = self.meta(ref)
        jpeg = self._handle(ref.shard).jpeg(ref.ordinal)
        return Sample(key=meta["key"], image=self.read(ref), mask=self.read_mask(ref), jpeg=jpeg, meta=meta)

    def close(self, keep: Container[int] = ()) -> None:
        """Close the open shards, but for those numbered in `keep`; reading again opens them again."""
        for shard in [number for number in self._handles if number not in keep]:
            del self._handles[shard]

    def _handle(self, shard: int) -> OpenShard:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if not 0 <= shard < len(self._entries):
            raise ShardError(f"{self.root}: no shard {shard}, there are {len(self._entries)}")
        entry = self._entries[shard]
        self._handles[shard] = self.folder.open(entry, self.folder.index(entry))
        while len(self._handles) > self._open_shards:
            self._handles.popitem(last=False)
        return self._handles[shard]


def _reopened(folder: ShardFolder, open_shards: int) -> Shards:
    return Shards(folder=folder, open_shards=open_shards)
