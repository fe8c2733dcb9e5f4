"""Positions -> batches in parallel: a DataLoader over a ring, whose workers end when they should.

torch's DataLoader starts, feeds and watches the workers, but carries no pixels: with each request a worker
gets a free slot of the ring, writes the batch there, and sends back which slot and what shape. A batch of
64 pictures is one copy and 6 kB of messages; as torch sends it, in a new shared file, it costs ten times the
CPU.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import LoaderError, MedloomError
from ..stream.config import StreamConfig
from ..stream.steps import PositionBatches, StepPlan
from ..stream.stream import Stream
from .batches import ALIGNMENT
from .parcels import Batches, BatchReader, Requests, unpack
from .ring import Event, Ring
from .workers import ChildHandler, end_workers, loss, start_worker, starting

_WIDEST = 4  # bytes of the widest pixel, see `batches.smallest_dtype`
_LABEL = 2  # of a pixel of a label map


class Loader(DataLoader[Any]):
    """Yields the batches of a reader as dictionaries of tensors; see `loader`.

    A failed iteration ends its workers at once: left to the garbage collector, which may close their queues
    first, torch waits ten seconds for them. The ring lives as long as one set of workers; batches outlive it.

    Args:
        reader: gives a `Parcel` for each request.
        batches: positions of the micro-batches.
        slot_bytes: of the largest batch.
        workers: processes; 0 reads in this one, without a ring.
        prefetch: batches that a worker reads ahead.
        keep: batches that the consumer holds at the same time, beside the one it is about to get.
        context: "fork", "spawn" or "forkserver"; None: the platform's own.
    """

    def __init__(
        self,
        reader: BatchReader,
        batches: Batches,
        *,
        slot_bytes: int,
        workers: int,
        prefetch: int = 2,
        keep: int = 2,
        context: str | None = None,
    ) -> None:
        super().__init__(
            reader,
            batch_size=None,
            sampler=Requests(batches, reader),
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=start_worker if workers else None,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=context if workers else None,
        )
        self.reader, self.slot_bytes = reader, slot_bytes
        self.slots = workers * prefetch + 1 + keep
        self._ending: Finalize | None = None
        _LOADERS.add(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises LoaderError: a worker died; MedloomError: what a worker met."""
        try:
            for answer in self._answers():
                if isinstance(answer, MedloomError):
                    raise answer
                yield unpack(answer, self.reader.ring)
        except Exception as error:
            lost = loss(self.processes())
            self.close()
            if lost is None or isinstance(error, MedloomError):
                raise
            raise lost from error

    def processes(self) -> list[Any]:
        """The worker processes that run now."""
        return getattr(getattr(self, "_iterator", None), "_workers", [])

    def hold(self, batch: dict[str, Any], event: Event) -> None:
        """Keep the slot of this batch until the copy in front of `event` has finished."""
        if self.reader.ring is not None:
            self.reader.ring.hold(batch, event)

    def to_device(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch with its tensors on `device`; to CUDA they are copied beside what the GPU computes.

        This is the only place where memory is pinned. A copy from pinned memory may still run when the batch
        is dropped, and its slot would be overwritten: whoever copies must hold. Everybody else copies from
        ordinary memory, which CUDA has read before the call returns.
        """
        if device.type != "cuda":
            return {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        if self.reader.ring is not None:
            self.reader.ring.pin(batch["image"].data_ptr(), batch["image"].nbytes)
        moved, event = copy_to_device(batch, device)
        self.hold(batch, event)
        return moved

    def close(self) -> None:
        """End the workers and let go of the ring; iterating again starts new ones."""
        self._iterator = None
        ending, self._ending = self._ending, None
        if ending is not None:
            ending()
        ring, self.reader.ring = self.reader.ring, None
        if ring is not None:
            ring.close()

    def _answers(self) -> Iterator[Any]:
        if not self.num_workers or self._iterator is not None:
            return super().__iter__()
        self.close()  # somebody else may have ended the workers, as Lightning does
        self.reader.ring = Ring(self.slots, self.slot_bytes)
        context: Any = self.multiprocessing_context or torch.multiprocessing
        with starting(context.get_start_method()):
            answers = super().__iter__()
        # When the loader goes, and when Python exits: before multiprocessing waits, without a limit, for
        # whatever still runs. An exit handler would not run in a process that multiprocessing has started.
        self._ending = Finalize(self, end_workers, (answers,), exitpriority=10)
        ChildHandler.install(_loss)
        return answers


def copy_to_device(batch: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], Event]:
    """Start to copy a batch to a CUDA device; the event is complete when all of it has arrived."""
    moved = {
        # The image lies in pinned memory. torch pins copies of the others (label maps are the largest), and
        # keeps them until they have arrived.
        name: (value if name == "image" else value.pin_memory()).to(device, non_blocking=True)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in batch.items()
    }
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return moved, event


def _as_it_is(answer: Any) -> Any:
    return answer


_LOADERS: weakref.WeakSet[Loader] = weakref.WeakSet()


def _loss() -> LoaderError | None:
    return loss(worker for open_loader in list(_LOADERS) for worker in open_loader.processes())


def loader(
    stream: Stream,
    *,
    rank: int,
    world: int,
    start_step: int,
    steps: int,
    accumulate: int = 1,
    plan: StepPlan | None = None,
    context: str | None = None,
    keep: int = 2,
) -> Loader:
    """A DataLoader over the steps `start_step` to `steps` of a run, as rank `rank` of `world`.

    Batches: image [b, C, ...] in the smallest dtype that holds all of them, C 1 or `in_channels`; low, high,
    mean, std float32 [b, C]; position, modality int64 [b]; spacing float32 [b, ndim]; key, replaced: lists.
    With `data.labels` label int64 [b], with `data.masks` mask int16 [b, ...], with `data.zoom` image [n]; see
    `Stream.__getitems__`.

    Args:
        plan: positions of each step; None: `stream.plan`.
        context: "fork", "spawn" or "forkserver"; None: the platform's own.
        keep: batches whose image the consumer holds at the same time; with more it only becomes slower.

    Raises:
        ConfigError: a global batch does not divide among the ranks.
    """
    batches = PositionBatches(
        plan or stream.plan, rank=rank, world=world, start_step=start_step, steps=steps, accumulate=accumulate
    )
    parts = world * accumulate
    slot_bytes = max(part.batch_size // parts * _largest(part) + ALIGNMENT for part in stream.config.each())
    workers, samples = min(stream.config.workers, len(batches)), stream
    if stream.config.mode == "sequential":
        from .sequential import SequentialSamples

        batch = stream.config.batch_size // parts
        samples = SequentialSamples(
            stream, rank=rank, world=world, workers=workers, batches=start_step * accumulate, batch=batch
        )
    return Loader(
        BatchReader(samples),
        batches,
        slot_bytes=slot_bytes,
        workers=workers,
        prefetch=stream.config.prefetch,
        keep=keep,
        context=context,
    )


def _largest(config: StreamConfig) -> int:
    """Bytes of a crop and its label map in the ring, at most."""
    factor = config.zoom[1] if config.zoom else 1.0
    box = math.prod(max(1, round(n * factor)) for n in config.crop)
    return box * config.in_channels * _WIDEST + (math.prod(config.crop) * _LABEL if config.masks else 0)
