"""Voxels behind a text header (MetaImage, NRRD): what the header says, and the bytes that it speaks of.

The headers are read by `metaimage.py` and `nrrd.py`, the bytes here and not by ITK: ITK gives back a
compressed MetaImage with a flipped bit as an image (12,091 of 24,000 voxels wrong, no error), because it does
not look at the checksum. Here gzip, zlib and bzip2 checksums are verified to the last byte, the length has to
be exactly what the header says, and no memory is taken for a shape before the bytes for it are there.
"""

from __future__ import annotations

import binascii
import bz2
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import ReadError
from ..interop import archive
from . import messages
from .source import content

# What an axis of the file is. What becomes of a "fourth" (time, a list) the source's `fourth_axis` decides.
SPACE, CHANNEL, FOURTH = "space", "channel", "fourth"

_MOST_AXES = 6
_PIECE = 1 << 22  # unpacked bytes at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a header says of the voxels; axes fastest first, as both formats list them."""

    name: str  # of the header's file, for messages
    format: str
    sizes: tuple[int, ...]
    axes: tuple[str, ...]  # SPACE, CHANNEL or FOURTH, an axis each
    dtype: np.dtype  # in the file's byte order
    encoding: str  # "raw" | "deflate" (gzip or zlib) | "bzip2" | "text" | "hex"
    files: tuple[Path, ...]  # in order; the header's own when the voxels follow it
    skip: int = 0  # bytes to leave out; -1: the voxels are the last bytes of the file
    skip_lines: int = 0
    # [3, 3 + 1], index (x, y, z, 1) of the space axes -> RAS+ mm; None: the file does not place its voxels
    affine: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None  # mm, of the space axes, when there is no affine
    words: dict[str, str] = field(default_factory=dict)  # NRRD's key:=value pairs; never leave the reader

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, unpacked."""
        return math.prod(self.sizes) * self.dtype.itemsize


def check_shape(sizes: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """Raise ReadError unless the header's sizes can be those of an image."""
    if not 2 <= len(sizes) <= _MOST_AXES or min(sizes) < 1:
        raise ReadError(f"{name}: sizes {list(sizes)}, expected 2 to {_MOST_AXES} of 1 or more; repair it")
    if math.prod(sizes) * dtype.itemsize > archive.MOST_BYTES:
        raise ReadError(f"{name}: sizes {list(sizes)} are more than {archive.MOST_BYTES:,} bytes; repair it")


def beside(header: Path, name: str) -> Path:
    """The file `name` that a header speaks of: in its folder or below, on disk or in the same archive.

    Raises:
        ReadError: an absolute name, or one that leads out of the folder.
    """
    inner = PurePosixPath(name.strip().replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or not inner.parts or ":" in inner.parts[0]:
        raise ReadError(
            f"{header.name}: its voxels lie in a file outside of its folder; put them beside the header and "
            "name them without folders"
        )
    if not archive.split(header)[1]:
        return header.parent / inner
    outer, separator, member = str(header).rpartition(archive.SEPARATOR)
    folder = member.rpartition("/")[0]
    return Path(f"{outer}{separator}{folder}/{inner}" if folder else f"{outer}{separator}{inner}")


def listed(header: Path, words: list[str], lines: list[str]) -> tuple[Path, ...]:
    """Files of a multi-file image: `LIST` with a name a line, or a printf pattern with first, last and step.

    Raises:
        ReadError: a pattern without a number or of absurdly many files.
    """
    if words[0] == "LIST":
        return tuple(beside(header, line) for line in lines if line.strip())
    if "%" not in words[0] or len(words) < 3:
        return (beside(header, " ".join(words)),)
    try:
        first, last, step = int(words[1]), int(words[2]), int(words[3]) if len(words) > 3 else 1
        numbers = range(first, last + (1 if step > 0 else -1), step)
        if not 0 < len(numbers) <= 1 << 16:
            raise ValueError(f"{len(numbers)} files")
        return tuple(beside(header, words[0] % number) for number in numbers)
    except (TypeError, ValueError) as error:
        raise ReadError(
            f"{header.name}: names of its data files cannot be made from a pattern; repair it"
        ) from error


def voxels(stored: Stored, header: bytes, path: Path) -> np.ndarray:
    """All voxels, axes slowest first (the reverse of `sizes`), in the file's dtype.

    Args:
        header: bytes of the file `path` after its header.

    Raises:
        ReadError: missing, truncated, corrupt, or another length than the header says.
    """
    parts = [_unpacked(stored, part) for part in _parts(stored, header, path)]
    data = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if data.nbytes != stored.nbytes:
        raise ReadError(
            f"{stored.name}: {data.nbytes:,} bytes of voxels where the header says {stored.nbytes:,}; "
            "truncated, or not the file that belongs to it: copy it again"
        )
    return data.view(stored.dtype).reshape(stored.sizes[::-1])


def _parts(stored: Stored, header: bytes, path: Path) -> Iterator[bytes]:
    for file in stored.files:
        try:
            data = header if file == path else content(file)
        except ReadError as error:
            # Not its name: it is no secret of the record, so nothing would take it out of the report.
            raise ReadError(
                f"{stored.name}: the file with its voxels is missing or empty; put it beside the header"
            ) from error
        for _ in range(stored.skip_lines):
            data = data.partition(b"\n")[2]
        yield data


def _unpacked(stored: Stored, data: bytes) -> np.ndarray:
    """Bytes of one file as uint8, at most one more than the header promises."""
    share = stored.nbytes // len(stored.files)
    try:
        if stored.encoding == "deflate":
            return _tail(_inflated(data, share + max(stored.skip, 0)), stored)
        if stored.encoding == "bzip2":
            unpacker = bz2.BZ2Decompressor()
            result = unpacker.decompress(data, share + max(stored.skip, 0) + 1)
            if not unpacker.eof and len(result) <= share:
                raise EOFError("it ends before its end marker")
            return _tail(result, stored)
        if stored.encoding == "hex":
            return _tail(binascii.unhexlify(b"".join(data.split())), stored)
        if stored.encoding == "text":
            return _tail(_numbers(data, stored.dtype).tobytes(), stored)
    except (EOFError, ValueError, OSError, zlib.error) as error:
        line = messages.line(error, data)
        raise ReadError(f"{stored.name}: truncated or corrupt voxels ({line}); copy it again") from error
    if stored.skip == -1:
        data = data[-share:]
    return _tail(data, stored)


def _tail(data: bytes | bytearray, stored: Stored) -> np.ndarray:
    return np.frombuffer(data, np.uint8)[max(stored.skip, 0) :]


def _numbers(data: bytes, dtype: np.dtype) -> np.ndarray:
    """Numbers written as text; integers exactly."""
    words = data.replace(b",", b" ").split()
    if dtype.kind == "f":
        return np.array([float(word) for word in words]).astype(dtype)
    limits, found = np.iinfo(dtype), [int(word) for word in words]
    if found and not limits.min <= min(found) <= max(found) <= limits.max:
        raise ValueError(f"a number outside of {dtype.name}")
    return np.array(found, dtype)


def _inflated(data: bytes, size: int) -> bytearray:
    """Unpack gzip or zlib, several members too, checksums verified; stops beyond `size` bytes."""
    result, rest = bytearray(), data
    while rest:
        unpacker = zlib.decompressobj(wbits=47)  # either header
        while not unpacker.eof:
            piece = unpacker.decompress(rest, _PIECE)
            rest = unpacker.unconsumed_tail
            result += piece
            if len(result) > size:
                raise ValueError(f"more than {size:,} bytes")
            if not piece and not rest and not unpacker.eof:
                raise EOFError("it ends before its end marker")
        rest = unpacker.unused_data.lstrip(b"\0\n\r")  # padding
    return result
