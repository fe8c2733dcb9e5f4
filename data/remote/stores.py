"""A folder behind a URL (s3://, https://, gs:// ...), read through fsspec in exact ranges, with patience.

Every request has a time limit and is repeated after cuts, stalls and 5xx, with growing waits; what cannot get
better (404, 403, a missing package) is said at once. The file system is made in each process on first use,
since the event loop behind it does not survive a fork. A server without Range support is read in one go, and
after a cut from the start again. URLs may hold credentials: messages name them without user, password and
query, and carry no cause whose text could hold them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ..errors import ConfigError, StoreError

log = logging.getLogger(__name__)

PIECE = 8 << 20  # bytes of one request: 60 s for it still allow 140 kB/s
JOIN_GAP = (
    512 << 10
)  # ranges closer than this are one request: a round trip costs more than the bytes between
NO_RANGES = "the server has no Range support: set data.access=cache"
_SECRET_USER = re.compile(r"(?<=://)[^/@\s'\"]*@")
_SECRET_QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\")]*")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: `attempts` requests of at most `timeout` seconds, `wait` seconds after the first
    failure, twice as many after each further one, at most `longest_wait`."""

    attempts: int = 6
    timeout: float = 60.0
    wait: float = 0.5
    longest_wait: float = 30.0


class NoRanges(StoreError):
    """The server answers a request for a range with the whole file."""


def is_url(path: Any) -> bool:
    """Whether this names a folder that fsspec has to open, and not a path of this machine."""
    text = str(path)
    return "://" in text and not text.startswith("file://")


def public(text: Any) -> str:
    """The text with user, password and query cut out of all URLs in it: fit for logs, errors, snapshots."""
    return _SECRET_QUERY.sub(r"\1", _SECRET_USER.sub("", str(text)))


class Remote:
    """A folder of files behind a URL. May be pickled and shared over fork; threads may share it, too.

    Args:
        url: as fsspec understands it; a query (signature) is put behind each file name.

    Raises:
        ConfigError: no package is installed for this kind of URL.
    """

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        self.url, self.patience = url, patience or Patience()
        self.name = public(url).rstrip("/")
        self._made: tuple[int, Any] | None = None
        self._ranges = True  # until the server shows otherwise
        protocol = url.split("::")[0].split("://")[0]
        try:
            import fsspec

            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            mend = "install medloom[remote] (s3, https), or the fsspec package of this store"
            raise ConfigError(f"{self.name}: cannot open {protocol}:// ({error}); {mend}") from None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_made": None}

    def where(self, file: str) -> str:
        """URL of a file of the folder, without credentials."""
        return f"{self.name}/{file}"

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from byte `offset` on.

        Raises:
            StoreError: not there, not allowed, shorter than that, or unreachable for longer than `patience`.
            NoRanges: the server sends whole files only.
        """
        return self._patiently(file, lambda: self._run(self._range(file, (offset, size))))

    def read_ranges(self, file: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Bytes of these ranges (offset, size), in this order; neighbours are joined, requests run together.

        Raises:
            StoreError, NoRanges: as `read`.
        """
        order = sorted(range(len(ranges)), key=lambda i: ranges[i])
        runs: list[list[int]] = []  # [first byte, behind the last]
        place = [0] * len(ranges)
        for i in order:
            offset, size = ranges[i]
            if runs and offset - runs[-1][1] <= JOIN_GAP and offset + size - runs[-1][0] <= PIECE:
                runs[-1][1] = max(runs[-1][1], offset + size)
            else:
                runs.append([offset, offset + size])
            place[i] = len(runs) - 1
        found = self._together(file, [(first, end - first) for first, end in runs])
        return [found[p][o - runs[p][0] :][:n] for p, (o, n) in zip(place, ranges, strict=True)]

    def read_all(self, file: str) -> bytes:
        """A small file as a whole. Raises StoreError as `read`."""
        return self._patiently(file, lambda: self._run(self._range(file, None)))

    def pieces(self, file: str, size: int, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start` up to `size`, in order; a cut is resumed where it happened.

        Raises:
            StoreError: as `read`.
        """
        at = start
        try:
            while self._ranges and at < size:
                data = self.read(file, at, min(PIECE, size - at))
                at += len(data)
                yield data
        except NoRanges:
            self._ranges = False
            log.info("%s: the server has no Range support; files are read in one go", self.name)
        failures = 0
        while at < size:
            before = at
            try:
                for data in self._whole(file, skip=at):
                    at += len(data)
                    yield data
                if at < size:
                    raise OSError(f"ends at byte {at}, the manifest says {size}")
            except Exception as error:
                failures = 0 if at > before else failures + 1
                self._again(file, error, failures)

    def _together(self, file: str, runs: list[tuple[int, int]]) -> list[memoryview]:
        """All at once; what fails is asked for again, one by one."""

        async def gather() -> list[Any]:
            return await asyncio.gather(*(self._range(file, run) for run in runs), return_exceptions=True)

        found: list[Any] = [None] * len(runs)
        if len(runs) > 1 and self._system().async_impl:
            found = self._run(gather(), times=2)
        return [
            memoryview(data if isinstance(data, bytes) else self.read(file, *run))
            for data, run in zip(found, runs, strict=True)
        ]

    def _system(self) -> Any:
        """The fsspec file system of this process."""
        if self._made is None or self._made[0] != os.getpid():
            import fsspec.config
            import fsspec.core

            options: dict[str, Any] = {}
            protocol = self.url.split("://")[0]
            if protocol in ("http", "https"):
                import aiohttp

                # aiohttp would end every request after five minutes, however well it goes on.
                limit = aiohttp.ClientTimeout(total=None, connect=30, sock_read=self.patience.timeout)
                configured = fsspec.config.conf.get(protocol, {}).get("client_kwargs", {})
                options["client_kwargs"] = {"timeout": limit, **configured}
                logging.getLogger("fsspec.http").addFilter(_scrub)
            self._made = os.getpid(), fsspec.core.url_to_fs(self.url, **options)[0]
        return self._made[1]

    def _path(self, file: str) -> str:
        if "::" in self.url or not urlsplit(self.url).query:
            return f"{self.url.rstrip('/')}/{file}"
        scheme, host, path, query, _ = urlsplit(self.url)
        return urlunsplit((scheme, host, f"{path.rstrip('/')}/{file}", query, ""))

    async def _range(self, file: str, span: tuple[int, int] | None) -> bytes:
        """One request: the span (offset, size), or the whole file. Nothing is repeated here."""
        system, path = self._system(), self._path(file)
        start, end = (None, None) if span is None else (span[0], span[0] + span[1])
        if "http" in _protocols(system):
            data = await _http_range(system, path, span)
        elif system.async_impl:
            data = await system._cat_file(path, start=start, end=end)
        else:
            data = await asyncio.to_thread(system.cat_file, path, start=start, end=end)
        if span is not None and len(data) > span[1]:
            raise NoRanges(f"{self.where(file)}: {NO_RANGES}")
        if span is not None and len(data) < span[1]:
            raise OSError(f"{len(data)} of {span[1]} bytes came from byte {span[0]} on")
        return data

    def _run(self, coroutine: Any, times: int = 1) -> Any:
        """Run in the file system's event loop, `times` the time limit."""
        from fsspec.asyn import get_loop, sync

        async def limited() -> Any:
            return await asyncio.wait_for(coroutine, self.patience.timeout * times)

        return sync(getattr(self._system(), "loop", None) or get_loop(), limited)

    def _patiently(self, file: str, call: Callable[[], Any]) -> Any:
        for attempt in range(self.patience.attempts):
            try:
                return call()
            except Exception as error:
                self._again(file, error, attempt)
        raise AssertionError("the last attempt raises")

    def _again(self, file: str, error: Exception, attempt: int) -> None:
        """Wait before the next attempt; raise what ends the attempts."""
        where, reason = self.where(file), _reason(error)
        if isinstance(error, StoreError):
            raise error
        if (mend := _final(error)) is not None:
            raise StoreError(f"{where}: {reason}; {mend}") from None
        if attempt + 1 >= self.patience.attempts:
            raise StoreError(
                f"{where}: {reason}, {attempt + 1} times in a row; the store or the network is down or slow: "
                "start again when it is back, what was fetched is kept"
            ) from None
        wait = min(self.patience.longest_wait, self.patience.wait * 2**attempt)
        wait *= 0.5 + (os.getpid() * 0.618 % 1) / 2  # workers that failed together do not come back together
        log.warning("%s: %s; again in %.1f s", where, reason, wait)
        time.sleep(wait)

    def _whole(self, file: str, skip: int) -> Iterator[bytes]:
        """The file from byte `skip` on, through one request that starts at byte 0."""
        at = 0
        with self._system().open(self._path(file), "rb", block_size=0) as stream:
            while data := stream.read(1 << 20):
                if at + len(data) > skip:
                    yield data[max(0, skip - at) :]
                at += len(data)


async def _http_range(system: Any, url: str, span: tuple[int, int] | None) -> bytes:
    """As the file system's own `_cat_file`, but looks at the answer before a gigabyte of it is read."""
    options = dict(system.kwargs)
    headers = {"Accept-Encoding": "identity", **options.pop("headers", {})}
    if span is not None:
        headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
    session = await system.set_session()
    async with session.get(system.encode_url(url), headers=headers, **options) as answer:
        system._raise_not_found_for_status(answer, url)
        if span and answer.status != 206 and (span[0] or answer.content_length != span[1]):
            raise NoRanges(f"{public(url)}: {NO_RANGES}")
        return await answer.read()


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _reason(error: Exception) -> str:
    """What went wrong, in a few words without credentials."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "is not there (404)"
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is refused ({status or 403})"
    if isinstance(status, int) and status:
        return f"the server answers {status}"
    text = " ".join(public(error).split())[:200]
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    return f"{type(error).__name__}{': ' if text else ''}{text}"


def _final(error: Exception) -> str | None:
    """The mend of an error that another attempt would meet again; None for one worth another attempt."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "expected a folder that `medloom shards build` wrote: check the URL, upload the whole folder"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return "check the credentials (docs/remote.md says where they are taken from)"
    if status == 416:
        return "it is shorter than the manifest says: upload it again"
    if isinstance(error, ImportError):
        return "install medloom[remote], or the fsspec package of this store"
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return "check the URL"
    return None


def _scrub(record: logging.LogRecord) -> bool:
    """fsspec writes URLs as they are into its debug log."""
    record.msg, record.args = public(record.getMessage()), ()
    return True
