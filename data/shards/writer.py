"""Write one shard: samples in, `NAME.tar` and `NAME.idx` out, both or neither, and always the same bytes.

The tar is written under a temporary name beside its target and renamed when complete, so a killed writer
leaves nothing that a reader would open. Headers carry fixed times and owners: equal samples give equal bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from ..atomic import replacing, write_bytes
from ..errors import ShardError
from ..sample import Sample
from .format import Member, members_of
from .index import IndexBuilder, index_path
from .manifest import ShardEntry

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ShardWriter:
    """Context manager that writes `path` (a .tar). On an exception nothing is left behind.

    Usage:
        with ShardWriter(path) as writer:
            writer.add(sample)
        entry = writer.entry
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.bytes = 0
        self.count = 0
        self._digest = hashlib.sha256()
        self._index = IndexBuilder()
        self._entry: ShardEntry | None = None

    def __enter__(self) -> ShardWriter:
        with explain_os_errors(self.path, 0):
            self._replacing = replacing(self.path)
            temporary = self._replacing.__enter__()
            try:
                self._file = temporary.open("wb")
            except BaseException as error:
                self._replacing.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def add(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            ShardError: the disk is full, or the sample cannot be stored as the format says.
        """
        self.put(list(members_of(sample)))

    def put(self, members: Sequence[Member]) -> None:
        """Append the encoded members of one sample. Raises ShardError when the disk is full."""
        for member in members:
            self._put(member.name, member.data)
        self.count += 1

    @property
    def entry(self) -> ShardEntry:
        """The manifest's row, once the shard is complete."""
        if self._entry is None:
            raise ShardError(f"{self.path}: the shard is not complete")
        return self._entry

    def _put(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        header = info.tobuf(tarfile.USTAR_FORMAT)
        self._index.member(name, self.bytes + len(header), data)
        self._write(header)
        self._write(data)
        self._write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        with explain_os_errors(self.path, self.bytes):
            self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(BaseException):  # the caller's exception is the one to see
                self._replacing.__exit__(kind, error, trace)
            return
        try:
            end = 2 * tarfile.BLOCKSIZE
            self._write(b"\0" * (end + -(self.bytes + end) % tarfile.RECORDSIZE))
            with explain_os_errors(self.path, self.bytes):
                self._file.close()
                # A shard without its index is rebuilt by the reader; an index without its shard never exists,
                # and neither do a new shard and an old index, unless two processes write the same bytes.
                index_path(self.path).unlink(missing_ok=True)
                self._replacing.__exit__(None, None, None)
                write_bytes(index_path(self.path), self._index.finish(self.bytes).to_bytes())
        except BaseException as failure:
            with contextlib.suppress(BaseException):
                self._file.close()
            with contextlib.suppress(BaseException):
                self._replacing.__exit__(type(failure), failure, failure.__traceback__)
            self.path.unlink(missing_ok=True)
            raise
        self._entry = ShardEntry(self.path.name, self.count, self.bytes, self._digest.hexdigest())


@contextlib.contextmanager
def explain_os_errors(path: Path, written: int) -> Iterator[None]:
    """Turn an OSError met while writing `path` into a ShardError with the mend."""
    try:
        yield
    except OSError as error:
        free = _free_bytes(path)
        if error.errno in _OUT_OF_SPACE:
            raise ShardError(
                f"{path}: no space left after {written:,} bytes ({free}); free some, or build elsewhere, "
                "then run the same command again: finished units are kept"
            ) from error
        raise ShardError(f"{path}: cannot be written ({error.strerror or error})") from error


def _free_bytes(path: Path) -> str:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return "free space unknown"
    return f"{status.f_bavail * status.f_frsize:,} bytes free"
