"""Where the time of one crop goes: disk, decoding, transport, each measured without the others.

One process reads crops of the stream. Time inside the positioned reads of the operating system is the disk's
(or the page cache's); the rest is decoding, with choosing the crop and verifying the bytes. Cold crops are
read after the page cache was asked to forget the shards. Transport is a loader whose workers hand over a
prepared crop, so that nothing but the transport is left.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

from ..stream.stream import Stream
from .loader import Loader, loader
from .usage import cpu_seconds, drop_cache


@dataclass(frozen=True, slots=True)
class Stages:
    """Milliseconds a crop (medians), one process. None: not measured, the shards are not on a disk."""

    crop_ms: float  # wall, page cache warm: read_ms + decode_ms
    read_ms: float
    decode_ms: float
    transport_ms: float  # CPU of both ends together
    read_bytes: float
    cold_ms: float | None
    cold_read_ms: float | None
    unevenness: float  # the slowest batch over the median one


def stages(stream: Stream, *, crops: int, seconds: float) -> Stages:
    """Measure on `crops` crops of the stream, each read cold and then warm.

    Args:
        seconds: for the transport.
    """
    files = local_files(stream)
    cold, warm = _Reads(), _Reads()
    cold_times, warm_times = [], []
    for position in range(crops):
        drop_cache(files)
        with cold.counted():
            cold_times.append(_timed(stream, [position]))
        with warm.counted():
            warm_times.append(_timed(stream, [position]))
    size = stream.config.batch_size
    batches = [_timed(stream, range(n * size, (n + 1) * size)) for n in range(max(4, crops // size))]
    reads, total = median(warm.seconds), median(warm_times)
    told = cold.bytes > 0 and median(cold.seconds) > 1.2 * reads  # in memory, forgetting changes nothing
    return Stages(
        crop_ms=1000 * total,
        read_ms=1000 * reads,
        decode_ms=1000 * (total - reads),
        transport_ms=1000 * _transport(stream, seconds),
        read_bytes=warm.bytes / crops,
        cold_ms=1000 * median(cold_times) if told else None,
        cold_read_ms=1000 * median(cold.seconds) if told else None,
        unevenness=max(batches) / median(batches),
    )


def local_files(stream: Stream) -> list[Path]:
    """The shards that the stream reads, where they are files of this machine."""
    names = {entry.file for source in stream.sources for entry in source.shards}
    paths = [Path(stream.shards.root) / name for name in sorted(names)]
    return [path for path in paths if path.is_file()]


def _timed(stream: Stream, positions: Sequence[int]) -> float:
    start = time.perf_counter()
    stream.__getitems__(positions)
    return time.perf_counter() - start


@dataclass
class _Reads:
    """Time and bytes inside `os.pread` and `os.preadv`, a row for each use of `counted`."""

    seconds: list[float] = field(default_factory=list)
    bytes: int = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        whole = {name: getattr(os, name) for name in ("pread", "preadv")}
        self.seconds.append(0.0)
        for name, call in whole.items():
            setattr(os, name, self._wrapped(call))
        try:
            yield
        finally:
            for name, call in whole.items():
                setattr(os, name, call)

    def _wrapped(self, call: Any) -> Any:
        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            answer = call(*arguments)
            self.seconds[-1] += time.perf_counter() - start
            self.bytes += answer if isinstance(answer, int) else len(answer)
            return answer

        return timed


class _Prepared:
    """Looks like a stream to the loader, and gives the same samples at every position."""

    def __init__(self, stream: Stream, samples: list[dict[str, Any]]) -> None:
        self.config, self.plan, self.samples = stream.config, stream.plan, samples

    def __getitems__(self, positions: Sequence[int], place: Any = None) -> list[dict[str, Any]]:
        return [self.samples[at % len(self.samples)] | {"position": at} for at in positions]


def _transport(stream: Stream, seconds: float) -> float:
    """CPU seconds a crop of handing over prepared crops, median of three turns."""
    prepared = _Prepared(stream, stream.__getitems__(range(min(stream.config.batch_size, 8))))
    carried = endless(cast(Stream, prepared))
    batches = iter(carried)
    try:
        return median(turn(batches, seconds / 3, warm=4)[1] for _ in range(3))
    finally:
        carried.close()


def endless(stream: Stream) -> Loader:
    """The loader of the stream, as one rank, for ever."""
    return loader(stream, rank=0, world=1, start_step=0, steps=1 << 40)


def turn(batches: Iterator[dict[str, Any]], seconds: float, *, warm: int) -> tuple[float, float]:
    """Take batches as fast as they come: (crops a second, CPU seconds a crop) after `warm` batches."""
    for _ in range(warm):
        next(batches)
    crops, used, start = 0, cpu_seconds(), time.perf_counter()
    while not crops or time.perf_counter() - start < seconds:
        crops += len(next(batches)["position"])
    wall = time.perf_counter() - start
    return crops / wall, (cpu_seconds() - used) / crops
