"""One shape class of a run: its sources, their order and its crops, by positions of its own."""

from __future__ import annotations

import numpy as np

from ..draws import bits
from ..remote.ahead import Ahead, choose_window
from ..remote.shards import RemoteFolder
from ..shards.reader import SampleRef, Shards
from .config import StreamConfig
from .crop_reader import CropReader
from .order import Order, SourceSize
from .selection import select, source_weights


class ShapeStream:
    """Position of the class -> sample.

    Args:
        name: keeps its order apart from those of the other classes of a run.
        classes: how many there are; they share the cache of remote shards.

    Raises:
        ConfigError, ShardError: see `Stream`.
    """

    def __init__(self, config: StreamConfig, shards: Shards, name: str, *, classes: int = 1) -> None:
        self.config, self.name = config, name
        self.sources, self.first = select(config, shards)
        self.ahead: Ahead | None = None  # set by the stream
        window, folder = config.window, shards.folder
        if isinstance(folder, RemoteFolder):
            limit = config.cache_gb * 1e9 / classes
            window = choose_window(window, self.sources, limit, ranged=folder.ranged)
        self.order = Order(
            [SourceSize(s.id, tuple(shard.count for shard in s.shards)) for s in self.sources],
            seed=config.seed,
            alpha=config.alpha,
            window=window,
            weights=source_weights(config, self.sources),
            epoch=config.epoch,
            crops=config.crops_per_sample,
            name=name,
        )
        self.crops = CropReader(config, shards)  # the stream tells it what labels to read

    def locate(self, positions: np.ndarray) -> list[tuple[int, SampleRef]]:
        """Source and sample at these class-local positions."""
        found = self.order.locate(positions)
        if self.ahead is not None:
            self.ahead.read(self.name, self.order, self.first, found)
        places = zip(found.source.tolist(), found.shard.tolist(), found.ordinal.tolist(), strict=True)
        return [(source, SampleRef(self.first[source] + shard, ordinal)) for source, shard, ordinal in places]

    def substitute(self, source: int, position: int, attempt: int) -> SampleRef:
        """Another sample of the same source, the same on every rank, worker and restart."""
        words = bits(self.config.seed, f"substitute:{attempt}", [position], 1)
        turn = np.asarray([int(words[0, 0]) % self.sources[source].count])
        found = self.order.locate_in(np.asarray([source]), turn)
        return SampleRef(self.first[source] + int(found.shard[0]), int(found.ordinal[0]))
