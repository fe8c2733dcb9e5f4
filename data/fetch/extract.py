"""Archives unpacked as if they came from an enemy: tar (plain, gz, bz2, xz), zip, and single gz files.

What an archive may do is written down, all else refuses the whole archive, before or while unpacking: names
stay inside the folder, members are files and folders (a link becomes a copy of the file it names, which must
lie inside), sizes stay below what the disk holds and below `MOST_RATIO` times the archive. Nothing is ever
written through a link, since none is made; modes and owners are not taken over. The folder appears under its
name when it is whole, with `MARKER` inside: a killed unpacking leaves only a temporary, removed by the next.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import posixpath
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..atomic import TEMPORARY, write_json
from ..errors import ReadError, StoreError

Progress = Callable[[int, int, str], None]

MARKER = ".medloom-fetch.json"  # in a finished folder: what it was unpacked from, and how much it is
MOST_RATIO = 200  # unpacked bytes by archive bytes; volumes of zeros reach 1000, whole datasets below 20
FLOOR = 1 << 30  # bytes that any archive may unpack to, whatever the ratio
MOST_MEMBERS = 5_000_000
SPARE = 256 << 20  # bytes of the disk that stay free
_BLOCK = 1 << 20
_LONGEST_HEADER = 1 << 20  # bytes of an extended tar header, which is read into memory
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, gzip.BadGzipFile, zlib.error, struct.error,
    EOFError, ValueError, RuntimeError, OverflowError, LookupError,
)  # fmt: skip
_FOREIGN = (b"Rar!", b"7z\xbc\xaf")  # no well-kept reader of these is free of programs to install


@dataclass(slots=True)
class Contents:
    """What a finished folder holds."""

    files: int = 0
    bytes: int = 0

    def lie_in(self, folder: Path) -> bool:
        """Whether the folder still holds so much; more is no fault, other programs leave caches."""
        found = Contents()
        for path in _files(folder):
            found.files, found.bytes = found.files + 1, found.bytes + path.lstat().st_size
        return found.files >= self.files and found.bytes >= self.bytes


def kind_of(path: Path) -> str | None:
    """`tar`, `zip`, `gz` or `foreign`, by content; None: data to be left as it is (npz, nii.gz ...)."""
    if path.name.lower().endswith((".npz", ".nii.gz", ".svgz")):
        return None
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head.startswith(_FOREIGN):
        return "foreign"
    if head[257:262] == b"ustar" or (path.suffix == ".tar" and tarfile.is_tarfile(path)):
        return "tar"
    if any(head.startswith(magic) for magic in _PACKED):
        return "tar" if _holds_tar(path) else "gz"
    return None


def extract(
    archive: Path, folder: Path, source: Mapping[str, object], progress: Progress | None = None
) -> Contents:
    """Unpack `archive` to the new folder `folder`.

    A single folder at the top of the archive is stepped into: `folder` is that folder. AppleDouble files
    and `__MACOSX` are left out.

    Args:
        source: what the marker says beside the contents.

    Raises:
        ReadError: not an archive, damaged, encrypted, or it does what none may do; nothing is left.
        StoreError: no room on the disk; nothing is left.
    """
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        kind = kind_of(archive)
        if kind not in _WAYS:
            raise ReadError(
                f"{archive.name}: not a tar, zip or gz; unpack it yourself, then give --from FOLDER"
            )
        job = _Job(archive, temporary, progress)
        _WAYS[kind](job)
        job.copy_links()
        _unzip_inner(job)
        top = list(temporary.iterdir())
        root = top[0] if len(top) == 1 and top[0].is_dir() else temporary
        if not job.contents.files:
            raise ReadError(f"{archive.name}: holds no file")
        os.sync()  # once for all: an fsync for each of 100,000 files would take longer than unpacking them
        marker = {**source, "files": job.contents.files, "bytes": job.contents.bytes}
        write_json(root / MARKER, marker)
        root.rename(folder)
        return job.contents
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(slots=True)
class _Job:
    """One archive on its way to a folder, with its budget."""

    archive: Path
    root: Path
    progress: Progress | None
    contents: Contents = field(default_factory=Contents)
    links: list[tuple[str, str]] = field(default_factory=list)  # (name, the file it stands for)
    budget: int = 0
    room: int = 0
    members: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.budget = max(FLOOR, MOST_RATIO * self.archive.stat().st_size)
        self.room = shutil.disk_usage(self.root).free - SPARE

    def refuse(self, why: str) -> ReadError:
        return ReadError(f"{self.archive.name}: refused, {why}; do not use it, and tell who offers it")

    def reserve(self, size: int) -> None:
        """Raise when so many bytes in all are more than the archive may hold, or than the disk does."""
        if size > self.budget:
            raise self.refuse(
                f"it unpacks to {size / 1e9:.1f} GB or more, over {MOST_RATIO} times its own size (a bomb?)"
            )
        if size > self.room:
            raise StoreError(
                f"{self.root.parent}: no room to unpack {self.archive.name}: the disk lacks "
                f"{(size - self.room) / 1e9:.1f} GB; free them and run the same command again"
            )

    def inside(self, name: str) -> str | None:
        """The member's name below the root; None: to be left out. Raises ReadError for one outside."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            raise self.refuse(f"it has more than {MOST_MEMBERS:,} members")
        clean = posixpath.normpath(name.replace("\\", "/"))
        parts = clean.split("/")
        if clean.startswith("/") or ".." in parts or "\0" in name or parts[0].endswith(":"):
            raise self.refuse(f"member {name[:80]!r} leads out of its folder")
        if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
            raise self.refuse(f"member {name[:40]!r}... has a name that no file can have")
        if parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] == MARKER or clean == ".":
            return None
        return clean

    def write(self, name: str, source: IO[bytes]) -> None:
        """Write a member; a second one of the same name replaces the first, as in tar."""
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                while data := source.read(_BLOCK):
                    self.reserve(self.contents.bytes + len(data))
                    target.write(data)
                    self.contents.bytes += len(data)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise self.refuse(f"member {name[:80]!r} is a file and a folder at once") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise self.refuse(f"member {name[:40]!r}... lies too deep") from error
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreError(
                    f"{self.root.parent}: no room to unpack {self.archive.name} ({error.strerror}); free "
                    "space and run the same command again"
                ) from error
            raise
        size = path.stat().st_size
        if name in self.sizes:
            self.contents.bytes -= self.sizes[name]
        else:
            self.contents.files += 1
        self.sizes[name] = size

    def copy_links(self) -> None:
        """Links become copies, in their order: a link may name an earlier one."""
        for name, target in self.links:
            path = self.root / target
            if target not in self.sizes:
                raise self.refuse(f"link {name[:80]!r} names {target[:80]!r}, which it does not hold")
            with path.open("rb") as source:
                self.write(name, source)

    def show(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done // 10**6, total // 10**6, f"unpack {self.archive.name} (MB)")


def _untar(job: _Job) -> None:
    total = job.archive.stat().st_size
    with job.archive.open("rb") as raw, _damage(job), contextlib.ExitStack() as stack:
        packed = _packed(raw) is not None
        stream = stack.enter_context(_opened(raw)) if packed else raw
        tar = stack.enter_context(
            tarfile.open(fileobj=stream, mode="r|" if packed else "r:", bufsize=_BLOCK, tarinfo=_Header)
        )
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # else every header ever read is kept
            name = job.inside(info.name)
            if name is None or info.isdir():
                continue
            if info.issym() or info.islnk():
                job.links.append((name, _target(job, name, info)))
            elif not info.isreg() or info.issparse():
                raise job.refuse(f"member {info.name[:80]!r} is a device, a pipe or a sparse file")
            else:
                job.reserve(job.contents.bytes + info.size)
                source = tar.extractfile(info)
                assert source is not None
                job.write(name, source)
            job.show(raw.tell(), total)
        behind = job.contents.bytes
        while data := stream.read(_BLOCK):  # up to its checksum, which stands at the end
            behind += len(data)
            job.reserve(behind)


class _Header(tarfile.TarInfo):
    """A header of a tar; a broken one is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end
            raise tarfile.ReadError(str(error) if buf else "cut short") from error
        if info.size < 0 or (info.type in _EXTENDED and info.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def _target(job: _Job, name: str, info: tarfile.TarInfo) -> str:
    """The file inside that a link stands for. A hard link counts from the top, a symbolic one from itself."""
    base = posixpath.dirname(name) if info.issym() else ""
    if info.linkname.startswith("/"):
        raise job.refuse(f"link {name[:80]!r} leads out of its folder")
    target = posixpath.normpath(posixpath.join(base, info.linkname))
    if target.split("/")[0] == "..":
        raise job.refuse(f"link {name[:80]!r} leads out of its folder")
    return target


def _unzip(job: _Job) -> None:
    with _damage(job), zipfile.ZipFile(job.archive) as archive:
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        job.reserve(total)  # as declared: what a member really unpacks to is cut there and then refused
        for info in infos:
            name = job.inside(info.filename)
            mode = info.external_attr >> 16
            if name is None or info.is_dir():
                continue
            if info.flag_bits & 1:
                raise ReadError(
                    f"{job.archive.name}: is encrypted; unpack it yourself, then give --from FOLDER"
                )
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise job.refuse(f"member {info.filename[:80]!r} is a link, a device or a pipe")
            with archive.open(info) as source:
                job.write(name, source)
            job.show(job.contents.bytes, total)


def _gunzip(job: _Job) -> None:
    name = job.archive.name.rpartition(".")[0] or "data"
    with job.archive.open("rb") as raw, _damage(job), _opened(raw) as source:
        job.write(name, source)


def _unzip_inner(job: _Job) -> None:
    """Zips inside become folders beside them: several hosts zip the zips of their users. One level only."""
    for name in [name for name in job.sizes if name.lower().endswith(".zip")]:
        path = job.root / name
        if kind_of(path) != "zip":
            continue
        folder = path.with_name(f"{path.stem}{TEMPORARY}")
        folder.mkdir()
        inner = _Job(path, folder, job.progress)
        inner.budget = min(inner.budget, job.budget - job.contents.bytes)
        _unzip(inner)
        job.contents.files += inner.contents.files - 1
        job.contents.bytes += inner.contents.bytes - job.sizes[name]
        path.unlink()
        target = path.with_suffix("")
        folder.rename(path if target.exists() else target)


_WAYS: dict[str | None, Callable[[_Job], None]] = {"tar": _untar, "zip": _unzip, "gz": _gunzip}


def _opened(raw: IO[bytes]) -> Any:
    """The unpacked stream of a packed file; it verifies its checksum at the end."""
    opener = _packed(raw)
    assert opener is not None
    return opener(raw)


def _packed(raw: IO[bytes]) -> Callable[[IO[bytes]], Any] | None:
    head = raw.read(6)
    raw.seek(0)
    return next((opener for magic, opener in _PACKED.items() if head.startswith(magic)), None)


def _holds_tar(path: Path) -> bool:
    """Whether the packed file holds a tar."""
    try:
        with path.open("rb") as raw, _opened(raw) as source:
            return source.read(512)[257:262] == b"ustar"
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return False


@contextlib.contextmanager
def _damage(job: _Job) -> Iterator[None]:
    """What the libraries raise of damaged archives, as one ReadError."""
    try:
        yield
    except _DAMAGE as error:
        raise _damaged(job, error) from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # bz2 has none; a zip's wrong offset is not valid
            raise
        raise _damaged(job, error) from error


def _damaged(job: _Job, error: Exception) -> ReadError:
    text = " ".join(str(error).split())[:100]
    return ReadError(f"{job.archive.name}: damaged, or of a kind not known here ({text}); download it again")


def _files(folder: Path) -> Iterator[Path]:
    """All files below, but for the marker."""
    for base, _, names in os.walk(folder):
        for name in names:
            if name != MARKER:
                yield Path(base, name)
