"""A folder of shards behind a URL, read in one of two ways, with the same pixels.

`cache`: whole shards go to the local disk (`cache.py`) and are read there like any others; right when samples
of a shard are read more than once or the store is slow. `range`: exact ranges of the store, two or three
requests a sample and no disk; right for a fast store near by. `auto` takes the cache where its folder can be
written and has room. Either way manifest and indices, a thousandth of the data, are kept in the cache (in
memory where it cannot be written), and every byte is checked: shards by SHA-256, members and chunks by CRC.

An index has no hash in the manifest: it is known by its magic, its own checksum and the counts of the
manifest, and what it says of a chunk is checked by that chunk.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, ShardError, StoreError, nearest
from ..shards import index as indexing
from ..shards.folder import check_index
from ..shards.index import Index, index_path
from ..shards.manifest import MANIFEST, Manifest, ShardEntry
from ..shards.opened import OpenShard
from ..shards.reader import Shards
from ..stream.config import ACCESS, StreamConfig
from .cache import CACHE_GB, ShardCache
from .stores import Patience, Remote, is_url

log = logging.getLogger(__name__)


def open_remote(
    url: str,
    *,
    access: str = "auto",
    cache: str | None = None,
    cache_gb: float = CACHE_GB,
    patience: Patience | None = None,
) -> RemoteFolder:
    """Open a folder of shards behind a URL; give it to `Shards(folder=...)`.

    Args:
        access: "cache", "range", or "auto"; see the module.
        cache: folder of the cache; None: MEDLOOM_CACHE or the user's cache folder.
        cache_gb: size limit of the cache, 10^9 bytes.

    Raises:
        ConfigError: an unknown access, no package for this URL.
        StoreError: the manifest cannot be fetched, or the cache is wanted and cannot be written.
    """
    if access not in ACCESS:
        raise ConfigError(f"data.access is {access!r}{nearest(access, ACCESS)}")
    remote = Remote(url, patience)
    try:
        kept = ShardCache(cache, cache_gb * 1e9)
    except StoreError as error:
        if access == "cache":
            raise
        log.warning("%s: reading ranges of the store; %s", remote.name, error)
        return RemoteFolder(remote, None, ranged=True)
    folder = RemoteFolder(remote, kept, ranged=access == "range")
    if access == "auto":
        largest = max((shard.bytes for shard in folder.manifest().shards), default=0)
        room = min(kept.limit, shutil.disk_usage(kept.folder).free)
        folder.ranged = room < 2 * largest
        way = "ranges of the store" if folder.ranged else "whole shards"
        log.info("%s: reading %s; %s has room for %.1f GB", remote.name, way, kept.folder, room / 1e9)
    return folder


class RemoteFolder:
    """`ShardFolder` behind a URL. Pickles with its credentials, and with the hash of its manifest."""

    remote = True

    def __init__(self, remote: Remote, cache: ShardCache | None, *, ranged: bool) -> None:
        self.store, self.cache, self.ranged = remote, cache, ranged
        self.root = remote.name
        self._digest = ""  # of manifest.json: workers read what the training process has read

    @property
    def open_shards(self) -> int:
        """Shards held open at most: each one of the cache is pinned; others cost an index of some 100 kB."""
        return 64 if self.ranged else 16

    def manifest(self) -> Manifest:
        """See `ShardFolder`."""
        if not self._digest or self.cache is None:
            data = self.store.read_all(MANIFEST)
            digest = hashlib.sha256(data).hexdigest()
            if self._digest not in ("", digest):
                raise StoreError(f"{self.store.where(MANIFEST)} was changed while it was read: start again")
            self._digest = digest
            if self.cache is not None:
                self.cache.keep(f"{digest}.json", lambda: data)
        else:
            data = self.cache.keep(f"{self._digest}.json", self._same_manifest).read_bytes()
            if hashlib.sha256(data).hexdigest() != self._digest:  # the disk damaged it
                data = self._same_manifest()
        return Manifest.parse(data, self.store.where(MANIFEST))

    def _same_manifest(self) -> bytes:
        data = self.store.read_all(MANIFEST)
        if hashlib.sha256(data).hexdigest() != self._digest:
            raise StoreError(f"{self.store.where(MANIFEST)} was changed while it was read: start again")
        return data

    def index(self, entry: ShardEntry) -> Index:
        """See `ShardFolder`."""
        file = index_path(Path(entry.file)).name
        where = self.store.where(file)

        def fetched() -> bytes:
            data = self.store.read_all(file)
            check_index(indexing.parse(np.frombuffer(data, np.uint8), where), entry, where)
            return data

        try:
            if self.cache is None:
                return indexing.parse(np.frombuffer(fetched(), np.uint8), where)
            path = self.cache.keep(f"{entry.sha256}.idx", fetched)
            try:
                return indexing.load(path)
            except ShardError:  # the disk damaged it: what is fetched was verified
                path.unlink(missing_ok=True)
                return indexing.load(self.cache.keep(path.name, fetched))
        except ShardError as error:
            raise StoreError(
                f"{error}; run `medloom shards check` where the shards were built, and upload the .idx again"
            ) from None

    def open(self, entry: ShardEntry, index: Index) -> OpenShard:
        """See `ShardFolder`; fetches the shard where it is not in the cache."""
        if self.ranged or self.cache is None:

            def fetch(ranges: Sequence[tuple[int, int]]) -> Iterable[Any]:
                return self.store.read_ranges(entry.file, ranges)

            return OpenShard(self.store.where(entry.file), index, fetch)
        return OpenShard(self.cache.path(entry), index, self.cache.open(entry, self.store))

    def check(self, entries: Iterable[ShardEntry]) -> None:
        """Nothing: asking a store for thousands of sizes takes minutes, and each shard is verified anyway."""


def remote_shards(url: str, **options: Any) -> Shards:
    """`Shards` behind a URL with the options of `open_remote`."""
    return Shards(folder=open_remote(url, **options))


def open_shards(config: StreamConfig) -> Shards:
    """The shards of a configuration, by path or URL. Raises as `open_remote`, or ShardError."""
    if not is_url(config.shards):
        return Shards.open(config.shards)
    # What is read from end to end, once, need not go through a disk.
    access = "range" if config.mode == "sequential" and config.access == "auto" else config.access
    cache = config.cache or None
    return remote_shards(config.shards, access=access, cache=cache, cache_gb=config.cache_gb)
