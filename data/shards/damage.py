"""Say which members of a shard are damaged, by the checksums of its index.

The index holds hashes of the keys, not names. Names come from the tar headers, found by their magic anywhere
in the file, so that members are named even when their own header is gone or everything has moved. What no
checksum covers (headers, the zeros that fill up to 512 bytes) is compared with what the writer writes.
"""

from __future__ import annotations

import mmap
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from .format import KIND_IMAGE, KIND_JPEG, KIND_JSON, KIND_MASK, checksum
from .index import Index, MemberRow, key_hash, read_exactly

_MAGIC = b"ustar\x0000"
_MAGIC_AT = 257  # in a header
_UNNAMED = "member at byte"
_EXTENSIONS = {KIND_JSON: "json", KIND_JPEG: "jpg", KIND_IMAGE: "b2nd", KIND_MASK: "seg.b2nd"}


def damaged(tar: Path, index: Index) -> list[tuple[str, str]]:
    """(member, reason) of everything in `tar` that is not what `index` recorded, in the order of the tar.

    Reads the file once. Raises OSError when it cannot be read.
    """
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        names = Names(descriptor, index)
        found = list(_members(descriptor, index, names))
        # Headers and padding say something only when the members lie where they should.
        return found or list(_between(descriptor, index, names))
    finally:
        os.close(descriptor)


def inspect(descriptor: int, row: MemberRow, name: str) -> str:
    """What is wrong with one member (a row of `Index.members`); empty when nothing is."""
    size = row.size
    there = min(size, max(0, os.fstat(descriptor).st_size - row.offset))
    if there < size:
        return f"is cut short after {there} of {size} bytes"
    data = read_exactly(descriptor, size, row.offset)
    if checksum(data) != row.crc:
        return "fails its checksum"
    try:
        info = tarfile.TarInfo.frombuf(_header(descriptor, row), "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return "has a damaged tar header"
    if info.size != size:
        return "has another size in its tar header"
    return "" if info.name == name else f"has another name in its tar header ({info.name})"


class Names:
    """Names of the members of a tar, whatever has happened to it."""

    def __init__(self, descriptor: int, index: Index) -> None:
        self._index = index
        self._keys: dict[int, str] = {}
        size = os.fstat(descriptor).st_size
        if not size:
            return
        with mmap.mmap(descriptor, size, prot=mmap.PROT_READ) as data:
            at = data.find(_MAGIC)
            while at >= 0:
                start = at - _MAGIC_AT
                name = data[max(start, 0) : at].split(b"\0", 1)[0].decode("ascii", "replace")
                key = name.partition(".")[0]
                self._keys[key_hash(key)] = key
                at = data.find(_MAGIC, at + 1)

    def of(self, row: MemberRow) -> str:
        """Name of the member `row`, or where it lies when nothing in the file tells the key of its sample."""
        sample = row.sample
        key = self._keys.get(int(self._index.samples[sample]["key_hash"]))
        if key is None:
            return f"{_UNNAMED} {row.offset} (sample {sample})"
        level = f"l{row.level}." if row.level else ""
        return f"{key}.{level}{_EXTENSIONS[row.kind]}"


def canonical_header(name: str, size: int) -> bytes:
    """The tar header that `ShardWriter` puts in front of a member."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def mended(tar: Path, index: Index) -> Iterator[bytes]:
    """The tar with headers and padding as the writer writes them; whether that mends it, its SHA-256 tells.

    Ends early where the file does, or where nothing tells the name of a member.
    """
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        names, done = Names(descriptor, index), 0
        for row in map(index.member, range(len(index.members))):
            name, size, offset = names.of(row), row.size, row.offset
            if name.startswith(_UNNAMED) or offset + size > os.fstat(descriptor).st_size:
                return
            yield canonical_header(name, size)
            yield read_exactly(descriptor, size, offset)
            yield b"\0" * (-size % tarfile.BLOCKSIZE)
            done = offset + size + -size % tarfile.BLOCKSIZE
        yield b"\0" * (index.tar_bytes - done)
    finally:
        os.close(descriptor)


def _members(descriptor: int, index: Index, names: Names) -> Iterator[tuple[str, str]]:
    for row in map(index.member, range(len(index.members))):
        name = names.of(row)
        if reason := inspect(descriptor, row, name):
            yield name, reason


def _between(descriptor: int, index: Index, names: Names) -> Iterator[tuple[str, str]]:
    """Headers that no reader minds but that are not as written, and padding that is not zero."""
    end = 0
    for row in map(index.member, range(len(index.members))):
        name, size = names.of(row), row.size
        if _header(descriptor, row) != canonical_header(name, size):
            yield name, "has a damaged tar header"
        end = row.offset + size
        padding = -size % tarfile.BLOCKSIZE
        if os.pread(descriptor, padding, end).strip(b"\0"):
            yield name, "is followed by padding that is not zero"
        end += padding
    if os.pread(descriptor, max(0, os.fstat(descriptor).st_size - end), end).strip(b"\0"):
        yield "", "the blocks of zeros at its end are not zero"


def _header(descriptor: int, row: MemberRow) -> bytes:
    return os.pread(descriptor, tarfile.BLOCKSIZE, row.offset - tarfile.BLOCKSIZE)
