"""One shape class of a run: its sources, their order and its crops, by positions of its own."""

from __future__ import annotations

import numpy as np

from .crop_reader import CropReader
from .draws import bits
from .order import Order, SourceSize
from .selection import select, source_weights
from .shards.reader import SampleRef, Shards
from .stream_config import StreamConfig


class ShapeStream:
    """Position of the class -> sample.

    Args:
        name: keeps its order apart from those of the other classes of a run.

    Raises:
        ConfigError, ShardError: see `Stream`.
    """

    def __init__(self, config: StreamConfig, shards: Shards, name: str) -> None:
        self.config = config
        self.sources, self._first = select(config, shards)
        self.order = Order(
            [SourceSize(s.id, tuple(shard.count for shard in s.shards)) for s in self.sources],
            seed=config.seed,
            alpha=config.alpha,
            window=config.window,
            weights=source_weights(config, self.sources),
            epoch=config.epoch,
            crops=config.crops_per_sample,
            name=name,
        )
        self.crops = CropReader(config, shards)

    def locate(self, positions: np.ndarray) -> list[tuple[int, SampleRef]]:
        """Source and sample at these class-local positions."""
        found = self.order.locate(positions)
        places = zip(found.source.tolist(), found.shard.tolist(), found.ordinal.tolist(), strict=True)
        return [
            (source, SampleRef(self._first[source] + shard, ordinal)) for source, shard, ordinal in places
        ]

    def substitute(self, source: int, position: int, attempt: int) -> SampleRef:
        """Another sample of the same source, the same on every rank, worker and restart."""
        words = bits(self.config.seed, f"substitute:{attempt}", [position], 1)
        turn = np.asarray([int(words[0, 0]) % self.sources[source].count])
        found = self.order.locate_in(np.asarray([source]), turn)
        return SampleRef(self._first[source] + int(found.shard[0]), int(found.ordinal[0]))
