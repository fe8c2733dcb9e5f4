"""A file that is being downloaded: `NAME.part` holds what came so far, `NAME.part.json` what it is a part of.

What a killed download left is used again only when the server confirms, by the ETag or date noted beside it,
that the rest belongs to the same file; bytes of two versions are never joined. Digests are computed as the
bytes pass, so that verifying costs no second reading, but of what an earlier process left (about 2 s a GB).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from ..atomic import write_json
from ..errors import StoreError


@dataclass(frozen=True, slots=True)
class Version:
    """Which version of a file the server sends."""

    source: str = ""  # digest of the URL: the URL itself may hold credentials
    total: int | None = None  # bytes; None: the server does not say
    validator: str = ""  # a strong ETag or Last-Modified, for If-Range; "": none, cannot be resumed

    def resumable(self) -> bool:
        """Whether the server can be asked for the rest of exactly this version."""
        return bool(self.validator)


class Partial:
    """The growing file, opened; use as a context manager.

    Attributes:
        size: bytes that are there.
        version: of which file.
        restarts: how often bytes that had come were thrown away.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self._note = path.with_name(f"{path.name}.json")
        self._source = hashlib.sha256(source.encode()).hexdigest()
        self.version = self._noted()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self.restarts = 0
        self._clear()
        if self.version.source != self._source:
            self.restart(Version())
        else:
            self._digest_what_is_there()

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def restart(self, version: Version) -> None:
        """Begin again from byte 0, with another version of the file."""
        self._note.unlink(missing_ok=True)  # first: a note beside bytes of another version would join the two
        os.ftruncate(self._file, 0)
        self.restarts += self.size > 0
        self._clear()
        self.version = Version(self._source, version.total, version.validator)
        write_json(self._note, asdict(self.version))

    def append(self, data: bytes) -> None:
        """Write behind what is there. Raises StoreError when the disk is full."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._file, view, self.size)
                self._md5.update(view[:written])
                self._sha256.update(view[:written])
                self.size += written
                view = view[written:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StoreError(
                f"{self.path.parent}: no room for {self.path.name} ({error.strerror}) after "
                f"{self.size / 1e6:.0f} MB; free space and run the same command again, it continues there"
            ) from error

    def complete(self) -> bool:
        """Whether every byte is there, as far as the server has said how many there are."""
        return self.version.total is not None and self.size == self.version.total

    @property
    def md5(self) -> str:
        """Of what is there, in hex."""
        return self._md5.hexdigest()

    @property
    def sha256(self) -> str:
        """Of what is there, in hex."""
        return self._sha256.hexdigest()

    def finish(self, path: Path) -> None:
        """Give the verified file its name."""
        os.fsync(self._file)
        self.path.replace(path)
        self._note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # of a file system whose folders cannot be synced
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _clear(self) -> None:
        self.size = 0
        self._md5, self._sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()

    def _noted(self) -> Version:
        try:
            return Version(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Version()

    def _digest_what_is_there(self) -> None:
        while data := os.pread(self._file, 1 << 20, self.size):
            self._md5.update(data)
            self._sha256.update(data)
            self.size += len(data)
