"""LitData's optimised folders (index.json, chunk-*.bin), parsed without litdata.

A chunk is `n` (uint32), n + 1 offsets (uint32), then the items; an item is the size of each leaf (uint32),
then the leaves, in the order of `data_format`; `data_spec` (a PyTree as JSON) names them. Parsing it here
instead of by litdata keeps strangers' pickles closed: litdata unpickles what it does not know. The price:
leaves in pickles, JSON, audio and video stay unread, and Parquet, Arrow and encrypted chunks are refused.
Compression: none, whole chunks, batches of items and single items (zstd) are read.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import CollectionError, ReadError

INDEX = "index.json"

_FRAMED = b"LDFZ01\0\0"
_FRAMED_HEAD = struct.Struct("<8sHHIII")  # magic, version, flags, items, items a frame, frames
_FRAME = struct.Struct("<IIQII")  # first item, items, offset, stored bytes, bytes
# Codes of dtypes in array leaves; others (complex, objects, bfloat16) are refused.
_NUMPY = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_TORCH = {0: "f4", 1: "f4", 2: "f8", 3: "f8", 8: "f2", 9: "f2", 11: "u1", 12: "i1", 13: "i2", 14: "i2",
          15: "i4", 16: "i4", 17: "i8", 18: "i8", 19: "?", 20: "u2"}  # fmt: skip
_SUFFIXES = {
    "numpy": ".npy", "tensor": ".npy", "jpeg": ".jpg", "pil": ".pil", "tifffile": ".tif", "bytes": ".bytes",
    "image": ".bytes", "nifti": ".nii.gz", "file": ".bytes",
}  # fmt: skip
_SCALARS = {"int": "<i8", "float": "<f8", "bool": "?"}


@dataclass(frozen=True, slots=True)
class Leaf:
    """One entry of every item."""

    name: str  # dotted path in the item
    kind: str  # first word of its data_format

    @property
    def suffix(self) -> str | None:
        """Suffix of its member; None for what is not a file."""
        return _SUFFIXES.get(self.kind)


@dataclass(frozen=True, slots=True)
class Layout:
    """What index.json says."""

    chunks: dict[str, int]  # file name -> items
    leaves: tuple[Leaf, ...]
    compression: str  # "" | chunk | batch | sample


def layout_of(folder: Path) -> Layout:
    """Read `folder/index.json`, once while it does not change.

    Raises:
        CollectionError: missing, broken, or of a kind that is not read.
    """
    path = folder / INDEX
    try:
        return _layout(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise CollectionError(
            f"{path}: missing ({error.strerror}); is this what litdata.optimize wrote?"
        ) from error


@functools.lru_cache(4)
def _layout(path: Path, _changed: int) -> Layout:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        config = index["config"]
        chunks = {str(chunk["filename"]): int(chunk["chunk_size"]) for chunk in index["chunks"]}
        formats = [str(name).split(":")[0] for name in config["data_format"]]
        spec = json.loads(config["data_spec"]) if config.get("data_spec") else None
        names = list(_names(spec[1], "")) if spec else [str(number) for number in range(len(formats))]
        if len(names) != len(formats):
            raise ValueError(f"{len(formats)} formats for {len(names)} leaves")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CollectionError(f"{path}: not an index that litdata writes ({error!r})") from error
    if config.get("encryption"):
        raise CollectionError(f"{path}: the chunks are encrypted; optimise again without encryption")
    if config.get("item_loader") not in (None, "PyTreeLoader", "TokensLoader") or config.get(
        "ipc_compression"
    ):
        raise CollectionError(
            f"{path}: Parquet or Arrow chunks are not read; optimise images with PyTreeLoader"
        )
    compression = str(config.get("compression") or "")
    if compression and not compression.startswith("zstd"):
        raise CollectionError(
            f"{path}: compression {compression!r} is not read; optimise again with zstd or none"
        )
    level = str(config.get("compression_level") or "chunk") if compression else ""
    leaves = tuple(Leaf(name or "data", kind) for name, kind in zip(names, formats, strict=True))
    return Layout(chunks, leaves, level)


def _names(spec: Any, prefix: str) -> Any:
    """Dotted names of the leaves of a torch PyTree, depth first."""
    if not spec["children_spec"] and spec["type"] is None:
        yield prefix
        return
    keys = json.loads(spec["context"]) if isinstance(spec["context"], str) else None
    if not isinstance(keys, list):
        keys = range(len(spec["children_spec"]))
    for key, child in zip(keys, spec["children_spec"], strict=True):
        yield from _names(child, f"{prefix}.{key}".lstrip("."))


class Chunk:
    """One chunk as an archive of members `ITEM/LEAF.suffix`, such as `000012/image.npy`."""

    fault: str | None = None

    def __init__(self, path: Path) -> None:
        layout = layout_of(path.parent)
        self.leaves, self._name, self._compression = layout.leaves, path.name, layout.compression
        self._file = path.open("rb")
        try:
            self._unpack()
            self._items = struct.unpack("<I", self._at(0, 4))[0]
            if self._items != layout.chunks.get(path.name, self._items):
                raise ValueError(f"{self._items} items, the index says {layout.chunks[path.name]}")
            self._offsets = np.frombuffer(self._at(4, 4 * (self._items + 1)), "<u4").astype(np.int64)
            if (np.diff(self._offsets) < 0).any() or self._offsets[0] != 4 * (self._items + 2):
                raise ValueError("the table of offsets is not in order")
            if self._offsets[-1] != self._file.seek(0, os.SEEK_END):
                raise ValueError(f"ends at byte {self._file.tell()}, expected {self._offsets[-1]}")
        except (ValueError, struct.error, OverflowError, RuntimeError) as error:
            raise ReadError(
                f"{path.name}: damaged, or no chunk of litdata ({error}); copy it again"
            ) from error

    def __len__(self) -> int:
        return self._items

    def names(self) -> list[str]:
        """Names of all leaves that are files."""
        return [self.member(item, leaf) for item in range(self._items) for leaf in self.leaves if leaf.suffix]

    def member(self, item: int, leaf: Leaf) -> str:
        """Name of a leaf that is a file."""
        return f"{item:06d}/{leaf.name}{leaf.suffix}"

    def fields(self, item: int) -> dict[str, Any]:
        """Numbers and texts of an item."""
        found: dict[str, Any] = {}
        for leaf, place in zip(self.leaves, self._places(item), strict=True):
            if leaf.kind in _SCALARS and place[1] - place[0] == np.dtype(_SCALARS[leaf.kind]).itemsize:
                found[leaf.name] = np.frombuffer(self._leaf(item, place), _SCALARS[leaf.kind])[0].item()
            elif leaf.kind in ("str", "text"):
                found[leaf.name] = self._leaf(item, place).decode("utf-8", "replace")
        return found

    def size(self, name: str) -> int:
        """Stored bytes of a leaf. Raises FileNotFoundError."""
        _, _, (start, stop) = self._find(name)
        return stop - start

    def read(self, name: str) -> bytes:
        """A leaf as the bytes of a file: arrays as NPY, PIL's pixels as PNG or TIFF, others as stored.

        Raises:
            FileNotFoundError, ReadError.
        """
        item, leaf, place = self._find(name)
        data = self._leaf(item, place)
        try:
            if leaf.kind in ("numpy", "tensor"):
                return _npy(data, leaf.kind)
            return _picture(data) if leaf.kind == "pil" else data
        except (ValueError, struct.error, OverflowError, KeyError, IndexError, OSError) as error:
            raise ReadError(
                f"{name}: damaged leaf of kind {leaf.kind} ({error}); copy the chunk again"
            ) from error

    def open(self, name: str) -> IO[bytes]:
        """A leaf as a file in memory. Raises as `read`."""
        return io.BytesIO(self.read(name))

    def _find(self, name: str) -> tuple[int, Leaf, tuple[int, int]]:
        number, _, rest = name.partition("/")
        for index, leaf in enumerate(self.leaves):
            if leaf.suffix and rest == f"{leaf.name}{leaf.suffix}" and number.isdecimal():
                item = int(number)
                if item < self._items:
                    return item, leaf, self._places(item)[index]
        raise FileNotFoundError(errno.ENOENT, f"no member {name!r} in {self._name}")

    def _places(self, item: int) -> list[tuple[int, int]]:
        """(start, stop) of the leaves inside the item."""
        head = 4 * len(self.leaves)
        sizes = struct.unpack(f"<{len(self.leaves)}I", self._item(item, 0, head))
        ends = head + np.cumsum(sizes, dtype=np.int64)
        return [(int(end) - size, int(end)) for end, size in zip(ends, sizes, strict=True)]

    def _leaf(self, item: int, place: tuple[int, int]) -> bytes:
        return self._item(item, *place)

    def _item(self, item: int, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of an item. Raises ReadError."""
        offset, end = int(self._offsets[item]), int(self._offsets[item + 1])
        if self._compression == "sample":
            data = _inflated(self._at(offset, end - offset))[start:stop]
        else:
            data = self._at(offset + start, min(stop, end - offset) - start)
        if len(data) != stop - start:
            raise ReadError(f"{self._name}: item {item} is cut short; copy the chunk again")
        return data

    def _at(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), max(0, size), offset)

    def _unpack(self) -> None:
        """Make a chunk that is compressed as a whole or in batches a plain one, in a temporary file."""
        if self._at(0, 8) == _FRAMED:
            self._replace(_unframed(self._file.read()))
        elif self._compression == "chunk" and self._at(0, 4) == b"\x28\xb5\x2f\xfd":
            self._replace([_inflated(self._file.read())])

    def _replace(self, parts: list[bytes]) -> None:
        target = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the chunk
        for part in parts:
            target.write(part)
        target.flush()
        self._file.close()
        self._file = target


def _unframed(data: bytes) -> list[bytes]:
    """Parts of the plain chunk that litdata packed in batches."""
    _, version, _, items, _, frames = _FRAMED_HEAD.unpack_from(data)
    if version != 1:
        raise ValueError(f"version {version} of batched compression")
    start = _FRAMED_HEAD.size
    offsets = np.frombuffer(data, "<u4", items + 1, start) + np.uint32(4 * (items + 2))
    parts = [struct.pack("<I", items), offsets.astype("<u4").tobytes()]
    for number in range(frames):
        row = _FRAME.unpack_from(data, start + 4 * (items + 1) + _FRAME.size * number)
        parts.append(_inflated(data[row[2] : row[2] + row[3]]))
        if len(parts[-1]) != row[4]:
            raise ValueError(f"frame {number} has {len(parts[-1])} bytes, expected {row[4]}")
    return parts


def _inflated(data: bytes) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(data))


def _npy(data: bytes, kind: str) -> bytes:
    """NPY bytes of an array leaf: dtype code, axes, lengths (uint32 each), values in C order."""
    code, axes = struct.unpack_from("<2I", data)
    shape = struct.unpack_from(f"<{axes}I", data, 8) if axes <= 8 else ()
    dtype = np.dtype(_NUMPY[code] if kind == "numpy" else _TORCH[code])
    array = np.frombuffer(data, dtype, offset=8 + 4 * axes).reshape(shape)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _picture(data: bytes) -> bytes:
    """File of PIL's raw pixels: width, height, length of the mode (uint32), mode, pixels."""
    from PIL import Image

    width, height, length = struct.unpack_from("<3I", data)
    mode = data[12 : 12 + length].decode("ascii")
    picture = Image.frombytes(mode, (width, height), data[12 + length :])
    buffer = io.BytesIO()
    picture.save(
        buffer, "PNG" if mode in ("1", "L", "LA", "RGB", "RGBA", "I;16") else "TIFF", compress_level=1
    )
    return buffer.getvalue()
