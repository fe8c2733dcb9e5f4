"""The index finds exactly the pairs that a comparison of all pairs finds."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.curate import index
from medloom.data.curate.index import pairs_within


def brute(queries: np.ndarray, base: np.ndarray, radius: int) -> set[tuple[int, int]]:
    one, other = np.nonzero(np.bitwise_count(queries[:, None] ^ base[None]) <= radius)
    pairs = zip(one.tolist(), other.tolist(), strict=True)
    return {(a, b) for a, b in pairs if queries is not base or a < b}


def found(queries: np.ndarray, base: np.ndarray, radius: int) -> list[tuple[int, int]]:
    return [
        pair
        for one, other in pairs_within(queries, base, radius=radius)
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    ]


def neighbours(seed: int, count: int, skewed: bool) -> np.ndarray:
    """Hashes in clusters, so that every distance from 0 to 12 occurs."""
    rng = np.random.default_rng(seed)
    chance = np.full(63, 0.5) if not skewed else np.where(np.arange(63) < 40, 0.02, 0.5)
    bits = rng.random((count, 63)) < chance
    for row in range(1, count, 2):
        bits[row] = bits[row - 1]
        flips = rng.choice(63, rng.integers(0, 13), replace=False)
        bits[row, flips] ^= True
    padded = np.zeros((count, 64), bool)
    padded[:, :63] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u8")[:, 0]


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("radius", [0, 3, 8])
def test_all_pairs_and_each_once(skewed, radius):
    hashes = neighbours(1, 1200, skewed)
    pairs = found(hashes, hashes, radius)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == brute(hashes, hashes, radius)
    assert pairs


def test_two_sets():
    one, other = neighbours(1, 500, True), neighbours(2, 700, True)
    other[:50] = one[:50] ^ np.uint64(0b1011)
    pairs = found(one, other, 8)
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == brute(one, other, 8)


def test_small_blocks_change_nothing(monkeypatch):
    hashes = neighbours(3, 400, True)
    whole = set(found(hashes, hashes, 8))
    monkeypatch.setattr(index, "_QUERIES", 37)
    monkeypatch.setattr(index, "_MATCHES", 100)
    assert set(found(hashes, hashes, 8)) == whole


def test_a_radius_that_would_miss_pairs_is_refused():
    with pytest.raises(ValueError, match="would miss"):
        list(pairs_within(np.zeros(2, np.uint64), np.zeros(2, np.uint64), radius=9))
