"""Partial reads: fetch exactly the chunks that a box touches, verify each, decode only the blocks inside it.

Each chunk is one `pread` (neighbours in the file are fetched together) and is checked against the index
before it is decoded, so a flipped bit raises instead of training on noise. The chunks are put into an empty
in-memory Blosc2 array of the same geometry, which then decodes just the blocks of the box. Against
`blosc2.open(tar, offset=...)` this costs about 0.2 ms more per warm 96^3 crop and reads no byte too many;
on a cold disk Blosc2's buffered reads fetch five times as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import blosc2
import numpy as np

from ..errors import ShardError
from .format import DAMAGED, checksum
from .index import Index, read_exactly

# Chunks closer than this in the file are fetched in one read: a seek costs more than the bytes between.
COALESCE_GAP = 64 * 1024


def read_box(
    descriptor: int, index: Index, member: np.void, origin: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Read the box [origin, origin + shape) of an array member; all axes given, the channel axis included.

    Raises:
        ShardError: the box is not inside the array, the file is cut short, or a chunk's checksum differs.
    """
    row = index.arrays[int(member["array"])]
    ndim = int(row["ndim"])
    full = tuple(int(n) for n in row["shape"][:ndim])
    chunk = tuple(int(n) for n in row["chunk"][:ndim])
    if any(o < 0 or n < 1 or o + n > f for o, n, f in zip(origin, shape, full, strict=True)):
        raise ShardError(f"box at {tuple(origin)} of shape {tuple(shape)} is not inside the array {full}")
    dtype = np.dtype(bytes(row["dtype"]).decode())
    array: Any = blosc2.zeros(
        full,
        dtype=dtype,
        chunks=chunk,
        blocks=tuple(int(n) for n in row["block"][:ndim]),
        cparams={"typesize": dtype.itemsize, "nthreads": 1},  # dicts: half the cost of the dataclasses
        dparams={"nthreads": 1},
    )
    numbers = _chunks_of_box(origin, shape, full, chunk)
    for number, data in _fetch(descriptor, index, member, int(row["first"]), numbers):
        array.schunk.update_chunk(number, data)
    out = np.empty(tuple(shape), dtype)
    stop = tuple(o + n for o, n in zip(origin, shape, strict=True))
    array.get_slice_numpy(out, (tuple(int(o) for o in origin), stop))
    return out


def _chunks_of_box(
    origin: Sequence[int], shape: Sequence[int], full: Sequence[int], chunk: Sequence[int]
) -> list[int]:
    """Numbers (C order) of the chunks that the box touches, ascending."""
    counts = [-(-f // c) for f, c in zip(full, chunk, strict=True)]
    spans = [range(o // c, -(-(o + n) // c)) for o, n, c in zip(origin, shape, chunk, strict=True)]
    numbers = []
    for place in itertools.product(*spans):
        number = 0
        for position, count in zip(place, counts, strict=True):
            number = number * count + position
        numbers.append(number)
    return numbers


def _fetch(
    descriptor: int, index: Index, member: np.void, first: int, numbers: list[int]
) -> list[tuple[int, memoryview]]:
    """Read and verify chunks; chunks of zeros take no bytes and are left out."""
    start, table = int(member["offset"]), index.chunks
    wanted = [(n, *(int(v) for v in table[first + n])) for n in numbers]
    wanted = sorted((w for w in wanted if w[2]), key=lambda w: w[1])
    fetched: list[tuple[int, memoryview]] = []
    position = 0
    while position < len(wanted):
        last, low, end = position, wanted[position][1], wanted[position][1] + wanted[position][2]
        while last + 1 < len(wanted) and wanted[last + 1][1] - end <= COALESCE_GAP:
            last += 1
            end = wanted[last][1] + wanted[last][2]
        view = memoryview(read_exactly(descriptor, end - low, start + low))
        for number, offset, size, expected in wanted[position : last + 1]:
            data = view[offset - low : offset - low + size]
            if checksum(data) != expected:
                raise ShardError(f"chunk {number} at byte {start + offset} fails its checksum; {DAMAGED}")
            fetched.append((number, data))
        position = last + 1
    return fetched
