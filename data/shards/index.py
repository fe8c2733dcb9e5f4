"""The index beside a shard (`NAME.idx`): where every sample, member and chunk lies, each with a checksum.

Fixed-width little-endian tables after a 64-byte header, read through mmap: opening costs one page fault a
table, whatever the number of samples. Size: 16 B a sample, 32 B a member, 72 B an array, 16 B a chunk, in all
about 0.01 % of a shard of volumes. It is derived data: `rebuild` makes the same bytes from the tar.

Chunks carry their own checksums so that a partial read is verified without reading the whole member.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import blosc2
import numpy as np

from ..atomic import write_bytes
from ..errors import ShardError
from ..sample import MODALITIES, Modality
from .codec import SCALE
from .format import DAMAGED, KIND_IMAGE, KIND_JSON, KIND_MASK, checksum, split_name

MAGIC = b"medloomX"
INDEX_VERSION = 1

HEADER = np.dtype(
    [("magic", "S8"), ("version", "<u4"), ("crc", "<u4"), ("tar_bytes", "<u8"), ("samples", "<u8"),
     ("members", "<u8"), ("arrays", "<u8"), ("chunks", "<u8"), ("reserved", "<u8")]
)  # fmt: skip
SAMPLES = np.dtype(
    [("key_hash", "<u8"), ("member", "<u4"), ("members", "<u2"), ("modality", "u1"), ("ndim", "u1")]
)
MEMBERS = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("kind", "u1"), ("level", "u1"), ("pad", "<u2"),
     ("array", "<i4"), ("sample", "<u4")]
)  # fmt: skip
ARRAYS = np.dtype(
    [("shape", "<u4", 4), ("chunk", "<u4", 4), ("block", "<u4", 4), ("first", "<u8"), ("count", "<u4"),
     ("dtype", "S4"), ("ndim", "u1"), ("scale", "<f4"), ("pad", "u1", 3)]
)  # fmt: skip
# offset counts from the start of the member; size 0 stands for a chunk of zeros, which takes no bytes.
CHUNKS = np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc", "<u4")])

# The same rows for one at a time: ten times faster than the fields of a numpy record.
_ARRAY_ROW = struct.Struct("<4I4I4IQI4sBf3x")
_CHUNK_ROW = struct.Struct("<QII")
_SAMPLE_ROW = struct.Struct("<QIHBB")
_MEMBER_ROW = struct.Struct("<QQIBB2xiI")


class MemberRow(NamedTuple):
    """Where one member lies in the tar, and what it is."""

    offset: int
    size: int
    crc: int
    kind: int
    level: int
    array: int  # row of `Index.arrays`; -1 for JSON and JPEG
    sample: int


class ArrayLayout(NamedTuple):
    """Geometry of one stored array; `first` is the row of its chunk 0 in `Index.chunks`.

    `dtype` is what is stored; with a `scale` (not 0) these are the codes of a float32 image.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    block: tuple[int, ...]
    dtype: np.dtype
    first: int
    count: int
    scale: float


@dataclass(slots=True)
class Index:
    """Tables of one shard, as numpy structured arrays (views of the mapped file, or of memory)."""

    samples: np.ndarray
    members: np.ndarray
    arrays: np.ndarray
    chunks: np.ndarray
    tar_bytes: int

    def __len__(self) -> int:
        return len(self.samples)

    def ndim_of(self, ordinal: int) -> int:
        """Spatial dimensions of sample `ordinal`."""
        return _SAMPLE_ROW.unpack_from(cast(Any, self.samples), ordinal * _SAMPLE_ROW.size)[4]

    def members_of(self, ordinal: int) -> list[MemberRow]:
        """Rows of `members` that belong to sample `ordinal`; the first is its JSON. Raises IndexError."""
        if not 0 <= ordinal < len(self):
            raise IndexError(f"sample {ordinal} of {len(self)}")
        row = _SAMPLE_ROW.unpack_from(cast(Any, self.samples), ordinal * _SAMPLE_ROW.size)
        return [self.member(number) for number in range(row[1], row[1] + row[2])]

    def member(self, number: int) -> MemberRow:
        """Row `number` of `members`."""
        return MemberRow(*_MEMBER_ROW.unpack_from(cast(Any, self.members), number * _MEMBER_ROW.size))

    def array(self, number: int) -> ArrayLayout:
        """Row `number` of `arrays`."""
        row = _ARRAY_ROW.unpack_from(cast(Any, self.arrays), number * _ARRAY_ROW.size)
        ndim = row[15]
        dtype = np.dtype(row[14].rstrip(b"\0").decode())
        return ArrayLayout(row[:ndim], row[4 : 4 + ndim], row[8 : 8 + ndim], dtype, row[12], row[13], row[16])

    def chunk(self, number: int) -> tuple[int, int, int]:
        """Row `number` of `chunks`: (offset in the member, size, checksum)."""
        return _CHUNK_ROW.unpack_from(cast(Any, self.chunks), number * _CHUNK_ROW.size)

    def to_bytes(self) -> bytes:
        """Serialise; the same shard gives the same bytes."""
        body = b"".join(table.tobytes() for table in (self.samples, self.members, self.arrays, self.chunks))
        header = np.zeros((), HEADER)
        header["magic"], header["version"] = MAGIC, INDEX_VERSION
        header["tar_bytes"], header["crc"] = self.tar_bytes, checksum(body) if body else 0
        for name in ("samples", "members", "arrays", "chunks"):
            header[name] = len(getattr(self, name))
        return header.tobytes() + body


class IndexBuilder:
    """Collects rows while a shard is written, or while a tar is read back."""

    def __init__(self) -> None:
        self._samples: list[tuple] = []
        self._members: list[tuple] = []
        self._arrays: list[tuple] = []
        self._chunks: list[tuple] = []
        self._key = ""

    def member(self, name: str, offset: int, data: bytes) -> None:
        """Add the member `name`, whose bytes `data` start at `offset` in the tar.

        Raises:
            ShardError: the name is not one a shard holds, members of a sample are not adjacent, the JSON is
                not the first of them, or an array is not a Blosc2 frame of consecutive chunks.
        """
        key, kind, level = split_name(name)
        if kind == KIND_JSON:
            meta = json.loads(data)
            code = MODALITIES.index(Modality(meta["modality"]))
            self._samples.append((key_hash(key), len(self._members), 0, code, int(meta["ndim"])))
            self._key = key
        elif key != self._key:
            raise ShardError(f"member {name} does not follow {key}.json")
        array = -1
        if kind in (KIND_IMAGE, KIND_MASK):
            array = len(self._arrays)
            self._array(name, data)
        sample = self._samples[-1]
        self._samples[-1] = (sample[0], sample[1], sample[2] + 1, *sample[3:])
        row = (offset, len(data), checksum(data), kind, level, 0, array, len(self._samples) - 1)
        self._members.append(row)

    def finish(self, tar_bytes: int) -> Index:
        """Return the index of a shard of `tar_bytes` bytes."""
        return Index(
            np.array(self._samples, SAMPLES),
            np.array(self._members, MEMBERS),
            np.array(self._arrays, ARRAYS),
            np.array(self._chunks, CHUNKS),
            tar_bytes,
        )

    def _array(self, name: str, data: bytes) -> None:
        try:
            frame = blosc2.ndarray_from_cframe(data)
        except (RuntimeError, ValueError) as error:
            raise ShardError(f"member {name} is not a Blosc2 array: {error}") from error
        ndim = len(frame.shape)
        first = len(self._chunks)
        position = int.from_bytes(data[11:15], "big")  # length of the frame's header, where chunk 0 starts
        for info in frame.schunk.iterchunks_info():
            if info.special == blosc2.SpecialValue.ZERO:
                self._chunks.append((position, 0, 0))
                continue
            chunk = frame.schunk.get_chunk(info.nchunk)
            if data[position : position + len(chunk)] != chunk:
                raise ShardError(f"member {name}: chunk {info.nchunk} is not where the frame's order puts it")
            self._chunks.append((position, len(chunk), checksum(chunk)))
            position += len(chunk)
        padding, scale = (0,) * (4 - ndim), frame.schunk.meta.get(SCALE, 0.0)
        self._arrays.append(
            ((*frame.shape, *padding), (*frame.chunks, *padding), (*frame.blocks, *padding), first,
             len(self._chunks) - first, np.dtype(frame.dtype).str.encode(), ndim, scale, (0,) * 3)
        )  # fmt: skip


def key_hash(key: str) -> int:
    """64-bit BLAKE2b of a sample key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def index_path(tar: Path) -> Path:
    """`NAME.tar` -> `NAME.idx`."""
    return tar.with_suffix(".idx")


def load(path: Path) -> Index:
    """Map the index at `path` and verify its checksum.

    Raises:
        ShardError: the file is missing, truncated, of another version, or damaged.
    """
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ShardError(
            f"{path}: the index cannot be read ({error}); it can be rebuilt from the tar"
        ) from error
    return parse(mapped, path)


def parse(mapped: np.ndarray, path: Path | str) -> Index:
    """The index in these bytes, verified by its checksum; `path` is its name in messages.

    Raises:
        ShardError: truncated, of another version, or damaged.
    """
    if len(mapped) < HEADER.itemsize:
        raise ShardError(f"{path}: the index is cut short at {len(mapped)} bytes; delete it, it is rebuilt")
    header = mapped[: HEADER.itemsize].view(HEADER)[0]
    if header["magic"] != MAGIC or header["version"] != INDEX_VERSION:
        raise ShardError(f"{path}: not an index of version {INDEX_VERSION}; delete it, it is rebuilt")
    tables, position = [], HEADER.itemsize
    for name, dtype in (("samples", SAMPLES), ("members", MEMBERS), ("arrays", ARRAYS), ("chunks", CHUNKS)):
        end = position + int(header[name]) * dtype.itemsize
        tables.append((position, end, dtype))
        position = end
    body = mapped[HEADER.itemsize :]
    if position != len(mapped) or (len(body) and checksum(body.data) != int(header["crc"])):
        raise ShardError(f"{path}: the index is damaged; delete it, it is rebuilt from the tar")
    return Index(*(mapped[a:b].view(t) for a, b, t in tables), tar_bytes=int(header["tar_bytes"]))


def rebuild(tar: Path, *, sha256: str | None = None, write: bool = True) -> Index:
    """Make the index from the tar, at the cost of reading it once; written beside it unless `write` is False.

    Args:
        sha256: what the manifest says of the tar; without it damage would be indexed as if it were sound.

    Raises:
        ShardError: the tar is missing, damaged, or does not have the structure of a shard.
    """
    builder = IndexBuilder()
    try:
        if sha256 is not None and file_sha256(tar) != sha256:
            raise ShardError(f"{tar}: sha256 differs from the manifest's; restore or rebuild this shard")
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                handle = archive.extractfile(info)
                data = handle.read() if handle else b""
                if len(data) != info.size:
                    raise ShardError(f"{tar}: member {info.name} is cut short")
                builder.member(info.name, info.offset_data, data)
        size = tar.stat().st_size
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise ShardError(f"{tar}: not a readable shard ({error}); restore or rebuild it") from error
    index = builder.finish(size)
    if write:
        write_bytes(index_path(tar), index.to_bytes())
    return index


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with Path(path).open("rb", buffering=0) as handle:
        digest = hashlib.file_digest(handle, "sha256")  # type: ignore[arg-type]
    return digest.hexdigest()


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """`pread` that never returns less than asked. Raises ShardError at the end of the file."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise ShardError(
                f"the file ends at byte {offset + len(data)}, expected {offset + size}; {DAMAGED}"
            )
        data += more
    return data
