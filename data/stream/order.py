"""The order of samples as a pure function: position t of a run -> (source, shard, ordinal, epoch).

No shuffle buffer and no state: a run resumes at any position, on any number of ranks and workers, and gets
the same samples. Two choices make that cheap:

- Mixing. The sources have their turns by p_i ~ w_i N_i^alpha, or by N_i exactly (`mixing.py`), so that any
  prefix is fair to within a sample or two.
- Shuffling. A keyed Feistel network with cycle walking (Black and Rogaway, CT-RSA 2002) permutes 0..n-1
  index by index, so that no table is stored and ten million samples start as fast as ten. Price: 6 to
  15 microseconds a position in a batch of 256.

Inside a source, shards are permuted per epoch, consecutive windows of `window` shards are formed, and samples
are permuted inside their window; every epoch of a source is a permutation of all its samples.

An epoch of the run is one of three things. `steps`: there is none, sources repeat as their turns demand.
`strict`: every sample once. `cover`: as many turns as it takes until every sample was seen, small sources
being repeated; the next epoch begins with a fresh permutation of each source, which drops the rest of those
that were read through in part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..draws import mix, stream_key
from ..errors import ConfigError, nearest
from .config import EPOCHS
from .mixing import Parts, Turns

_ROUNDS = 8  # of the Feistel network; four are enough against an adversary, small domains need a few more


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
        epoch: "steps", "strict" or "cover", see the module.
        crops: consecutive positions that share one sample.
        name: keeps the draws of two orders of one run apart.

    Raises:
        ConfigError: no source, an empty source, a weight for an unknown source, alpha outside [0, 1], a mix
            that contradicts a strict epoch.
    """

    def __init__(
        self,
        sources: Sequence[SourceSize],
        *,
        seed: int,
        alpha: float = 0.5,
        window: int | None = None,
        weights: Mapping[str, float] | None = None,
        epoch: str = "steps",
        crops: int = 1,
        name: str = "",
    ) -> None:
        self.sources = tuple(sources)
        self.seed, self.alpha, self.window = seed, alpha, window
        self.epoch, self.crops, self.name = epoch, crops, name
        self._weights = {name: float(weight) for name, weight in sorted((weights or {}).items())}
        self._check()
        self._counts = np.asarray([source.count for source in sources], dtype=np.int64)
        self._orders: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._passes = np.ones_like(self._counts)  # of each source through its samples in one epoch
        self._length = 0  # samples of an epoch; 0: there is none
        if epoch == "strict":
            self._turns = Parts(self._counts)
            self._length = self._turns.total
            return
        self._turns = Turns([s.count**alpha * self._weights.get(s.id, 1.0) for s in sources])
        if epoch == "cover":
            self._length = self._turns.reach(self._counts)
            self._passes = -(-self._turns.counts(self._length) // self._counts)

    def _check(self) -> None:
        ids = [source.id for source in self.sources]
        if not ids:
            raise ConfigError("no source to read: the shards are empty or data.sources/exclude leave none")
        for source in self.sources:
            if source.count < 1 or min(source.shard_counts) < 0:
                raise ConfigError(f"source {source.id} holds no samples: exclude it or rebuild the shards")
        for name, weight in self._weights.items():
            if name not in ids:
                raise ConfigError(f"data.weights names {name}{nearest(name, set(ids))}")
            if not weight > 0:
                raise ConfigError(f"data.weights.{name} is {weight}: use a factor above 0, or data.exclude")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(
                f"data.alpha is {self.alpha}: it lies between 0 (all sources alike) and 1 (by size)"
            )
        if self.window is not None and self.window < 1:
            raise ConfigError(
                f"data.window is {self.window}: write at least 1 shard, or leave it out for all"
            )
        if self.epoch not in EPOCHS:
            raise ConfigError(f"data.epoch is {self.epoch!r}{nearest(self.epoch, EPOCHS)}")
        if self.epoch == "strict" and len(ids) > 1:
            if self.alpha != 1:
                raise ConfigError(
                    f"data.epoch strict reads each sample once, data.alpha {self.alpha:g} repeats small "
                    "sources: set data.alpha=1, or data.epoch=cover"
                )
            if len({self._weights.get(name, 1.0) for name in ids}) > 1:
                raise ConfigError(
                    "data.epoch strict reads each sample once, data.weights repeat some sources: leave "
                    "data.weights out, or set data.epoch=cover"
                )

    @property
    def probabilities(self) -> np.ndarray:
        """p_i of the sources: float64 [sources]. Multiples of 1/M, or N_i / N in strict epochs."""
        return self._turns.probabilities

    @property
    def epoch_samples(self) -> int | None:
        """Positions of one epoch; None where there is none (`steps`)."""
        return self._length * self.crops or None

    def counts(self, samples: int) -> np.ndarray:
        """Samples that each source gives among the first `samples` positions: int64 [sources]."""
        whole, rest = divmod(int(samples), self.crops)
        counts = self._dealt(whole) * self.crops
        if rest:
            counts += rest * (self._dealt(whole + 1) - self._dealt(whole))
        return counts

    def _dealt(self, turns: int) -> np.ndarray:
        """How many of the first `turns` samples each source gives: int64 [sources]."""
        if not self._length:
            return self._turns.counts(turns)
        epoch, turns = divmod(turns, self._length)
        return epoch * self._turns.counts(self._length) + self._turns.counts(turns)

    def locate(self, positions: np.ndarray | Sequence[int] | range) -> Located:
        """Find the samples at these positions (each >= 0, any order): arrays int64 [B].

        Raises:
            ValueError: a position is negative.
        """
        turn = np.asarray(positions, dtype=np.int64).reshape(-1)
        if turn.size and turn.min() < 0:
            raise ValueError(f"position {turn.min()} is negative")
        turn = turn // self.crops
        if not self._length:
            return self.locate_in(*self._turns.at(turn))
        epoch, turn = np.divmod(turn, self._length)
        source, occurrence = self._turns.at(turn)
        return self.locate_in(source, occurrence + epoch * (self._passes * self._counts)[source])

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
            keys[rows] = window + np.uint64(
                stream_key(self.seed, f"{self.name}samples:{self.sources[i].id}:{e}")
            )
        shuffled = first + permute(index - first, size, mix(keys))
        for (i, e), rows in groups.items():
            shards, ends = self._shard_order(i, e)
            place = np.searchsorted(ends, shuffled[rows], side="right")
            shard[rows] = shards[place]
            first[rows] = np.where(place > 0, ends[place - 1], 0)
        return Located(source.astype(np.int64), shard, shuffled - first, epoch)

    def windows(self, found: Located) -> np.ndarray:
        """The window of its epoch in which each sample lies: int64 [B]."""
        window = np.zeros_like(found.shard)
        for i, e in set(zip(found.source.tolist(), found.epoch.tolist(), strict=True)):
            rows = (found.source == i) & (found.epoch == e)
            shards, _ = self._shard_order(i, e)
            if self.window is not None and self.window < len(shards):
                window[rows] = np.argsort(shards)[found.shard[rows]] // self.window
        return window

    def window_shards(self, source: int, epoch: int, window: int) -> list[int]:
        """Shards of a window of a source; behind the last window of an epoch comes the first of the next."""
        shards, _ = self._shard_order(source, epoch)
        width = self.window or len(shards)
        if window * width >= len(shards):
            shards, window = self._shard_order(source, epoch + 1)[0], 0
        return shards[window * width : (window + 1) * width].tolist()

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
            keys = np.full(
                shards, stream_key(self.seed, f"{self.name}shards:{entry.id}:{epoch}"), dtype=np.uint64
            )
            order = permute(np.arange(shards, dtype=np.int64), shards, keys)
            found = order, np.cumsum(np.asarray(entry.shard_counts, dtype=np.int64)[order])
            if len(self._orders) >= 1024:  # a long run over a small source passes through many epochs
                self._orders.clear()
            self._orders[source, epoch] = found
        return found

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that changes the order."""
        facts: list[Any] = [
            self.seed,
            self.alpha,
            self.window,
            self._weights,
            [(s.id, s.shard_counts) for s in self.sources],
        ]
        # Only what differs from the plain order is added: its fingerprint stays what it was.
        facts += [fact for fact in (self.epoch, self.crops, self.name) if fact not in ("steps", 1, "")]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()

    def describe(self, samples: int) -> list[str]:
        """One line a source for the log: its share and how often `samples` positions read through it."""
        passes = self.counts(samples) / (self._counts * self.crops)
        least = passes.min()
        lines = []
        for s, p, n in zip(self.sources, self.probabilities, passes, strict=True):
            line = f"{s.id}: {s.count} samples, {100 * p:.2f} % of the batches, {n:.2f} passes"
            often = n / max(1.0, least)
            if often >= 2:
                why = f"alpha {self.alpha:g} < 1" if self.alpha < 1 else "its weight"
                line += f" ({why} repeats it {often:.0f} times)"
            lines.append(f"{line} in {samples} samples")
        return lines


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
