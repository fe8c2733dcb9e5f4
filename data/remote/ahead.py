"""Which shards of a remote folder a run shuffles together, and fetching them before they are read.

The order reads windows of shards (`order.py`): the cache has to hold the window under way and the next of
every source. Their number is therefore a function of the manifest and of `data.cache_gb` alone, the same on
every machine, or a resumed run would meet another order. Each reader fetches ahead in threads of its own; a
shard that another process fetches already is left to it. The shards of both windows are pinned in the cache
until the reader has passed them, or has read nothing for ten minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, StoreError
from ..shards.manifest import SourceEntry
from ..shards.reader import Shards
from ..stream.order import Located, Order
from .shards import RemoteFolder

log = logging.getLogger(__name__)

WIDEST = 16  # shards of a source shuffled together by default: the first batches wait for most of them
THREADS = 2  # downloads of one reader at a time
IDLE = 600.0  # seconds without a read after which the pins are let go
_RETRY = 0.5  # seconds before a shard is tried again that another process fetches, or that had no room


def choose_window(
    window: int | None, sources: Sequence[SourceEntry], limit: float, *, ranged: bool
) -> int | None:
    """Shards of a source that are shuffled together; None: all.

    Args:
        window: what the configuration asks for; None: the widest up to 16 that the cache can hold twice.
        limit: bytes of the cache for these sources.
        ranged: the cache is not used; the default is the same, so that the pixels are.

    Raises:
        ConfigError: the cache cannot hold what is needed.
    """
    if window is not None:
        if not ranged and (need := _bytes(sources, window)) > limit:
            raise ConfigError(
                f"data.window {window} needs {need / 1e9:.1f} GB of cache, data.cache_gb allows "
                f"{limit / 1e9:.1f}: raise data.cache_gb, lower data.window, or set data.access=range"
            )
        return window
    most = max(len(source.shards) for source in sources)
    fitting = [w for w in range(1, min(WIDEST, most) + 1) if _bytes(sources, 2 * w) <= limit]
    if not fitting and not ranged:
        raise ConfigError(
            f"one shard of each source and the next take {_bytes(sources, 2) / 1e9:.1f} GB of cache, "
            f"data.cache_gb allows {limit / 1e9:.1f}: raise data.cache_gb, or set data.access=range"
        )
    chosen = max(fitting, default=1)
    if chosen >= most:
        return None
    log.info(
        "data.window: %d shards of a source are shuffled together: this window and the next (%.1f GB) fit "
        "into data.cache_gb",
        chosen,
        _bytes(sources, 2 * chosen) / 1e9,
    )
    return chosen


def _bytes(sources: Sequence[SourceEntry], shards: int) -> int:
    """The most that so many shards of each source can take."""
    return sum(sum(sorted((s.bytes for s in source.shards), reverse=True)[:shards]) for source in sources)


class Ahead:
    """Fetches and pins the shards of the windows that are read, and of the next ones.

    Pickles, and may be shared by fork: each process that reads starts threads of its own.
    """

    def __init__(self, shards: Shards, folder: RemoteFolder) -> None:
        self._shards, self._folder = shards, folder
        self._seen: dict[tuple[str, int], set[tuple[int, int]]] = {}
        self._wanted: dict[tuple[str, int], tuple[list[int], list[int]]] = {}
        self._pins: _Pins | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": {}, "_wanted": {}, "_pins": None}

    def read(self, part: str, order: Order, first: Sequence[int], found: Located) -> None:
        """Say what is about to be read.

        Args:
            part: name of the shape class.
            first: number of the first shard of each source of the order.
        """
        if self._pins is None or not self._pins.alive():
            self._seen, self._wanted = {}, {}
            if self._pins is not None:
                self._pins.stop()
            self._pins = _Pins(self._folder, self._shards)
            weakref.finalize(self, self._pins.stop).atexit = False
        rows = zip(found.source.tolist(), found.epoch.tolist(), order.windows(found).tolist(), strict=True)
        now: dict[int, set[tuple[int, int]]] = {}
        for source, epoch, window in set(rows):
            now.setdefault(source, set()).add((epoch, window))
        moved = False
        for source, windows in now.items():
            if self._seen.get((part, source)) != windows:
                moved, self._seen[part, source] = True, windows
                here = [s for w in sorted(windows) for s in order.window_shards(source, *w)]
                epoch, last = max(windows)
                after = order.window_shards(source, epoch, last + 1)
                self._wanted[part, source] = (
                    [first[source] + s for s in here],
                    [first[source] + s for s in after],
                )
        if moved:
            here = {shard for wanted, _ in self._wanted.values() for shard in wanted}
            after = {shard for _, wanted in self._wanted.values() for shard in wanted}
            self._shards.close(keep=here)
            self._pins.want([*sorted(here), *sorted(after - here)])
        self._pins.touch()


class _Pins:
    """Open descriptors of cached shards, and the threads that get them."""

    def __init__(self, folder: RemoteFolder, shards: Shards) -> None:
        self._folder, self._entries = folder, shards.manifest.shards
        self._pid, self._touched = os.getpid(), time.monotonic()
        self._change = threading.Condition()
        self._wanted: list[int] = []
        self._busy: set[int] = set()
        self._later: dict[int, float] = {}
        self._held: dict[int, int] = {}  # shard -> descriptor
        self._stopped = False
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"fetch ahead {number}", daemon=True).start()

    def alive(self) -> bool:
        """Whether the threads run, in this process."""
        return self._pid == os.getpid() and not self._stopped

    def touch(self) -> None:
        """Say that somebody reads."""
        self._touched = time.monotonic()

    def want(self, shards: list[int]) -> None:
        """Hold these, the first ones first, and let go of all others."""
        with self._change:
            self._wanted = shards
            for shard in set(self._held) - set(shards):
                os.close(self._held.pop(shard))
            self._later.clear()
            self._change.notify_all()

    def stop(self) -> None:
        """Let go of everything. After a fork the locks may be held by threads that are not there."""
        self._stopped = True
        if self._pid == os.getpid():
            with self._change:
                self._release()
                self._change.notify_all()
        else:
            self._release()

    def _release(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])

    def _work(self) -> None:
        while (shard := self._next()) is not None:
            entry, cache = self._entries[shard], self._folder.cache
            descriptor, wait = None, _RETRY
            try:
                descriptor = None if cache is None else cache.prefetch(entry, self._folder.store)
            except StoreError as error:
                wait = IDLE  # the reader will meet it, and say so
                log.debug("not fetched ahead: %s", error)
            with self._change:
                self._busy.discard(shard)
                if descriptor is not None and (self._stopped or shard not in self._wanted):
                    os.close(descriptor)
                elif descriptor is not None:
                    self._held[shard] = descriptor
                else:
                    self._later[shard] = time.monotonic() + wait

    def _next(self) -> int | None:
        """The next shard to get; waits for one. None: stop."""
        with self._change:
            while not self._stopped:
                now = time.monotonic()
                if now - self._touched > IDLE:
                    self._stopped = True
                    self._release()
                    break
                for shard in self._wanted:
                    if (
                        shard not in self._held
                        and shard not in self._busy
                        and self._later.get(shard, 0) <= now
                    ):
                        self._busy.add(shard)
                        return shard
                self._change.wait(_RETRY)
            return None
