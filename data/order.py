"""The order of samples as a pure function: position t of a run -> (source, shard, ordinal, epoch).

No shuffle buffer and no state: a run resumes at any position, on any number of ranks and workers, and gets
the same samples. Two choices make that cheap:

- Mixing. Probabilities p_i ~ w_i N_i^alpha are rounded to multiples of 1/M, M = 2^12 or more, and Tijdeman's
  rule (The chairman assignment problem, Discrete Mathematics 32, 1980) deals M turns so that after any t of
  them source i had within one sample of p_i t. The turns repeat with period M, hence the counts at any t are
  one division and one look-up away. Plain error diffusion ("largest deficit first") is off by 1.2 samples
  with skewed sources. Price: a source gets at least 1/M of the samples; p_i is rounded by at most 2.5 %
  while M <= 2^16 allows it.
- Shuffling. A keyed Feistel network with cycle walking (Black and Rogaway, CT-RSA 2002) permutes 0..n-1
  index by index, so that no table is stored and ten million samples start as fast as ten. Price: 6 to
  15 microseconds a position in a batch of 256.

Inside a source, shards are permuted per epoch, consecutive windows of `window` shards are formed, and samples
are permuted inside their window; every epoch of a source is a permutation of all its samples.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .draws import mix, stream_key
from .errors import CheckpointError, ConfigError, nearest

_ROUNDS = 8  # of the Feistel network; four are enough against an adversary, small domains need a few more
_PERIOD = (1 << 12, 1 << 16)  # least and largest M
_ROUNDING = 0.025  # M doubles until every p_i is met this closely


@dataclass(frozen=True, slots=True)
class SourceSize:
    """One source of samples: its id and the number of samples in each of its shards, in manifest order."""

    id: str
    shard_counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """Samples in all shards."""
        return sum(self.shard_counts)


class Located(NamedTuple):
    """Where positions [B] lie; all int64 [B]."""

    source: np.ndarray  # index into the sources
    shard: np.ndarray  # index into the shards of that source
    ordinal: np.ndarray  # sample in that shard
    epoch: np.ndarray  # how often the source was read through before


class Order:
    """The order of a run over its sources.

    Args:
        sources: at least one, none empty; a change of any count changes the order.
        seed: any integer.
        alpha: p_i ~ N_i^alpha: 1 draws by size, 0 draws all sources alike.
        window: shards that are shuffled together; None: all shards of the source.
        weights: extra factor on p_i by source id.

    Raises:
        ConfigError: no source, an empty source, a weight for an unknown source, alpha outside [0, 1].
    """

    def __init__(
        self,
        sources: Sequence[SourceSize],
        *,
        seed: int,
        alpha: float = 0.5,
        window: int | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        ids = [source.id for source in sources]
        if not ids:
            raise ConfigError("no source to read: the shards are empty or data.sources/exclude leave none")
        for source in sources:
            if source.count < 1 or min(source.shard_counts) < 0:
                raise ConfigError(f"source {source.id} holds no samples: exclude it or rebuild the shards")
        for name, weight in (weights or {}).items():
            if name not in ids:
                raise ConfigError(f"data.weights names {name}{nearest(name, set(ids))}")
            if not weight > 0:
                raise ConfigError(f"data.weights.{name} is {weight}: use a factor above 0, or data.exclude")
        if not 0 <= alpha <= 1:
            raise ConfigError(f"data.alpha is {alpha}: it lies between 0 (all sources alike) and 1 (by size)")
        if window is not None and window < 1:
            raise ConfigError(f"data.window is {window}: write at least 1 shard, or leave it out for all")
        self.sources = tuple(sources)
        self.seed, self.alpha, self.window = seed, alpha, window
        self._weights = {name: float(weight) for name, weight in sorted((weights or {}).items())}
        wanted = [s.count**alpha * self._weights.get(s.id, 1.0) for s in sources]
        self._shares = _rational(np.asarray(wanted, dtype=np.float64))
        self._turns = deal(self._shares.tolist())
        self._before = _earlier_turns(self._turns, len(ids))
        self._orders: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._counts = np.asarray([source.count for source in sources], dtype=np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """p_i of the sources, exact multiples of 1/M: float64 [sources]."""
        return self._shares / self._shares.sum()

    def counts(self, samples: int) -> np.ndarray:
        """Samples that each source gives among the first `samples` positions: int64 [sources]."""
        full, rest = divmod(samples, len(self._turns))
        return full * self._shares + np.bincount(self._turns[:rest], minlength=len(self.sources))

    def locate(self, positions: np.ndarray | Sequence[int] | range) -> Located:
        """Find the samples at these positions (each >= 0, any order): arrays int64 [B].

        Raises:
            ValueError: a position is negative.
        """
        at = np.asarray(positions, dtype=np.int64).reshape(-1)
        if at.size and at.min() < 0:
            raise ValueError(f"position {at.min()} is negative")
        period, turn = np.divmod(at, len(self._turns))
        source = self._turns[turn]
        occurrence = period * self._shares[source] + self._before[turn]
        return self.locate_in(source, occurrence)

    def locate_in(self, source: np.ndarray, occurrence: np.ndarray) -> Located:
        """Find the sample that a source gives at its own turn `occurrence` (0 is its first): arrays [B]."""
        epoch, index = np.divmod(occurrence, self._counts[source])
        shard, first, size = np.empty_like(index), np.empty_like(index), np.empty_like(index)
        keys = np.empty(len(index), dtype=np.uint64)
        # A batch lies in few epochs: the loops are about as long as the number of sources.
        groups = {pair: [] for pair in zip(source.tolist(), epoch.tolist(), strict=True)}
        for row, pair in enumerate(zip(source.tolist(), epoch.tolist(), strict=True)):
            groups[pair].append(row)
        for (i, e), rows in groups.items():
            first[rows], size[rows], window = self._window(i, e, index[rows])
            keys[rows] = window + np.uint64(stream_key(self.seed, f"samples:{self.sources[i].id}:{e}"))
        shuffled = first + permute(index - first, size, mix(keys))
        for (i, e), rows in groups.items():
            shards, ends = self._shard_order(i, e)
            place = np.searchsorted(ends, shuffled[rows], side="right")
            shard[rows] = shards[place]
            first[rows] = np.where(place > 0, ends[place - 1], 0)
        return Located(source.astype(np.int64), shard, shuffled - first, epoch)

    def _window(self, source: int, epoch: int, index: np.ndarray) -> tuple[Any, Any, np.ndarray]:
        """First sample, size and number (uint64) of the window that holds each index [B] of an epoch."""
        shards, ends = self._shard_order(source, epoch)
        width = self.window or len(shards)
        if width >= len(shards):
            return 0, int(ends[-1]), np.zeros(len(index), dtype=np.uint64)
        last = ends[np.minimum(np.arange(width, len(shards) + width, width), len(shards)) - 1]
        window = np.searchsorted(last, index, side="right")
        first = np.where(window > 0, last[window - 1], 0)
        return first, last[window] - first, window.astype(np.uint64)

    def _shard_order(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards of an epoch in their order, and the running count of samples behind each: int64 [S] both."""
        found = self._orders.get((source, epoch))
        if found is None:
            entry, shards = self.sources[source], len(self.sources[source].shard_counts)
            keys = np.full(shards, stream_key(self.seed, f"shards:{entry.id}:{epoch}"), dtype=np.uint64)
            order = permute(np.arange(shards, dtype=np.int64), shards, keys)
            found = order, np.cumsum(np.asarray(entry.shard_counts, dtype=np.int64)[order])
            if len(self._orders) >= 1024:  # a long run over a small source passes through many epochs
                self._orders.clear()
            self._orders[source, epoch] = found
        return found

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes the order."""
        facts = [
            self.seed,
            self.alpha,
            self.window,
            self._weights,
            [(s.id, s.shard_counts) for s in self.sources],
        ]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def state(self, consumed: int, manifest: str = "") -> dict[str, Any]:
        """All that a checkpoint needs, under 200 bytes as JSON and the same on every rank.

        Args:
            consumed: samples trained on, over all ranks; never what a loader has read ahead.
            manifest: hash of the manifest of the shards.
        """
        return {
            "order": self.fingerprint,
            "manifest": manifest[:16],
            "seed": self.seed,
            "alpha": self.alpha,
            "consumed": int(consumed),
        }

    def resume(self, state: Mapping[str, Any], manifest: str = "") -> int:
        """Return the position to go on from: `consumed` of a state.

        Raises:
            CheckpointError: the state belongs to another order (seed, sources, mixing) or other shards.
        """
        now = self.state(0, manifest)
        for key in ("seed", "alpha", "manifest", "order"):
            if state.get(key) != now[key]:
                raise CheckpointError(
                    f"cannot resume: data {key} was {state.get(key)} and is {now[key]}; resume with the "
                    "shards and the data section of the run, or start a new run with init_from"
                )
        return int(state["consumed"])

    def describe(self, samples: int) -> list[str]:
        """One line a source for the log: its share and how often `samples` positions read through it."""
        passes = self.counts(samples) / self._counts
        return [
            f"{s.id}: {s.count} samples, {100 * p:.2f} % of the batches, {n:.2f} passes in {samples} samples"
            for s, p, n in zip(self.sources, self.probabilities, passes, strict=True)
        ]


def rank_positions(step: int, global_batch: int, rank: int, world: int) -> range:
    """Positions of `rank` at optimiser step `step`: the ranks' ranges partition the global batch."""
    start = step * global_batch
    return range(start + global_batch * rank // world, start + global_batch * (rank + 1) // world)


def deal(shares: Sequence[int]) -> np.ndarray:
    """Deal sum(shares) turns to the sources so that every prefix is within one of its due (Tijdeman 1980).

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


def permute(index: np.ndarray, size: np.ndarray | int, keys: np.ndarray) -> np.ndarray:
    """Keyed permutations of 0..size-1, applied element by element.

    Args:
        index: int64 [B], 0 <= index < size.
        size: int64 [B] or one integer.
        keys: uint64 [B]; each pair (size, key) is a permutation of its own.

    Returns:
        int64 [B].
    """
    size = np.broadcast_to(np.asarray(size, dtype=np.int64), index.shape)
    value = index.astype(np.uint64)
    half = np.uint64(1) + _half_bits(size)
    low = (np.uint64(1) << half) - np.uint64(1)
    todo = np.arange(len(value))
    # The network permutes the next power of four, less than four times `size`; walking on until the value is
    # inside again keeps it a permutation (the walk follows a cycle that started inside).
    while todo.size:
        v, h, m, k = value[todo], half[todo], low[todo], keys[todo]
        left, right = v >> h, v & m
        for turn in range(_ROUNDS):
            left, right = right, left ^ (mix(right + k + np.uint64(turn << 32)) & m)
        value[todo] = (left << h) | right
        todo = todo[value[todo] >= size[todo].astype(np.uint64)]
    return value.astype(np.int64)


def _half_bits(size: np.ndarray) -> np.ndarray:
    """Least h with 4^(h + 1) >= size: uint64."""
    bits = np.ceil(np.log2(np.maximum(size, 4)) / 2).astype(np.int64)
    return (bits - 1).astype(np.uint64)


def _rational(wanted: np.ndarray) -> np.ndarray:
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


def _earlier_turns(turns: np.ndarray, sources: int) -> np.ndarray:
    """How often the source of each turn had one before it in the period: int64 [M]."""
    before = np.empty_like(turns)
    for source in range(sources):
        mine = turns == source
        before[mine] = np.arange(mine.sum())
    return before
