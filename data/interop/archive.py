"""Files inside archives: `shard-000.tar::case7/image.nii.gz` is a path like any other to layouts and readers.

An address is the archive's path, `::` and the member's own name; it nests (`a.tar::b.npz::image.npy`). Tars
(compressed or not), zips and npz files, LitData chunks and arrays of stacked images (stacked.py) are such.
Nothing is ever extracted under a member's name: absolute names and `../` are only keys of a table. A
compressed tar, which cannot be read at random, is unpacked once a process into a temporary file without a
name.

What an archive says of itself is not believed: a member that would end behind the end of its archive is not
listed, and a listing that breaks off keeps what came before and says so in `fault`.

A listing costs about 20 us a member and is kept for the archives used last; reading is one `pread`.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from ..errors import ReadError
from .stacked import Stack, Stored, of_zip_member

SEPARATOR = "::"
MOST_BYTES = 1 << 34  # of one member; more is a mistake or an attack
KEPT = 8  # archives whose listing stays in memory
SPARE = 256 << 20  # bytes that unpacking leaves free on the temporary disk
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_PACKED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_opened: OrderedDict[tuple[str, int, int], Archive] = OrderedDict()


class Archive(Protocol):
    """A file that holds members."""

    fault: str | None  # why the listing is not complete

    def names(self) -> list[str]:
        """Names of the members, in stored order."""
        ...

    def size(self, name: str) -> int:
        """Stored bytes of a member. Raises FileNotFoundError."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes of a member. Raises FileNotFoundError, ReadError."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A member as a seekable file. Raises FileNotFoundError, ReadError."""
        ...


def join(archive: Path, name: str) -> Path:
    """Address of the member `name`."""
    return Path(f"{archive}{SEPARATOR}{name}")


def plain(name: str) -> str:
    """The member's name as it survives in a path: `a//b/./c` is `a/b/c`."""
    return str(PurePosixPath(f"{SEPARATOR}{name}"))[len(SEPARATOR) :]


def split(path: Path) -> tuple[Path, list[str]]:
    """(file on disk, names of the members on the way); a plain file has none, even with `::` in its name."""
    parts = str(path).split(SEPARATOR)
    if len(parts) == 1 or _is_file(path):
        return path, []
    outers = (Path(SEPARATOR.join(parts[:count])) for count in range(1, len(parts)))
    for count, outer in enumerate(outers, 1):  # folders may have `::` in their names too
        if _is_file(outer):
            return outer, parts[count:]
    return Path(parts[0]), parts[1:]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a member's name may be longer than a file's can be
        return False


def exists(path: Path) -> bool:
    """Whether the file on disk that holds `path`, or is it, is there."""
    return split(path)[0].exists()


def stat(path: Path) -> tuple[int, int]:
    """(bytes, modification time in ns) of a file or a member. Raises OSError when there is none."""
    file, names = split(path)
    status = file.stat()
    if not names:
        return status.st_size, status.st_mtime_ns
    try:
        return _inner(opened(file), names[:-1]).size(names[-1]), status.st_mtime_ns
    except ReadError as error:
        raise FileNotFoundError(errno.ENOENT, str(error), str(path)) from error


def read(path: Path) -> bytes:
    """All bytes of a file or a member. Raises OSError when there is none, ReadError when it is damaged."""
    file, names = split(path)
    return _inner(opened(file), names[:-1]).read(names[-1]) if names else file.read_bytes()


def opened(path: Path) -> Archive:
    """The archive at `path`, listed; the last few stay open.

    Raises:
        ReadError: not an archive.
        OSError: missing, or the temporary disk is full.
    """
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key in _opened:
        _opened.move_to_end(key)
        return _opened[key]
    found = _open(path)
    _opened[key] = found
    while len(_opened) > KEPT:
        _opened.popitem(last=False)
    return found


def _open(path: Path) -> Archive:
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise ReadError(f"{path.name}: 0 bytes, expected an archive; copy or download it again")
    if path.suffix == ".bin" and (path.parent / "index.json").is_file():
        from .litdata import Chunk

        return Chunk(path)
    if head[:2] == b"PK":
        return Zip(path.open("rb"), path.name)
    if head.startswith(b"\x93NUMPY"):
        stream = path.open("rb")
        return Stack(Stored(stream, 0, stream.seek(0, os.SEEK_END), path.name), path.name)
    for magic, opener in _PACKED.items():
        if head.startswith(magic):
            return Tar(unpacked(path, opener), path.name)
    return Tar(path.open("rb"), path.name)


def _inner(archive: Archive, names: list[str]) -> Archive:
    for name in names:
        if isinstance(archive, Zip) and name.endswith(".npy"):
            archive = archive.stack(name)
        else:
            archive = Zip(archive.open(name), name.rpartition("/")[2])
    return archive


def unpacked(path: Path, opener: Callable[[Path], Any]) -> IO[bytes]:
    """A temporary file with what `opener` reads from `path`; gone with the process.

    Raises:
        ReadError: damaged. OSError: the temporary disk would be full.
    """
    target = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the archive
    try:
        with opener(path) as source:
            while block := source.read1(1 << 20):  # read() would drop what comes before damage
                if shutil.disk_usage(tempfile.gettempdir()).free < SPARE + len(block):
                    raise OSError(
                        errno.ENOSPC,
                        f"{path.name} does not fit unpacked into {tempfile.gettempdir()}; set TMPDIR, "
                        "or unpack it yourself",
                    )
                target.write(block)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        if not target.tell():
            raise ReadError(f"{path.name}: damaged ({error}); copy or download it again") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ReadError(f"{path.name}: damaged ({error}); copy or download it again") from error
    target.flush()
    return target


class Tar:
    """A plain tar; regular files only, the first of equal names."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self._places: dict[str, tuple[int, int]] = {}
        self.repeated: list[str] = []
        self.fault = self._list()

    def names(self) -> list[str]:
        """Names of the members, in stored order."""
        return list(self._places)

    def size(self, name: str) -> int:
        """Bytes of a member. Raises FileNotFoundError."""
        return self._place(name)[1]

    def read(self, name: str) -> bytes:
        """All bytes of a member. Raises FileNotFoundError; ReadError when it is absurdly large."""
        with self.open(name) as stream:
            return stream.read()

    def open(self, name: str) -> IO[bytes]:
        """A member as a seekable file. Raises as `read`."""
        offset, size = self._place(name)
        if size > MOST_BYTES:
            raise ReadError(f"{name}: {size:,} bytes, expected at most {MOST_BYTES:,}; split it")
        return io.BufferedReader(_Window(self._file, offset, size))

    def _place(self, name: str) -> tuple[int, int]:
        try:
            return self._places[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, f"no member {name!r} in {self._name}") from None

    def _list(self) -> str | None:
        end = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        last = -1
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else every header ever read is kept
                    if info.size < 0 or info.offset_data <= last:
                        return f"damaged header at byte {info.offset}"
                    last = info.offset_data
                    if not info.isreg() or info.issparse():
                        continue
                    if info.offset_data + info.size > end:
                        return (
                            f"cut short at byte {end}: {info.size:,} bytes are declared at {info.offset_data}"
                        )
                    name = plain(info.name)
                    if name in self._places:
                        self.repeated.append(name)
                    else:
                        self._places[name] = (info.offset_data, info.size)
                return self._ending(tar.offset, end)
        except Exception as error:  # headers are untrusted: tarfile raises many kinds
            line = " ".join(str(error).split())[:80]
            return f"damaged or cut short after {len(self._places)} members ({line})"

    def _ending(self, offset: int, end: int) -> str | None:
        """Why what follows the last member is not the end of a tar: two blocks of zeros."""
        block = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, offset)
        if offset > end or 0 < len(block) < tarfile.BLOCKSIZE or any(block):
            return f"damaged or cut short at byte {min(offset, end)}"
        if not block:  # as a download that broke off between two members looks
            return f"has no end after {len(self._places)} members: cut short, or never finished by its writer"
        return None


class Zip:
    """A zip or npz. An npz names its arrays `NAME.npy`."""

    fault: str | None = None

    def __init__(self, file: IO[bytes], name: str) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ReadError(
                f"{name}: truncated or corrupt zip ({error}); copy or download it again"
            ) from error
        self._name = name
        self._stacks: dict[str, Stack] = {}
        self._infos = {plain(info.filename): info for info in self._zip.infolist() if not info.is_dir()}

    def names(self) -> list[str]:
        """Names of the members, in stored order."""
        return list(self._infos)

    def size(self, name: str) -> int:
        """Unpacked bytes of a member. Raises FileNotFoundError."""
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """All bytes of a member, its checksum verified. Raises FileNotFoundError, ReadError."""
        info = self._info(name)
        if info.file_size > MOST_BYTES:
            raise ReadError(f"{name}: {info.file_size:,} bytes declared, expected at most {MOST_BYTES:,}")
        try:
            return self._zip.read(info)
        except MemoryError:
            raise
        except Exception as error:  # zlib.error, BadZipFile, a password, an unknown method
            raise ReadError(f"{name}: truncated or corrupt in its zip ({error}); copy it again") from error

    def open(self, name: str) -> IO[bytes]:
        """A member as a file in memory. Raises as `read`."""
        return io.BytesIO(self.read(name))

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a member, not verified. Raises FileNotFoundError and zipfile's errors."""
        with self._zip.open(self._info(name)) as stream:
            return stream.read(count)

    def stack(self, name: str) -> Stack:
        """The rows of a member that is an array. Raises FileNotFoundError, ReadError."""
        if name not in self._stacks:
            self._stacks[name] = of_zip_member(self._zip, self._info(name))
        return self._stacks[name]

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._infos[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, f"no member {name!r} in {self._name}") from None


class _Window(io.RawIOBase):
    """Bytes [offset, offset + size) of a file, read by position: forks may share the file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._file.fileno(), count, self._offset + self._at) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
