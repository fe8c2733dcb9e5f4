"""What a run asks of the loader and of the disks: samples, bytes and shards a second, checkpoints.

The mix of the sources is the run's own: the first positions of its order are looked up, their shards counted.
How long a crop takes is measured here, on some crops, in one process; another machine's cores differ.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ...data.errors import ConfigError, ShardError
from ...data.stream.stream import Stream
from ..config import PretrainConfig
from .count import Cost

log = logging.getLogger(__name__)

LOOKED_AT = 4096  # positions whose shards are counted
READ = 24  # crops that are timed
TENSOR_BYTES = 310  # of a checkpoint's archive and pickle for each tensor, measured


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a run. Bytes are those stored in the shards, a whole sample each."""

    count: int
    bytes: int  # of all shards that are read
    shards: int
    sample_bytes: float  # mean over the run's own mix
    shard_samples: float  # samples of a shard, likewise
    crop_ms: float | None  # of one core of this machine, one crop, page cache warm; None: not measured


def open_samples(config: PretrainConfig) -> tuple[Stream, Samples] | None:
    """The stream of `data.shards` and what its manifest says; None without shards that can be opened here."""
    if not config.data.shards:
        return None
    try:
        stream = Stream(config.data)
    except (ConfigError, ShardError, OSError) as error:
        log.warning("no figures of the loader: %s", error)
        return None
    sources = stream.sources
    means = [source.bytes / source.count for source in sources]
    shards = [source.count / len(source.shards) for source in sources]
    number = {source.id: index for index, source in enumerate(sources)}
    share = np.zeros(len(sources))
    steps = stream.plan.steps_by_class(1000)
    for part, weight in zip(stream.classes, steps, strict=True):
        own = np.zeros(len(sources))
        for source in part.order.locate(np.arange(LOOKED_AT)).source.tolist():
            own[number[part.sources[source].id]] += 1
        share += weight * part.config.batch_size * own / own.sum()
    share /= share.sum()
    return stream, Samples(
        count=sum(source.count for source in sources), bytes=sum(source.bytes for source in sources),
        shards=sum(len(source.shards) for source in sources), sample_bytes=float(share @ means),
        shard_samples=float(1 / (share @ (1 / np.asarray(shards)))), crop_ms=_crop_ms(stream),
    )  # fmt: skip


def _crop_ms(stream: Stream) -> float | None:
    """Median time of a crop, each read twice so that the second time the disk is not asked."""
    taken = []
    several = len(stream.classes)
    for position in range(0, READ * several, several):
        try:
            stream[position]
            begin = time.perf_counter()
            stream[position]
        except (ShardError, OSError) as error:
            log.warning("no time of a crop: %s", error)
            return None
        taken.append(1000 * (time.perf_counter() - begin))
    return median(taken)


def checkpoint_bytes(costs: Sequence[Cost], *, moments: int) -> float:
    """Size of a checkpoint: weights, teacher, buffers and the optimiser's moments in float32."""
    cost = costs[0]
    numbers = cost.trained * (1 + moments) + cost.frozen
    kept = moments + (moments > 1)  # AdamW also keeps the step of each
    return 4.0 * numbers + cost.saved + TENSOR_BYTES * (cost.tensors + kept * cost.trained_tensors)
