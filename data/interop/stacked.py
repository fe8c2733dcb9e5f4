"""Arrays stacked in one .npy or in one member of an .npz, as MedMNIST has them: an archive of its rows.

`pathmnist.npz::train_images.npy::17.npy` is the eighteenth image, an NPY file of its own to every reader, so
that units, keys, stat and memory bounds see single images. A deflated member cannot be read at random; it is
inflated once a process from end to end, which also verifies its checksum (3 to 5 s a GB), and the state of
the decoder is kept every 32 MiB (45 kB each), so that a row costs the inflation of 16 MiB on average, and
nothing more than itself when rows are read in order. No row is returned from a member that is damaged.
"""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zipfile
import zlib
from typing import IO, Any

import numpy as np

from ..errors import ReadError

STEP = 32 << 20  # bytes between two states of the decoder that are kept
_PIECE = 1 << 18  # packed bytes at a time
HEAD_BYTES = 1 << 16  # of an NPY file, in which its header ends


class Stack:
    """The rows (along the first axis) of one array; a member is called `NUMBER.npy`.

    Raises:
        ReadError: not an array of numbers with two axes or more in C order, or cut short.
    """

    fault: str | None = None

    def __init__(self, data: Stored | Inflated, name: str) -> None:
        self._data, self._name = data, name
        head = data.peek(HEAD_BYTES)
        try:
            shape, fortran, self.dtype, self._start = npy_header(head)
        except Exception as error:  # damaged headers raise many kinds
            line = " ".join(str(error).split())[:120]
            raise ReadError(
                f"{name}: no array that can be read ({line}); copy or download it again"
            ) from error
        if len(shape) < 2 or fortran:
            raise ReadError(
                f"{name}: shape {shape}{' in Fortran order' if fortran else ''}, expected images stacked "
                "along the first axis in C order; save it again with np.ascontiguousarray"
            )
        self.shape: tuple[int, ...] = shape
        self._row = math.prod(shape[1:]) * self.dtype.itemsize
        if self._start + shape[0] * self._row != data.size:
            raise ReadError(f"{name}: {data.size} bytes for shape {shape} of {self.dtype}; download it again")
        buffer = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(buffer, description | {"shape": shape[1:]})
        self._header = buffer.getvalue()

    def names(self) -> list[str]:
        """`0.npy`, `1.npy` ..."""
        return [f"{number}.npy" for number in range(self.shape[0])]

    def size(self, name: str) -> int:
        """Bytes of a row as an NPY file. Raises FileNotFoundError."""
        self._number(name)
        return len(self._header) + self._row

    def read(self, name: str) -> bytes:
        """A row as an NPY file. Raises FileNotFoundError, ReadError."""
        at = self._start + self._number(name) * self._row
        return self._header + self._data.read(at, self._row)

    def open(self, name: str) -> IO[bytes]:
        """A row as a file in memory. Raises as `read`."""
        return io.BytesIO(self.read(name))

    def _number(self, name: str) -> int:
        text = name.removesuffix(".npy")
        if not (text.isascii() and text.isdigit() and int(text) < self.shape[0]):
            message = f"no row {name!r} in {self._name}, which has {self.shape[0]}"
            raise FileNotFoundError(errno.ENOENT, message)
        return int(text)


class Stored:
    """Bytes that lie in a file as they are."""

    def __init__(self, file: IO[bytes], start: int, size: int, name: str, crc: int | None = None) -> None:
        self._file, self._start, self.size, self._name, self._crc = file, start, size, name, crc

    def peek(self, count: int) -> bytes:
        """The first bytes, not verified."""
        return pread(self._file, min(count, self.size), self._start)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes [offset, offset + count). Raises ReadError when the checksum of all is wrong."""
        if self._crc is not None:
            crc, at = 0, 0
            while piece := pread(self._file, min(_PIECE, self.size - at), self._start + at):
                crc, at = zlib.crc32(piece, crc), at + len(piece)
            if crc != self._crc:
                raise damaged(self._name, "its checksum differs")
            self._crc = None  # verified once
        data = pread(self._file, count, self._start + offset)
        if len(data) != count:
            raise damaged(self._name, f"it ends at byte {offset + len(data)}")
        return data


class Inflated:
    """The bytes behind a deflate stream, at random."""

    def __init__(self, file: IO[bytes], start: int, packed: int, size: int, crc: int, name: str) -> None:
        self._file, self._start, self._packed, self.size = file, start, packed, size
        self._crc, self._name = crc, name
        self._states: list[_Cursor] = []  # at multiples of STEP
        self._cursor: _Cursor | None = None
        self._fault: str | None = None

    def peek(self, count: int) -> bytes:
        """The first bytes, not verified. Raises ReadError."""
        return self._guarded(lambda: self._fresh().take(min(count, self.size)))

    def read(self, offset: int, count: int) -> bytes:
        """Bytes [offset, offset + count). Raises ReadError when any byte of the stream is damaged."""
        if self._fault is None and not self._states:
            try:
                self._guarded(self._survey)
            except ReadError as error:
                self._fault = str(error)
        if self._fault is not None:
            raise ReadError(self._fault)
        cursor = self._cursor
        nearest = self._states[min(offset // STEP, len(self._states) - 1)]
        if cursor is None or not nearest.out <= cursor.out <= offset:
            cursor = self._cursor = nearest.copy()

        def found() -> bytes:
            cursor.skip(offset - cursor.out)
            return cursor.take(count)

        return self._guarded(found)

    def _fresh(self) -> _Cursor:
        return _Cursor(self._file, self._start, self._start + self._packed)

    def _survey(self) -> bytes:
        """Inflate everything once: the checksum, and the states on the way."""
        cursor, crc, states = self._fresh(), 0, []
        while cursor.out < self.size:
            if cursor.out % STEP == 0:
                states.append(cursor.copy())
            piece = cursor.take(min(1 << 20, self.size - cursor.out))  # 1 MiB divides STEP
            crc = zlib.crc32(piece, crc)
        if crc != self._crc or not cursor.ended():
            raise ValueError("its checksum differs")
        self._states = states
        return b""

    def _guarded(self, work: Any) -> bytes:
        try:
            return work()
        except (zlib.error, EOFError, ValueError) as error:
            raise damaged(self._name, str(error)) from error


class _Cursor:
    """A place in a deflate stream."""

    def __init__(self, file: IO[bytes], at: int, end: int) -> None:
        self._file, self._at, self._end = file, at, end
        self._decoder = zlib.decompressobj(wbits=-15)
        self._tail = b""
        self.out = 0

    def copy(self) -> _Cursor:
        other = _Cursor(self._file, self._at - len(self._tail), self._end)
        other._decoder, other.out = self._decoder.copy(), self.out
        return other

    def take(self, count: int) -> bytes:
        """The next `count` bytes. Raises EOFError, zlib.error."""
        parts, missing = [], count
        while missing:
            if not self._tail and self._at < self._end:
                self._tail = pread(self._file, min(_PIECE, self._end - self._at), self._at)
                self._at += len(self._tail)
            data = self._decoder.decompress(self._tail, missing)
            empty = not self._tail
            self._tail = self._decoder.unconsumed_tail
            if not data and (self._decoder.eof or empty):
                raise EOFError(f"it ends after {self.out} bytes")
            self.out += len(data)
            missing -= len(data)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> None:
        while count:
            count -= len(self.take(min(count, 1 << 20)))

    def ended(self) -> bool:
        """Whether the stream says that this is its end."""
        if not self._decoder.eof and not self._tail and self._at < self._end:
            self._tail = pread(self._file, min(_PIECE, self._end - self._at), self._at)
            self._at += len(self._tail)
        return self._decoder.eof or (not self._decoder.decompress(self._tail, 1) and self._decoder.eof)


def of_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stack:
    """Rows of the array in a member of a zip, stored or deflated. Raises ReadError."""
    name, file = info.filename, archive.fp
    assert file is not None
    head = pread(file, 30, info.header_offset)
    if len(head) != 30 or head[:4] != b"PK\x03\x04" or info.flag_bits & 1:
        raise damaged(name, "its header in the zip cannot be read")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
    if info.compress_type == zipfile.ZIP_STORED:
        return Stack(Stored(file, start, info.file_size, name, info.CRC), name)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        return Stack(Inflated(file, start, info.compress_size, info.file_size, info.CRC, name), name)
    raise ReadError(f"{name}: packed by method {info.compress_type}, expected deflate; save it again")


def npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, start of the values) from the first bytes of an NPY file.

    Raises:
        ValueError: not NPY, cut short, or values that are no numbers; other kinds for damaged headers.
    """
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of NPY")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"holds {dtype}, not numbers")
    return tuple(int(n) for n in shape), fortran, dtype, stream.tell()


def pread(file: IO[bytes], count: int, offset: int) -> bytes:
    """Up to `count` bytes at `offset`; leaves the position of a real file alone, since forks may share it."""
    try:
        descriptor = file.fileno()
    except (OSError, io.UnsupportedOperation):  # in memory, or a window of another file
        file.seek(offset)
        return file.read(count)
    parts = []
    while count and (piece := os.pread(descriptor, count, offset)):
        parts.append(piece)
        count, offset = count - len(piece), offset + len(piece)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def damaged(name: str, why: str) -> ReadError:
    """The error of a member that cannot be read."""
    return ReadError(f"{name}: truncated or corrupt in its archive ({why}); copy or download it again")
