"""Where the files of a folder of shards lie: what `Shards` asks of it, and the folder on a local disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from ..errors import ShardError
from . import index as indexing
from .index import Index
from .manifest import Manifest, ShardEntry
from .opened import OpenShard

log = logging.getLogger(__name__)

LOOKS, LOOKERS = 250, 32  # shards that one thread looks for, threads: 20,000 looks of 0.5 ms take 0.4 s


class ShardFolder(Protocol):
    """The files of a folder; pickles into workers."""

    @property
    def root(self) -> Path | str:
        """Where they lie, for messages."""
        ...

    @property
    def remote(self) -> bool:
        """Whether they lie behind a network."""
        ...

    @property
    def open_shards(self) -> int:
        """Shards that a reader holds open at most."""
        ...

    def manifest(self) -> Manifest:
        """The manifest. Raises ShardError, StoreError."""
        ...

    def index(self, entry: ShardEntry) -> Index:
        """The index of a shard, checked against the manifest. Raises ShardError, StoreError."""
        ...

    def open(self, entry: ShardEntry, index: Index) -> OpenShard:
        """The shard itself. Raises ShardError, StoreError."""
        ...

    def check(self, entries: Iterable[ShardEntry]) -> None:
        """Look whether these shards are there, as far as that is cheap. Raises ShardError."""
        ...


class LocalFolder:
    """A folder of this machine."""

    remote = False

    def __init__(self, root: str | Path, open_shards: int) -> None:
        self.root, self.open_shards = Path(root), open_shards

    def manifest(self) -> Manifest:
        """See `ShardFolder`."""
        return Manifest.load(self.root)

    def index(self, entry: ShardEntry) -> Index:
        """See `ShardFolder`; an index that is missing or damaged is made again from the tar."""
        path = self.root / entry.file
        try:
            index = indexing.load(indexing.index_path(path))
        except ShardError as error:
            log.warning("%s; reading %s once to rebuild it", error, path.name)
            index = indexing.rebuild(path, sha256=entry.sha256, write=os.access(path.parent, os.W_OK))
        check_index(index, entry, path)
        return index

    def open(self, entry: ShardEntry, index: Index) -> OpenShard:
        """See `ShardFolder`."""
        path = self.root / entry.file
        try:
            return OpenShard(path, index, os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be opened ({error.strerror}); run the build again, or copy it again"
            ) from error

    def check(self, entries: Iterable[ShardEntry]) -> None:
        """See `ShardFolder`; many looks run together, since each may have to wait for a network disk."""
        todo = list(entries)
        pieces = [todo[first : first + LOOKS] for first in range(0, len(todo), LOOKS)]
        if len(pieces) <= 1:
            self._look(todo)
            return
        with ThreadPoolExecutor(min(LOOKERS, len(pieces))) as pool:
            list(pool.map(self._look, pieces))  # raises what the first bad piece raised

    def _look(self, entries: list[ShardEntry]) -> None:
        for entry in entries:
            path = os.path.join(self.root, entry.file)  # noqa: PTH118 (a third of the time of a Path)
            try:
                size = os.stat(path).st_size  # noqa: PTH116
            except OSError:
                size = -1
            if size != entry.bytes:
                is_ = "is missing" if size < 0 else f"has {size} bytes, the manifest says {entry.bytes}"
                raise ShardError(f"{path} {is_}: restore it, or build the shards again")


def check_index(index: Index, entry: ShardEntry, path: Path | str) -> None:
    """Refuse the index of another shard. Raises ShardError."""
    if len(index) != entry.count or index.tar_bytes != entry.bytes:
        raise ShardError(
            f"{path}: the index counts {len(index)} samples in {index.tar_bytes} bytes, the manifest "
            f"{entry.count} in {entry.bytes}; delete the .idx, or restore the shard"
        )
