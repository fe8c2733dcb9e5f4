"""Which images show the same: equal pixels by hash, near copies by perceptual hash and comparison.

Hashes propose pairs (index.py): an image against the crops of the others, against their turns and mirror
images, pictures also against the central planes of volumes. Each pair is then compared (compare.py).
Copies of equal pixels are looked up once. Of many pictures with one hash, each is compared with the first
16 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from . import hashes
from .compare import scores
from .findings import Thresholds
from .index import pairs_within
from .table import Stack, Table

EQUAL_HASHES = 16  # pictures of one hash that the others of it are compared with
_BLOCK = 4096  # thumbnails at once
_MANY = 1 << 23  # pairs after which repeated ones are thrown away

Tell = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of images that show the same."""

    one: np.ndarray  # [P] places in the table
    other: np.ndarray
    score: np.ndarray  # [P] agreement; 1 for equal pixels
    kind: np.ndarray  # [P] "copy" | "near" | "turned" | "slice"
    turn: np.ndarray  # [P] "as it is" | "mirrored" | "turned"


def exact(table: Table, rank: np.ndarray) -> np.ndarray:
    """The first image in `rank` with the same pixels, for each image; itself for those that are the first."""
    order = np.lexsort((rank, table.rows["exact"]))
    values = table.rows["exact"][order]
    starts = np.concatenate([[True], values[1:] != values[:-1]]) if len(values) else np.zeros(0, bool)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return first


def near(table: Table, usable: np.ndarray, rank: np.ndarray, limits: Thresholds, tell: Tell) -> Pairs:
    """Near copies among the images `usable` (bool [N]), in no order that matters.

    Pairs inside one record (frames, tiles of a slide) are not looked for.
    """
    found = []
    for ndim in (2, 3):
        entries = _entries(table, usable, ndim)
        if len(entries.image):
            found += list(_search(table, entries, rank, limits, tell))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)] if found else [[]] * 5
    one, other, score, kind, turn = columns
    return Pairs(
        np.asarray(one, np.int64), np.asarray(other, np.int64), np.asarray(score, np.float32),
        np.asarray(kind, str), np.asarray(turn, str),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Entries:
    """What is looked up: thumbnails of one dimensionality. Planes of volumes follow the pictures."""

    ndim: int
    image: np.ndarray  # place in the table
    plane: np.ndarray  # 0, 1, 2; -1: the image itself
    thumb: np.ndarray  # place in the stack of images or, for planes, of planes
    images: Stack
    planes: Stack

    def thumbs(self, entries: np.ndarray) -> np.ndarray:
        found = np.empty((len(entries), *self.images.shape), np.uint8)
        own = self.plane[entries] < 0
        found[own] = self.images[self.thumb[entries[own]]]
        if not own.all():
            rest = entries[~own]
            planes = self.planes[self.thumb[rest]]
            found[~own] = planes[np.arange(len(rest)), self.plane[rest]]
        return found


def _entries(table: Table, usable: np.ndarray, ndim: int) -> _Entries:
    mine = np.flatnonzero(usable & (table.rows["ndim"] == ndim))
    image, plane = mine, np.full(len(mine), -1)
    if ndim == 2 and len(mine):
        volumes = np.flatnonzero(usable & (table.rows["ndim"] == 3))
        image = np.concatenate([mine, np.repeat(volumes, 3)])
        plane = np.concatenate([plane, np.tile(np.arange(3), len(volumes))])
    return _Entries(ndim, image, plane, table.place[image], table.thumbs[f"{ndim}d"], table.thumbs["planes"])


def _search(
    table: Table, entries: _Entries, rank: np.ndarray, limits: Thresholds, tell: Tell
) -> Iterator[tuple[np.ndarray, ...]]:
    ndim, count = entries.ndim, len(entries.image)
    windows = np.asarray(hashes.crops(ndim), np.float32)
    ways = hashes.turns(ndim)
    cropped = np.empty((len(windows), count), np.uint64)
    turned = np.empty((len(ways), count), np.uint64)
    flat = np.zeros(count, bool)
    for start in range(0, count, _BLOCK):
        part = slice(start, min(start + _BLOCK, count))
        thumbs = entries.thumbs(np.arange(part.start, part.stop))
        flat[part] = thumbs.reshape(len(thumbs), -1).std(axis=1) < 2  # has no hash to speak of
        values = hashes.coefficients(thumbs)
        cropped[:, part] = [hashes.hashes(value) for value in values]
        turned[:, part] = [hashes.hashes(hashes.turned(values[0], way)) for way in ways]
    allowed = _Allowed(table, entries, flat)
    order = rank[entries.image]
    stages = len(windows) + len(ways) - 1
    proposed = _Proposals(count)
    for number, column in enumerate(cropped):
        tell(number, stages, f"look for near copies in {ndim}D")
        for one, other in _joined(cropped[0], column, order):
            proposed.add(*allowed(one, other), np.full(len(one), number))
    yield from _compared(entries, proposed, windows, limits, None, table)
    for number, way in enumerate(ways[1:], len(windows)):
        tell(number, stages, f"look for near copies in {ndim}D")
        proposed = _Proposals(count)
        for one, other in _joined(turned[number - len(windows) + 1], cropped[0], order):
            proposed.add(*allowed(one, other), np.zeros(len(one), int))
        yield from _compared(entries, proposed, windows, limits, way, table)
    tell(stages, stages, f"look for near copies in {ndim}D")


class _Allowed:
    """Which pairs of entries are worth a comparison."""

    def __init__(self, table: Table, entries: _Entries, flat: np.ndarray) -> None:
        self.record = table.rows["record"][entries.image]
        self.picture = entries.plane < 0
        self.good = ~flat

    def __call__(self, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        good = (self.record[one] != self.record[other]) & self.good[one] & self.good[other]
        good &= self.picture[one] | self.picture[other]  # two volumes are compared as volumes
        return one[good], other[good]


class _Proposals:
    """Pairs of entries and the window in which the first was found in the second; each pair once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pairs: list[np.ndarray] = []
        self._window: list[np.ndarray] = []
        self._held = 0

    def add(self, one: np.ndarray, other: np.ndarray, window: np.ndarray) -> None:
        self._pairs.append(one.astype(np.int64) * self._count + other)
        self._window.append(window[: len(one)].astype(np.int16))
        self._held += len(one)
        if self._held > _MANY:
            self._unique()

    def _unique(self) -> None:
        pairs, first = np.unique(np.concatenate(self._pairs), return_index=True)
        self._pairs, self._window = [pairs], [np.concatenate(self._window)[first]]
        self._held = 0

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(one, other, window), without pairs that stand there the other way round as well."""
        if not self._pairs:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int16)
        self._unique()
        one, other = np.divmod(self._pairs[0], self._count)
        back = np.isin(other * self._count + one, self._pairs[0], assume_unique=True) & (one > other)
        return one[~back], other[~back], self._window[0][~back]


def _joined(
    queries: np.ndarray, base: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of entries with near hashes. Equal hashes are looked up once, then given back to their owners."""
    asked = _Groups(queries, order)
    same = queries is base or np.array_equal(queries, base)
    found = asked if same else _Groups(base, order)
    for one, other in pairs_within(asked.values, found.values):
        yield asked.spread(one, other, found)
    if same:
        everyone = np.arange(len(asked.values))
        one, other = asked.spread(everyone, everyone, asked)
        keep = one != other
        yield one[keep], other[keep]


class _Groups:
    """Distinct hashes, and who has them in order of rank."""

    def __init__(self, column: np.ndarray, order: np.ndarray) -> None:
        self.members = np.lexsort((order, column))
        self.values, self.starts, self.counts = np.unique(
            column[self.members], return_index=True, return_counts=True
        )

    def spread(self, one: np.ndarray, other: np.ndarray, theirs: _Groups) -> tuple[np.ndarray, np.ndarray]:
        """All members of the groups `one` with the first members of the groups `other`."""
        left, right = self.counts[one], np.minimum(theirs.counts[other], EQUAL_HASHES)
        total = left * right
        pair = np.repeat(np.arange(len(one)), total)
        within = np.arange(int(total.sum())) - np.repeat(np.cumsum(total) - total, total)
        first = self.members[self.starts[one][pair] + within // right[pair]]
        second = theirs.members[theirs.starts[other][pair] + within % right[pair]]
        return first, second


def _compared(
    entries: _Entries,
    proposed: _Proposals,
    windows: np.ndarray,
    limits: Thresholds,
    way: hashes.Turn | None,
    table: Table,
) -> Iterator[tuple[np.ndarray, ...]]:
    one, other, window = proposed.arrays()
    least = limits.near_3d if entries.ndim == 3 else limits.near_2d
    if way is not None:
        least = max(least, limits.turned)
    for start in range(0, len(one), _BLOCK):
        part = slice(start, start + _BLOCK)
        left, right = entries.thumbs(one[part]), entries.thumbs(other[part])
        if way is not None:
            left = np.ascontiguousarray(way(left))
        score = scores(left, right, windows[window[part]])
        good = np.flatnonzero(score >= least)
        a, b = one[part][good], other[part][good]
        planes = (entries.plane[a] >= 0) | (entries.plane[b] >= 0)
        kind = np.where(planes, "slice", "near" if way is None else "turned")
        words = np.full(len(good), "as it is" if way is None else way.words)
        yield entries.image[a], entries.image[b], score[good], kind, words
