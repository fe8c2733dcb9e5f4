"""Positions -> batches: which positions a rank loads, and how its samples become tensors.

Equal batches on every rank come from arithmetic, not from communication: no rank can run out of data before
another. The price: the global batch must divide by ranks x micro-batches, which is checked when a run starts.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler, get_worker_info

from .errors import ConfigError
from .order import rank_positions

log = logging.getLogger(__name__)


class PositionBatches(Sampler[list[int]]):
    """Micro-batches of positions for one rank, from `start_step` up to `steps`.

    The ranks' batches of a step partition the global batch, whatever their number, all of the same size.

    Args:
        global_batch: samples a step, over all ranks and micro-batches.
        steps: end of the run; its first step is 0.
        accumulate: micro-batches a step on each rank.
        offset: added to all positions, for a run that changed its batch size on the way.

    Raises:
        ConfigError: the global batch does not divide by ranks x micro-batches.
    """

    def __init__(
        self,
        global_batch: int,
        *,
        rank: int,
        world: int,
        start_step: int,
        steps: int,
        accumulate: int = 1,
        offset: int = 0,
    ) -> None:
        parts = world * accumulate
        if global_batch % parts:
            near = max(parts, round(global_batch / parts) * parts)
            raise ConfigError(
                f"data.batch_size {global_batch} does not divide by {world} ranks x {accumulate} "
                f"micro-batches: set data.batch_size={near}"
            )
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} does not exist among {world} ranks")
        self.global_batch, self.rank, self.world = global_batch, rank, world
        self.start_step, self.steps = start_step, steps
        self.accumulate, self.offset = accumulate, offset

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        size = self.global_batch // (self.world * self.accumulate)
        for step in range(self.start_step, self.steps):
            mine = rank_positions(step, self.global_batch, self.rank, self.world)
            for first in range(0, len(mine), size):
                yield [position + self.offset for position in mine[first : first + size]]


def start_worker(_: int) -> None:
    """Leave signals to the training process: a preemption must not kill the workers before the checkpoint.

    SIGTERM ends a worker only when its parent sends it: that is how multiprocessing ends what is left when
    Python exits, and then waits without a limit.
    """
    for name in ("SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, name="signals", daemon=True).start()
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Wait for SIGTERM and leave when the parent sent it; a handler in Python could not tell who did."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples of `Stream` to a batch; see `loader` for its keys and shapes.

    In a worker the images are written once, straight into shared memory.
    """
    channels = max(len(sample["image"]) for sample in samples)
    dtype = smallest_dtype({sample["image"].dtype for sample in samples})
    image = _empty((len(samples), channels, *samples[0]["image"].shape[1:]), dtype)
    for place, sample in zip(image.numpy(), samples, strict=True):
        place[:] = sample["image"]  # one channel is repeated by broadcasting
    batch: dict[str, Any] = {"image": image}
    for name in ("low", "high", "mean", "std"):
        rows = [np.broadcast_to(sample[name], (channels,)) for sample in samples]
        batch[name] = torch.from_numpy(np.stack(rows))
    for name in ("position", "modality"):
        batch[name] = torch.tensor([sample[name] for sample in samples], dtype=torch.int64)
    batch["spacing"] = torch.from_numpy(np.stack([sample["spacing"] for sample in samples]))
    batch["key"] = [sample["key"] for sample in samples]
    return batch


def smallest_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """Smallest dtype that holds all of these; float32 where only float64 or int64 would."""
    common = np.result_type(*dtypes)
    return np.dtype(np.float32) if common.itemsize > 4 else common


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> torch.Tensor:
    """An uninitialised tensor; in a worker it lies in shared memory: sending it copies nothing."""
    torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch_dtype)
    count = int(np.prod(shape, dtype=np.int64))
    storage = torch.UntypedStorage._new_shared(count * dtype.itemsize)
    shared: Any = torch.empty(0, dtype=torch_dtype)
    return shared.set_(storage, 0, shape)


def check_shared_memory(bytes_needed: int) -> None:
    """Warn before a worker dies of a bus error: containers often have 64 MB of shared memory."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if bytes_needed > free:
        log.warning(
            "loader workers may need %d MB of /dev/shm, %d MB are free: start the container with "
            "--shm-size=%dm, or lower data.workers or data.prefetch",
            bytes_needed >> 20,
            free >> 20,
            2 * bytes_needed >> 20,
        )
