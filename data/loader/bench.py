"""How fast these shards load on this machine: what limits, and whether a training step would have to wait.

Every number is repeated, in turns with the others, and told with its spread; what other processes took of the
CPU meanwhile is told too, since on a loaded machine all of it is a lower bound. A step of the GPU is a sleep:
the training process is idle then, as it is behind an asynchronous device. Costs about
repeats x seconds x loaders x (steps + 1).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from ..stream.config import StreamConfig
from ..stream.stream import Stream
from .bench_stages import Stages, endless, stages, turn
from .usage import Load

KEEPS_UP = 0.05  # a step that waits for no more than this share of its time has enough data
SPARE = 1.25  # workers advised beyond those that would just do

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Rate:
    """A loader with nobody waiting behind it."""

    workers: int
    crops_per_s: Spread
    cpu_ms: Spread  # a crop, over all processes


@dataclass(frozen=True, slots=True)
class Wait:
    """A loader behind a training step."""

    workers: int
    step_ms: float
    wait_ms: Spread  # a step waits for its batch

    @property
    def keeps_up(self) -> bool:
        """Whether the step hardly waits, in the median repeat."""
        return self.wait_ms.median <= KEEPS_UP * self.step_ms


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Everything that was measured, and what follows from it."""

    stages: Stages
    rates: list[Rate]
    waits: list[Wait]
    batch: int
    cores: int
    others: float  # share of the machine's CPU time that other processes took meanwhile

    @property
    def limit(self) -> str:
        """The stage that costs most, in words; cold where that is worse."""
        s = self.stages
        parts = {"decoding": s.decode_ms, "the disk (page cache)": s.read_ms, "transport": s.transport_ms}
        name = max(parts, key=lambda part: parts[part])
        share = 100 * parts[name] / sum(parts.values())
        words = f"warm: {name} limits, {share:.0f} % of {sum(parts.values()):.3g} ms a crop"
        if s.cold_read_ms is None:
            return f"{words}; cold: not measured, the shards are not on a disk that can be made cold"
        if s.cold_read_ms > s.decode_ms:
            return f"{words}; cold: the disk limits, {s.cold_read_ms:.3g} ms to read a crop"
        return f"{words}; cold: decoding still limits, {s.cold_read_ms:.3g} ms to read a crop"

    def workers_for(self, step_ms: float) -> int | None:
        """Workers that a step of this length needs, a quarter to spare; None: more than there are cores."""
        needed = self.batch / step_ms * self.stages.crop_ms
        workers = max(1, math.ceil(needed * SPARE))
        return workers if workers <= self.cores else None

    @property
    def prefetch(self) -> int:
        """Batches to read ahead: as many as the slowest batch takes longer than the usual one, at least 2."""
        return min(8, max(2, math.ceil(self.stages.unevenness)))


def bench(
    config: StreamConfig,
    *,
    workers: Sequence[int],
    step_ms: Sequence[float],
    seconds: float = 1.0,
    repeats: int = 3,
    crops: int = 32,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure the loader of a data section.

    Args:
        config: its `workers` is replaced by each of `workers`.
        step_ms: lengths of the simulated training steps.
        seconds: of each turn, at least.
        repeats: turns of each number.
        crops: read one by one for the stages.

    Raises:
        ConfigError, ShardError: see `Stream`.
    """
    load = Load.now()
    tell = _Counter(progress, repeats * len(workers) * (len(step_ms) + 1) + 1)
    tell("stages")
    measured = stages(Stream(replace(config, workers=1)), crops=crops, seconds=seconds)
    rates: dict[int, list[tuple[float, float]]] = {count: [] for count in workers}
    waits: dict[tuple[int, float], list[float]] = {(n, s): [] for n in workers for s in step_ms}
    loaders = {count: endless(Stream(replace(config, workers=count))) for count in workers}
    try:
        batches = {count: iter(opened) for count, opened in loaders.items()}
        for count in [*workers] * repeats:
            tell(f"{count} workers")
            rates[count].append(turn(batches[count], seconds, warm=count * (config.prefetch + 1)))
            for step in step_ms:
                tell(f"{count} workers, step of {step:g} ms")
                waits[count, step].append(_waited(batches[count], step, seconds))
    finally:
        for opened in loaders.values():
            opened.close()
    return BenchResult(
        stages=measured,
        rates=[_rate(count, rows) for count, rows in rates.items()],
        waits=[Wait(count, step, Spread.of(values)) for (count, step), values in waits.items()],
        batch=config.batch_size,
        cores=_cores(),
        others=load.share_of_others(),
    )


class _Counter:
    """Tells the progress, one more at each call."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.total, f"measure | {what}")
        self.done += 1


def _rate(workers: int, rows: list[tuple[float, float]]) -> Rate:
    return Rate(workers, Spread.of([rate for rate, _ in rows]), Spread.of([1000 * cpu for _, cpu in rows]))


def _waited(batches: Iterator[dict[str, Any]], step_ms: float, seconds: float) -> float:
    """Milliseconds that a step waits for its batch: mean over the second half of a turn.

    In the first half the queues come to where this step keeps them, whatever they held before.
    """
    waits: list[float] = []
    start = time.perf_counter()
    while len(waits) < 6 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - before)
        time.sleep(step_ms / 1000)
    return 1000 * fmean(waits[len(waits) // 2 :])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
