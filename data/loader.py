"""Positions -> batches in parallel: a DataLoader whose workers end when they should, and only then."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .batches import PositionBatches, check_shared_memory, collate, start_worker
from .errors import ShardError
from .stream import Stream


class Loader(DataLoader[Any]):
    """A DataLoader that ends well.

    A worker's `ShardError` arrives as the one line that was raised. A failed iteration ends its workers at
    once: left to the garbage collector, which may close their queues first, torch waits ten seconds for them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _LOADERS.add(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            yield from super().__iter__()
        except Exception as error:
            self.close()
            if not isinstance(error, ShardError):
                raise
            line = str(error).strip().splitlines()[-1]
            raise ShardError(line.removeprefix(f"{ShardError.__module__}.{ShardError.__name__}: ")) from error

    def close(self) -> None:
        """End the workers; iterating again starts new ones."""
        iterator: Any = getattr(self, "_iterator", None)
        if iterator is not None:
            self._iterator = None
            iterator._shutdown_workers()


_LOADERS: weakref.WeakSet[Loader] = weakref.WeakSet()


@atexit.register
def _close_loaders() -> None:
    for open_loader in list(_LOADERS):
        open_loader.close()


def loader(
    stream: Stream,
    *,
    rank: int,
    world: int,
    start_step: int,
    steps: int,
    accumulate: int = 1,
    offset: int = 0,
    context: str | None = None,
) -> Loader:
    """A DataLoader over the steps `start_step` to `steps` of a run, as rank `rank` of `world`.

    Batches: image [b, C, ...] in the smallest dtype that holds all of them, C 1 or `in_channels`; low, high,
    mean, std float32 [b, C]; position, modality int64 [b]; spacing float32 [b, ndim]; key list[str].

    Args:
        context: "fork", "spawn" or "forkserver"; None: the platform's own.

    Raises:
        ConfigError: the global batch does not divide among the ranks.
    """
    config = stream.config
    batches = PositionBatches(
        config.batch_size,
        rank=rank,
        world=world,
        start_step=start_step,
        steps=steps,
        accumulate=accumulate,
        offset=offset,
    )
    workers = min(config.workers, len(batches))
    if workers:
        sample = int(np.prod(config.crop)) * config.in_channels * 2  # bytes of a 16-bit sample
        batch = sample * config.batch_size // (world * accumulate)
        check_shared_memory(batch * (workers * config.prefetch + 1))
    return Loader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=start_worker if workers else None,
        prefetch_factor=config.prefetch if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=context if workers else None,
    )
