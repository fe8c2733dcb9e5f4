"""Put a shard in its place from somewhere else: another folder, a URL, another name in the same folder.

Bytes go into `.partial-repair-SHA-NAME` beside the target, which is renamed only after its SHA-256 has been
found right; what a killed copy leaves there is read once and continued. The bad file is in its place until
then, so nothing is lost that was not replaced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..atomic import TEMPORARY, replacing
from ..errors import ShardError
from ..remote.stores import Remote, is_url, public
from .index import file_sha256, rebuild
from .manifest import MANIFEST, Manifest, ShardEntry, sealed
from .writer import explain_os_errors

PIECE = 8 << 20
MARK = f"{TEMPORARY}repair-"

Tick = Callable[[int], None]  # bytes more


class Source:
    """Another folder of the same shards: a path or a URL."""

    def __init__(self, place: str) -> None:
        self._remote = Remote(place) if is_url(place) else None
        self._folder = Path(place.removeprefix("file://"))
        self.name = public(place)
        self._manifest: Manifest | None = None

    def manifest(self) -> Manifest:
        """Its manifest. Raises ShardError: there is none, or it was altered."""
        if self._manifest is None:
            if self._remote is not None:
                data = self._remote.read_all(MANIFEST)
                self._manifest = Manifest.parse(data, self._remote.where(MANIFEST))
            else:
                self._manifest = Manifest.load(self._folder)
                if not sealed(self._folder):
                    raise ShardError(
                        f"{self._folder / MANIFEST} was altered after it was written; repair it first"
                    )
        return self._manifest

    def has(self, entry: ShardEntry) -> bool:
        """Whether it lists this very shard, by SHA-256; if its bytes are right shows when they are read."""
        return any(e.file == entry.file and e.sha256 == entry.sha256 for e in self.manifest().shards)

    def pieces(self, entry: ShardEntry, start: int) -> Iterator[bytes]:
        """The bytes of a shard from `start` on."""
        if self._remote is not None:
            yield from self._remote.pieces(entry.file, entry.bytes, start)
            return
        try:
            with (self._folder / entry.file).open("rb") as handle:
                handle.seek(start)
                while piece := handle.read(PIECE):
                    yield piece
        except OSError as error:
            raise ShardError(f"{self._folder / entry.file}: cannot be read ({error.strerror})") from error


def partial_of(folder: Path, entry: ShardEntry) -> Path:
    """Where the copy of a shard grows."""
    return folder / f"{MARK}{entry.sha256[:16]}-{entry.file}"


def fetch(source: Source, entry: ShardEntry, folder: Path, tick: Tick | None = None) -> None:
    """Replace a shard of `folder` by the verified copy that `source` has, and make its index.

    Raises:
        ShardError: the copy is damaged as well, or cannot be read or written. The old file is still there.
        StoreError: the store behind a URL cannot be read.
    """
    grown = write(partial_of(folder, entry), entry, lambda start: source.pieces(entry, start), tick)
    if not grown:  # what an earlier attempt left was wrong: once more, from the start
        grown = write(partial_of(folder, entry), entry, lambda start: source.pieces(entry, start), tick)
    if not grown:
        raise ShardError(
            f"{source.name}/{entry.file}: this copy is damaged, too (sha256); name another --from"
        )
    settle(folder, entry)


def write(
    partial: Path, entry: ShardEntry, pieces: Callable[[int], Iterable[bytes]], tick: Tick | None = None
) -> bool:
    """Grow `partial` to the whole shard; False, and no file, when the SHA-256 comes out wrong."""
    digest, start = hashlib.sha256(), 0
    with explain_os_errors(partial, 0), partial.open("a+b") as handle:
        handle.seek(0)
        while piece := handle.read(PIECE):
            digest.update(piece)
            start += len(piece)
        if tick is not None:
            tick(start)
        for piece in pieces(start) if start < entry.bytes else ():
            handle.write(piece)
            digest.update(piece)
            if tick is not None:
                tick(len(piece))
    if digest.hexdigest() == entry.sha256:
        return True
    partial.unlink()
    return False


def take(path: Path, entry: ShardEntry, folder: Path) -> None:
    """Give the file at `path`, whose SHA-256 is right, a second name: the partial of the shard."""
    partial = partial_of(folder, entry)
    if partial == path:
        return
    partial.unlink(missing_ok=True)
    with explain_os_errors(partial, 0):
        try:
            os.link(path, partial)
        except OSError:  # a file system without links
            shutil.copyfile(path, partial)


def settle(folder: Path, entry: ShardEntry) -> None:
    """Move a complete partial into its place and make its index; both are verified on the way.

    Raises:
        ShardError: the bytes are not right; the old file is still there.
    """
    partial, target = partial_of(folder, entry), folder / entry.file
    if file_sha256(partial) != entry.sha256:
        partial.unlink()
        raise ShardError(f"{target}: the copy changed while it was made; run the same command again")
    with explain_os_errors(target, 0):
        with replacing(target) as temporary:
            partial.rename(temporary)
        rebuild(target)
