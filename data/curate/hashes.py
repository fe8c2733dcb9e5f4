"""Perceptual hashes of thumbnails: 63 signs of low frequencies, for the image, its crops and its turns.

The hash is that of Zauner (2010, Implementation and Benchmarking of Perceptual Image Hash Functions,
section 3.2.1), with the sign of each coefficient of a cosine transform instead of its comparison with
their median: 8 x 8 coefficients of a picture, 4 x 4 x 4 of a volume, without the mean. A crop of 5 % moves
9 of the 63 bits (17 in one of twenty), as far as strangers lie apart. So the hash of one image is looked
up among the hashes of several crops of the other: along each axis the whole, the middle 95 %, the first
and the last. All crops are one product with a small matrix: 16 hashes of a picture take 20 us.

A turn or mirror image changes signs and swaps axes of the coefficients, so its hash costs nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

VERSION = 1  # of thumbnails and hashes: part of every unit's inputs

CROP = 0.05  # share of each axis that a crop may have lost
WINDOWS = ((0.0, 1.0), (CROP / 2, 1 - CROP / 2), (0.0, 1 - CROP), (CROP, 1.0))
ORDERS = {2: 8, 3: 4}  # cosines an axis, by dimensions
_FINE = 4  # samples a cell, over which the cosines are integrated


@dataclass(frozen=True, slots=True)
class Turn:
    """One of the turns and mirror images of a grid: axes in new order, then those that are reversed."""

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    def __call__(self, thumbs: np.ndarray) -> np.ndarray:
        """Turn thumbnails [N, ...]."""
        turned = thumbs.transpose(0, *(axis + 1 for axis in self.axes))
        return turned[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in self.flips))]

    @property
    def words(self) -> str:
        """`as it is`, `mirrored` (an odd number of reflections) or `turned`."""
        if not any(self.flips) and self.axes == tuple(sorted(self.axes)):
            return "as it is"
        swaps = sum(a > b for a, b in itertools.combinations(self.axes, 2))
        return "mirrored" if (swaps + sum(self.flips)) % 2 else "turned"


def turns(ndim: int) -> list[Turn]:
    """All turns by right angles and mirror images: 8 of a picture; of a volume the 8 that keep its axes."""
    orders = list(itertools.permutations(range(2))) if ndim == 2 else [(0, 1, 2)]
    flips = list(itertools.product((False, True), repeat=ndim))
    return [Turn(axes, flip) for axes in orders for flip in flips]


def crops(ndim: int) -> list[tuple[tuple[float, float], ...]]:
    """The crops that are looked up: a window an axis, the whole image first."""
    return list(itertools.product(WINDOWS, repeat=ndim))


def coefficients(thumbs: np.ndarray, *, cropped: bool = True) -> np.ndarray:
    """Low frequencies of thumbnails [N, ...] uint8: float32 [crops, N, orders, orders(, orders)]."""
    ndim = thumbs.ndim - 1
    windows = WINDOWS if cropped else WINDOWS[:1]
    order, count = ORDERS[ndim], len(windows)
    matrix = _cosines(thumbs.shape[1], order, windows)
    values = thumbs.astype(np.float32)
    values -= values.mean(axis=tuple(range(1, ndim + 1)), keepdims=True)
    for axis in range(1, ndim + 1):
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    split = values.reshape(len(thumbs), *((count, order) * ndim))
    split = split.transpose(*range(1, 2 * ndim, 2), 0, *range(2, 2 * ndim + 1, 2))
    return np.ascontiguousarray(split.reshape(count**ndim, len(thumbs), *(order,) * ndim))


def turned(values: np.ndarray, turn: Turn) -> np.ndarray:
    """The coefficients [N, ...] of the turned thumbnails."""
    found = values.transpose(0, *(axis + 1 for axis in turn.axes))
    for axis, flip in enumerate(turn.flips):
        if flip:
            signs = (-1.0) ** np.arange(found.shape[axis + 1])
            found = found * signs.reshape([-1 if n == axis else 1 for n in range(len(turn.flips))])
    return found


def hashes(values: np.ndarray) -> np.ndarray:
    """Signs of coefficients [N, orders ...] as uint64 [N]; neighbouring frequencies lie far apart in it."""
    count = len(values)
    flat = values.reshape(count, -1)[:, _bit_order(values.ndim - 1)] > 0
    bits = np.zeros((count, 64), bool)
    bits[:, : flat.shape[1]] = flat
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]


@lru_cache(maxsize=8)
def _bit_order(ndim: int) -> np.ndarray:
    """Places of the coefficients but the mean, such that each third of the hash has low and high ones.

    The index looks up thirds: one of low frequencies alone would hardly tell two chest X-rays apart.
    """
    order = ORDERS[ndim]
    sums = np.indices((order,) * ndim).sum(axis=0).ravel()
    rising = np.argsort(sums, kind="stable")[1:]
    return np.concatenate([rising[start::3] for start in range(3)])


@lru_cache(maxsize=8)
def _cosines(side: int, order: int, windows: tuple[tuple[float, float], ...]) -> np.ndarray:
    """[windows * order, side] float32: type-II cosines over each window of a line of `side` cells."""
    count = _FINE * side
    inside = (np.arange(count) + 0.5) / count
    rows = []
    for low, high in windows:
        places = (low + (high - low) * inside) * side - 0.5
        left = np.clip(np.floor(places), 0, side - 2).astype(int)
        share = np.clip(places - left, 0, 1)
        for number in range(order):
            row = np.zeros(side)
            cosine = np.cos(np.pi * number * inside) / count
            np.add.at(row, left, cosine * (1 - share))
            np.add.at(row, left + 1, cosine * share)
            rows.append(row)
    return np.asarray(rows, np.float32)
