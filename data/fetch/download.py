"""One file over HTTP(S), whole and verified or not at all: resumed, repeated, checked by digest.

The standard library's client: proxies from the environment (HTTPS_PROXY, NO_PROXY), certificates from the
system or SSL_CERT_FILE, always verified. Redirects are followed (Zenodo and S3 send some), never from https
to anything else. What another attempt would meet again (404, 403, a certificate) is said at once; cuts,
stalls, 429 and 5xx are repeated with growing waits. One connection: the price of resuming at an exact byte,
and what public hosts ask for.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import StoreError
from ..remote.stores import Patience, public
from .partial import Partial, Version

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

BLOCK = 1 << 20
SPARE = 256 << 20  # bytes of the disk that stay free
_LONGEST_RETRY_AFTER = 120.0  # seconds; a server that asks for more is asked again earlier
_PAGES = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True)
class Digests:
    """What a downloaded file is."""

    bytes: int
    md5: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What it should be; None: not known."""

    md5: str | None = None
    sha256: str | None = None
    says: str = "the catalogue"  # who expects it, in words
    mend: str = "look at its page, or tell the catalogue with `medloom catalog report-error`"

    def fault(self, found: Digests) -> str | None:
        """Why `found` is another file, or None."""
        for kind in ("md5", "sha256"):
            wanted, got = getattr(self, kind), getattr(found, kind)
            if wanted and got != wanted.lower():
                return f"{kind.upper()} {got}, {self.says} says {wanted.lower()}"
        return None


def download(
    url: str,
    path: Path,
    expected: Expected | None = None,
    *,
    room: float = 1.0,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Digests:
    """Fetch `url` to `path`, continuing what an earlier call left in `path.part`.

    Args:
        expected: digests; a wrong file is downloaded once more from its beginning, then refused.
        room: bytes of disk that a byte of the file needs in the end (2: it will be unpacked beside itself).
        progress: called with megabytes (kilobytes of a small file).

    Raises:
        StoreError: not there, refused, unreachable for longer than `patience`, no room, wrong digest, or a
            web page instead of a file. What was fetched is kept for the next call, unless it is wrong.
    """
    expected, patience = expected or Expected(), patience or Patience()
    for attempt in range(2):
        with Partial(path.with_name(f"{path.name}.part"), url) as partial:
            _complete(url, partial, room, patience, progress)
            found = Digests(partial.size, partial.md5, partial.sha256)
            fault = expected.fault(found) or _page_fault(partial.path)
            if fault is None:
                partial.finish(path)
                return found
            partial.discard()
            if attempt:
                raise StoreError(
                    f"{public(url)}: {fault}, twice; the host has another or a damaged file: {expected.mend}"
                )
            log.warning("%s: %s; downloading it again", public(url), fault)
    raise AssertionError("the second attempt raises")


def _complete(url: str, partial: Partial, room: float, patience: Patience, progress: Progress | None) -> None:
    """Requests until every byte is there."""
    failures = 0
    while not partial.complete():
        before = partial.size
        try:
            _request(url, partial, room, patience, progress)
            return
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                partial.restart(Version())  # the file became shorter than what is here of it
            failures = 0 if partial.size > before else failures + 1
            # Without the restarts, a server that always begins again and is cut would be asked for ever.
            _again(url, error, max(failures, partial.restarts), patience)


def _request(url: str, partial: Partial, room: float, patience: Patience, progress: Progress | None) -> None:
    """One request, for what is missing. Raises what the network raises; StoreError for what is final."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "medloom (data fetch)"}
    if partial.size and partial.version.resumable():
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.version.validator}
    with _opened(url, headers, patience.timeout) as answer:
        if answer.status == 206:
            _check_range(answer.headers, partial)
        else:
            if partial.size:
                log.info("%s: cannot be continued at the host; from the beginning", public(url))
            partial.restart(_version(answer.headers))
        total = partial.version.total
        _check_room(partial, total, room)
        watch = _Watch(partial.path.stem, total, progress)
        while data := answer.read1(BLOCK):
            partial.append(data)
            watch.show(partial.size)
    if total is not None and partial.size != total:
        if partial.size > total:
            partial.restart(Version())
        raise OSError(f"ended at byte {partial.size} of {total}")
    if total is None:
        watch.show(partial.size)


def _opened(url: str, headers: dict[str, str], timeout: float) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        raise StoreError(f"{public(url)}: not an http(s) address; visit the dataset's page")
    if urlsplit(url).scheme == "http":
        log.warning("%s: plain http, what comes may have been changed on the way", public(url))
    clean = quote(url, safe=":/?#[]@!$&'()*+,;=%~")
    return _opener().open(urllib.request.Request(clean, headers=headers), timeout=timeout)


def _opener() -> urllib.request.OpenerDirector:
    """Reads the proxies of the environment each time it is made."""
    return urllib.request.build_opener(_Redirects())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not out of https, and not to ftp or files."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        target = urlsplit(newurl).scheme
        if target != "https" and target != urlsplit(req.full_url).scheme:
            raise StoreError(f"{public(req.full_url)}: redirects to {target}://, which is not safe; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _version(headers: Message) -> Version:
    length = headers.get("Content-Length", "")
    etag = headers.get("ETag", "")
    if not etag or etag.startswith("W/"):  # If-Range takes no weak ones
        etag = headers.get("Last-Modified", "")
    return Version(total=int(length) if length.isdigit() else None, validator=etag)


def _check_range(headers: Message, partial: Partial) -> None:
    """The rest begins where the file ends, and the whole is as long as it was."""
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    known = partial.version.total
    if (
        unit != "bytes"
        or first != str(partial.size)
        or (known is not None and total not in (str(known), "*"))
    ):
        partial.restart(Version())
        raise OSError("the host sent another part than was asked for")


def _check_room(partial: Partial, total: int | None, room: float) -> None:
    """Raise StoreError before a download that cannot fit."""
    if total is None:
        return
    need = round(total * room) - partial.size + SPARE
    free = shutil.disk_usage(partial.path.parent).free
    if need > free:
        unpacked = " and what is in it" if room > 1 else ""
        raise StoreError(
            f"{partial.path.parent}: no room: {partial.path.stem}{unpacked} takes about "
            f"{total * room / 1e9:.1f} GB, the disk lacks {(need - free) / 1e9:.1f} GB; free them, or take "
            "another disk with --to"
        )


def _page_fault(path: Path) -> str | None:
    """Why this is a web page (of a login, of a captcha), not data."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        return "an empty file"
    return "a web page instead of a file" if head.startswith(_PAGES) else None


def _again(url: str, error: Exception, failures: int, patience: Patience) -> None:
    """Wait before the next attempt; raise what ends the attempts."""
    reason, mend = _explain(error)
    if mend is not None:
        raise StoreError(f"{public(url)}: {reason}; {mend}") from None
    if failures >= patience.attempts:
        raise StoreError(
            f"{public(url)}: {reason}, {failures} times in a row; the host or the network is down or slow: "
            "run the same command again later, what was fetched is kept"
        ) from None
    wait = min(patience.longest_wait, patience.wait * 2 ** max(0, failures - 1))
    if isinstance(error, urllib.error.HTTPError):
        with contextlib.suppress(TypeError, ValueError):
            wait = max(wait, min(_LONGEST_RETRY_AFTER, float(error.headers.get("Retry-After", ""))))
        error.close()
    log.warning("%s: %s; again in %.1f s", public(url), reason, wait)
    time.sleep(wait)


def _explain(error: Exception) -> tuple[str, str | None]:
    """(what happened, without credentials; the mend where another attempt would meet it again)."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the host answers {error.code}", _final(error.code)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        mend = "check this machine's clock and certificates (SSL_CERT_FILE), or the proxy between"
        return f"its certificate cannot be verified ({cause.verify_message})", mend
    if isinstance(cause, http.client.InvalidURL):
        return "is not an address", "look at the dataset's page (`medloom catalog show ID`)"
    if isinstance(cause, TimeoutError):
        return "no answer in time", None
    text = " ".join(public(cause).split())[:160]
    return f"{type(cause).__name__}{': ' if text else ''}{text}", None


def _final(status: int) -> str | None:
    if status in (404, 410):
        return "the file is not there any more: look at the dataset's page (`medloom catalog show ID`)"
    if status in (401, 403):
        return (
            "the host wants an account or refuses this address: download it by hand, then give it with --from"
        )
    if 400 <= status < 500 and status not in (408, 416, 425, 429):
        return "look at the dataset's page (`medloom catalog show ID`)"
    return None


class _Watch:
    """Reports how much has come and the rate of this request, four times a second at most."""

    def __init__(self, name: str, total: int | None, progress: Progress | None) -> None:
        self._total, self._progress = total, progress
        self._unit, unit = (10**3, "kB") if total is not None and total < 10**7 else (10**6, "MB")
        self._what = f"fetch {name} ({unit})"
        self._started = self._shown = time.monotonic()
        self._first: int | None = None

    def show(self, size: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = size
        elif self._progress is not None and (now - self._shown > 0.25 or size == self._total):
            self._shown = now
            rate = (size - self._first) / max(now - self._started, 1e-3) / 1e6
            done, total = size // self._unit, (self._total or size) // self._unit
            self._progress(done, total, f"{self._what} | {rate:.1f} MB/s")
