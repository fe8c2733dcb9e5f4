"""Where the files of a folder of shards lie: what `Shards` asks of it, and the folder on a local disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ..errors import ShardError
from . import index as indexing
from .index import Index
from .manifest import Manifest, ShardEntry
from .opened import OpenShard

log = logging.getLogger(__name__)


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
        """See `ShardFolder`."""
        for entry in entries:
            path = self.root / entry.file
            size = path.stat().st_size if path.is_file() else -1
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
