"""Deal turns fairly: which source gives sample t, which shape class step t has, as a function of t alone.

Two dealers with one interface: turn t -> (who, how many turns it had before), and the counts of any prefix.

- `Turns` deals given shares. They are rounded to multiples of 1/M, M = 2^12 or more, and Tijdeman's rule (The
  chairman assignment problem, Discrete Mathematics 32, 1980) deals M turns so that after any t of them each
  had within one turn of p t. The turns repeat with period M, hence the counts at any t are one division and
  one look-up away. Plain error diffusion ("largest deficit first") is off by 1.2 turns with skewed shares.
  Price: a share is at least 1/M; it is rounded by at most 2.5 % while M <= 2^16 allows it.
- `Parts` deals exact counts once through, for an epoch in which everybody has just so many turns. A table
  would be as long as the epoch, so turns are halved down a Huffman tree: of t turns of a node, the left child
  has had round(t n_left / n). Price: a prefix is within 1.7 turns of its due (1.25 was met) instead of one:
  each level adds at most 1/2, times the leaf's share of that level, and up a Huffman tree these shares fall
  at least as 1, 1, 1/2, 1/3, 1/5, 1/8 ...: the reciprocals of Fibonacci's numbers add up to 3.36.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

_PERIOD = (1 << 12, 1 << 16)  # least and largest M
_ROUNDING = 0.025  # M doubles until every share is met this closely


class Turns:
    """Turns for ever, in shares near to `wanted` (positive, any sum); see the module."""

    def __init__(self, wanted: Sequence[float] | np.ndarray) -> None:
        self.shares = rational(np.asarray(wanted, dtype=np.float64))
        self._who = deal(self.shares.tolist())
        grouped = np.argsort(self._who, kind="stable")  # the turns of the first, of the second, ...
        self._starts = np.cumsum(self.shares) - self.shares
        self._grouped = grouped
        self._before = np.empty_like(self._who)
        self._before[grouped] = np.arange(len(grouped)) - np.repeat(self._starts, self.shares)

    @property
    def probabilities(self) -> np.ndarray:
        """The shares, exact multiples of 1/M: float64 [k]."""
        return self.shares / self.shares.sum()

    def at(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who has these turns (int64 [B], >= 0), and how many turns it had before: int64 [B] both."""
        period, turn = np.divmod(turns, len(self._who))
        who = self._who[turn]
        return who, period * self.shares[who] + self._before[turn]

    def counts(self, turns: int) -> np.ndarray:
        """How many of the first `turns` turns each has had: int64 [k]."""
        full, rest = divmod(int(turns), len(self._who))
        return full * self.shares + np.bincount(self._who[:rest], minlength=len(self.shares))

    def reach(self, counts: Sequence[int] | np.ndarray) -> int:
        """The fewest turns after which each has had at least `counts` [k] of them."""
        wanted = np.asarray(counts, dtype=np.int64)
        period, index = np.divmod(np.maximum(wanted - 1, 0), self.shares)
        last = period * len(self._who) + self._grouped[self._starts + index]
        return int(np.where(wanted > 0, last + 1, 0).max())


class Parts:
    """`counts` [k] turns, each at least one, dealt once through: turns 0 .. sum - 1; see the module."""

    def __init__(self, counts: Sequence[int] | np.ndarray) -> None:
        self.shares = np.asarray(counts, dtype=np.int64)
        self.total = int(self.shares.sum())
        if self.total > 2**31:
            raise ValueError(f"{self.total} turns: halving them in 64-bit integers ends at 2^31")
        self._left, self._right, self._sizes = _huffman(self.shares.tolist())

    @property
    def probabilities(self) -> np.ndarray:
        """The shares of the whole: float64 [k]."""
        return self.shares / self.total

    def at(self, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who has these turns (int64 [B], 0 <= turn < total), and how many turns it had before."""
        k = len(self.shares)
        node, turn = np.full(len(turns), len(self._sizes) - 1), np.array(turns, dtype=np.int64)
        inner = np.flatnonzero(node >= k)
        while inner.size:
            at, t = node[inner], turn[inner]
            left = self._left[at - k]
            before, after = self._to_left(at, t), self._to_left(at, t + 1)
            goes_left = after > before
            node[inner] = np.where(goes_left, left, self._right[at - k])
            turn[inner] = np.where(goes_left, before, t - before)
            inner = inner[node[inner] >= k]
        return node.astype(np.int64), turn

    def counts(self, turns: int) -> np.ndarray:
        """How many of the first `turns` turns (at most the total) each has had: int64 [k]."""
        k = len(self.shares)
        had = np.zeros(len(self._sizes), dtype=np.int64)
        had[-1] = turns
        for node in range(len(self._sizes) - 1, k - 1, -1):  # a parent comes after its children
            left = int(self._to_left(np.asarray([node]), had[node : node + 1])[0])
            had[self._left[node - k]], had[self._right[node - k]] = left, had[node] - left
        return had[:k]

    def _to_left(self, node: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """round(turns n_left / n): how many of the first `turns` turns of a node its left child has."""
        size = self._sizes[node]
        return (2 * turns * self._sizes[self._left[node - len(self.shares)]] + size) // (2 * size)


def _huffman(counts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right child of each inner node [k - 1], and the size of all nodes [2k - 1], leaves first."""
    sizes, left, right = list(counts), [], []
    heap = [(size, node) for node, size in enumerate(sizes)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, first), (b, second) = heapq.heappop(heap), heapq.heappop(heap)
        left.append(second)
        right.append(first)
        heapq.heappush(heap, (a + b, len(sizes)))
        sizes.append(a + b)
    return tuple(np.asarray(values, dtype=np.int64) for values in (left, right, sizes))  # type: ignore


def deal(shares: Sequence[int]) -> np.ndarray:
    """Deal sum(shares) turns so that every prefix is within one of its due (Tijdeman 1980).

    A source may take its j-th turn (j = 0, 1, ...) once its due exceeds j by 1/(2k-2) and must before the due
    exceeds j by 1 - 1/(2k-2); earliest deadline first then meets all deadlines. All integer arithmetic.

    Returns:
        int64 [sum(shares)], the index of the source at each turn.
    """
    k, total = len(shares), sum(shares)
    if k == 1:
        return np.zeros(total, dtype=np.int64)
    slack = 2 * k - 2
    waiting: list[tuple[int, int, int]] = []  # (release, deadline, source) of each source's next turn
    ready: list[tuple[int, int]] = []  # (deadline, source)

    def push(source: int, turn: int) -> None:
        # release: least t whose due exceeds `turn` by 1/slack; deadline: the first t whose due would exceed
        # it by more than 1 - 1/slack if the turn were not taken then.
        n = shares[source] * slack
        release = -(-total * (turn * slack + 1) // n)
        deadline = total * (turn * slack + slack - 1) // n + 1
        heapq.heappush(waiting, (release, deadline, source))

    taken = [0] * k
    for source in range(k):
        push(source, 0)
    turns = np.empty(total, dtype=np.int64)
    for t in range(1, total + 1):
        while waiting and waiting[0][0] <= t:
            _, deadline, source = heapq.heappop(waiting)
            heapq.heappush(ready, (deadline, source))
        _, source = heapq.heappop(ready)
        turns[t - 1] = source
        taken[source] += 1
        if taken[source] < shares[source]:
            push(source, taken[source])
    return turns


def rational(wanted: np.ndarray) -> np.ndarray:
    """Integers n_i >= 1 with sum M (a power of two) and n_i / M near wanted_i / sum(wanted): int64 [k]."""
    p = wanted / wanted.sum()
    period = _PERIOD[0]
    while period < 4 * len(p):
        period *= 2
    while True:
        shares = _largest_remainder(p, period)
        if period >= _PERIOD[1] or np.abs(shares / (p * period) - 1).max() <= _ROUNDING:
            return shares
        period *= 2


def _largest_remainder(p: np.ndarray, total: int) -> np.ndarray:
    """Round p * total to integers of at least one that add up to total: int64 [k]."""
    shares = np.maximum(np.floor(p * total).astype(np.int64), 1)
    while (missing := total - int(shares.sum())) != 0:
        excess = shares - p * total
        if missing > 0:
            shares[np.argsort(excess, kind="stable")[:missing]] += 1
        else:
            relative = np.where(shares > 1, excess / shares, -np.inf)
            shares[np.argsort(-relative, kind="stable")[: min(-missing, int((shares > 1).sum()))]] -= 1
    return shares
