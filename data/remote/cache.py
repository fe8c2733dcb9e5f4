"""Shards of remote folders on the local disk, named by the SHA-256 of what they hold; one cache a node.

Files are locks, so that whatever is killed leaves nothing locked (flock): who downloads holds the partial
file exclusively, so any number of ranks and workers fetch a shard once; who reads holds the shard shared,
which pins it: eviction (least recently used first) passes over what it cannot lock exclusively. A killed
download goes on where it ended. A shard is verified before it gets its name. Price: flock has to work in this
folder (local disks; most, not all, network file systems), and a limit that is smaller than the shards in use
is exceeded, with a warning, rather than obeyed.

    SHA256.tar             a whole shard, its time of change is that of its last use
    SHA256.BYTES.partial   a download under way or cut; counts as BYTES
    SHA256.idx, SHA256.json   index of a shard, a manifest
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from ..atomic import TEMPORARY, write_bytes
from ..errors import StoreError
from ..shards.manifest import ShardEntry
from .stores import Remote

log = logging.getLogger(__name__)

CACHE_GB = 100.0  # default size limit, 10^9 bytes
_SPARE = 64 << 20  # bytes of the disk that stay free
_POLL = 0.05  # seconds between two looks at a file that another process downloads


def default_folder() -> Path:
    """MEDLOOM_CACHE, or `medloom/shards` in the user's cache folder."""
    if named := os.environ.get("MEDLOOM_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "medloom" / "shards"


class ShardCache:
    """The cache of this node. Holds no open file: it may be pickled and shared over fork.

    Args:
        folder: None: `default_folder()`.
        limit: bytes of all files together.

    Raises:
        StoreError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None = None, limit: float = CACHE_GB * 1e9) -> None:
        self.folder = Path(folder).expanduser() if folder else default_folder()
        self.limit = limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "no permission to write")
        except OSError as error:
            raise StoreError(
                f"{self.folder}: cannot hold the cache of remote shards ({error.strerror}); set data.cache "
                "or MEDLOOM_CACHE to a folder on a local disk, or data.access=range to do without"
            ) from error

    def path(self, entry: ShardEntry) -> Path:
        """Where the shard lies when it is there."""
        return self.folder / f"{entry.sha256}.tar"

    def open(self, entry: ShardEntry, remote: Remote) -> int:
        """Descriptor of the whole, verified shard, downloaded if need be. Close it to let go of the shard.

        Raises:
            StoreError: it cannot be fetched, is not what the manifest says, or does not fit on the disk.
        """
        waits = 0
        while True:
            descriptor = self._attempt(entry, remote, beyond_limit=True)
            if descriptor is not None:
                return descriptor
            waits += 1
            if waits == round(10 / _POLL):
                log.info("waiting for another process to download %s", entry.file)
            time.sleep(_POLL)

    def prefetch(self, entry: ShardEntry, remote: Remote) -> int | None:
        """As `open`, but None where another process downloads it now, or where there is no room for it."""
        return self._attempt(entry, remote, beyond_limit=False)

    def keep(self, name: str, get: Callable[[], bytes]) -> Path:
        """A small file by its name, made of what `get` returns where it is missing.

        Raises:
            StoreError: it cannot be written.
        """
        path = self.folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            data = get()
            try:
                write_bytes(path, data)
            except OSError as error:
                raise StoreError(
                    f"{self.folder}: cannot write {name} ({error.strerror}); free space, or set "
                    "data.cache to another disk"
                ) from error
        return path

    def _attempt(self, entry: ShardEntry, remote: Remote, *, beyond_limit: bool) -> int | None:
        path = self.path(entry)
        if (found := _share(path, entry.bytes)) is not None:
            return found
        partial = self.folder / f"{entry.sha256}.{entry.bytes}.partial"
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        mine = done = False
        try:
            mine = _lock(descriptor) and _is(descriptor, partial)
            if not mine or path.exists():
                return None  # it is being downloaded, or was so just now
            if not self._make_room(entry, os.fstat(descriptor).st_size, beyond_limit):
                return None
            self._download(descriptor, entry, remote)
            try:
                partial.replace(path)
            except FileNotFoundError:
                return None  # somebody emptied the cache
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            done = True
            return descriptor
        finally:
            if mine and not done and (path.exists() or not os.fstat(descriptor).st_size):
                partial.unlink(missing_ok=True)
            if not done:
                os.close(descriptor)

    def _download(self, descriptor: int, entry: ShardEntry, remote: Remote) -> None:
        """Fill and verify the partial file; what it holds already is kept unless the whole is wrong."""
        started, found = time.monotonic(), ""
        for _ in range(2):
            try:
                found = _fill(descriptor, entry, remote)
            except OSError as error:
                os.ftruncate(descriptor, 0)
                raise StoreError(
                    f"{self.folder}: cannot write {entry.file} ({error.strerror}); free space, or set "
                    "data.cache to another disk"
                ) from error
            if found == entry.sha256:
                os.fsync(descriptor)
                seconds = max(time.monotonic() - started, 1e-3)
                size = entry.bytes / 1e6
                log.info("fetched %s: %.0f MB, %.0f MB/s", entry.file, size, size / seconds)
                return
            log.warning("%s: wrong SHA-256, downloading it again", remote.where(entry.file))
            os.ftruncate(descriptor, 0)
        raise StoreError(
            f"{remote.where(entry.file)}: SHA-256 {found[:16]}... twice, the manifest says "
            f"{entry.sha256[:16]}...; the remote copy is damaged or of another build: upload the folder again"
        )

    def _make_room(self, entry: ShardEntry, there: int, beyond_limit: bool) -> bool:
        """Evict until the partial file of this shard, which counts already, fits; whether it may grow."""
        with FileLock(self.folder / "evict.lock"):
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            disk = shutil.disk_usage(self.folder).free - (entry.bytes - there) - _SPARE
            for _, size, path in files:
                if total <= self.limit and disk >= 0:
                    break
                if _evict(path):
                    log.debug("evicted %s", path.name)
                    total, disk = total - size, disk + size
        if disk < 0:
            if not beyond_limit:
                return False
            raise StoreError(
                f"{self.folder}: no room for {entry.file} ({entry.bytes / 1e6:.0f} MB): the disk lacks "
                f"{-disk / 1e6:.0f} MB; free them, set data.cache to another disk, or data.access=range"
            )
        if total > self.limit and beyond_limit:
            log.warning(
                "%s: the shards in use take %.1f GB, more than the limit of %.1f GB: raise data.cache_gb or "
                "lower data.window",
                self.folder,
                total / 1e9,
                self.limit / 1e9,
            )
        return beyond_limit or total <= self.limit

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Last use, size and path of everything that counts."""
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # evicted or finished meanwhile
                state = path.stat()
                if path.suffix == ".partial":
                    yield state.st_mtime, max(state.st_size, int(path.stem.partition(".")[2])), path
                elif path.suffix in (".tar", ".idx", ".json") or path.name.startswith(TEMPORARY):
                    yield state.st_mtime, state.st_size, path


def _fill(descriptor: int, entry: ShardEntry, remote: Remote) -> str:
    """Append what is missing, and return the SHA-256 of the whole."""
    digest, at = hashlib.sha256(), 0
    if os.fstat(descriptor).st_size > entry.bytes:
        os.ftruncate(descriptor, 0)
    while data := os.pread(descriptor, 1 << 20, at):
        digest.update(data)
        at += len(data)
    for data in remote.pieces(entry.file, entry.bytes, at):
        digest.update(data)
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            at, view = at + written, view[written:]
    return digest.hexdigest()


def _share(path: Path, size: int) -> int | None:
    """Descriptor of the file with a shared lock on it; None when it is not there or of another size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # who evicts, or has just downloaded it, lets go at once
    if _is(descriptor, path):
        if os.fstat(descriptor).st_size == size:
            with contextlib.suppress(OSError):
                os.utime(descriptor)
            return descriptor
        path.unlink(missing_ok=True)
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    """Lock the file exclusively, unless anyone else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file still is the one at `path`: it may have been renamed or evicted meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove a file that nobody holds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not _lock(descriptor) or not _is(descriptor, path):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
