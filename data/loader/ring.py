"""Slots of shared memory through which workers hand over batches: pixels are written once and never sent.

One anonymous memory file, mapped by the training process and its workers. It has no name, so nothing is left
over whatever is killed, and a container's --shm-size does not limit it. Pages that are never touched cost
nothing, so a slot is as large as the largest possible batch. Only the training process gives slots out, one
with each request, and has a slot back when the last view of its batch is gone: no process waits for another,
and a batch that somebody looks at is never overwritten. The price: who keeps many batches keeps their slots,
and once all are kept, batches travel inside messages, which is several times slower.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
import weakref
from collections import deque
from contextlib import suppress
from multiprocessing import reduction
from multiprocessing.context import assert_spawning
from typing import Any, Protocol

import numpy as np

log = logging.getLogger(__name__)


class Event(Protocol):
    """What is asked of a `torch.cuda.Event` that was recorded behind a copy."""

    def query(self) -> bool:
        """Whether the copy has finished."""
        ...

    def synchronize(self) -> None:
        """Wait until it has."""
        ...


class Ring:
    """`slots` equal slots. A worker's copy (by fork, or pickled into a worker that starts) owns none of them.

    Args:
        slots: batches that can be under way or in use at one time.
        slot_bytes: size of the largest batch; rounded up to whole pages.
        file: descriptor of the memory file of another process, for its copy; None makes a new one.
    """

    def __init__(self, slots: int, slot_bytes: int, file: int | None = None) -> None:
        self.slots = slots
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self.slots * self.slot_bytes
        self._file = _memory_file(size) if file is None else file
        self._memory = np.frombuffer(mmap.mmap(self._file, size), np.uint8)
        self._free = list(range(slots))  # a stack: the few slots in use stay in the caches
        self._requested: set[int] = set()
        self._held: deque[tuple[Event, Any]] = deque()
        self._pinned: dict[int, int] = {}  # address of a slot -> bytes
        self._pinnable = True
        self._end = weakref.finalize(self, _let_go, self._file, self._pinned, os.getpid())

    def __reduce__(self) -> tuple[Any, ...]:
        assert_spawning(self)  # the descriptor can travel only with a process that starts
        return (_attached, (self.slots, self.slot_bytes, reduction.DupFd(self._file)))

    def array(self, slot: int, shape: tuple[int, ...], dtype: np.dtype, behind: int = 0) -> np.ndarray | None:
        """A part of a slot, `behind` so many bytes, as an array of this shape; None when it does not fit."""
        if behind + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > self.slot_bytes:
            return None
        return np.ndarray(shape, dtype, buffer=self._memory, offset=slot * self.slot_bytes + behind)

    def take(self) -> int | None:
        """A free slot for a request. Without one, wait for the oldest copy; None when none is running."""
        while self._held and self._held[0][0].query():
            self._held.popleft()
        while not self._free and self._held:
            self._held[0][0].synchronize()
            self._held.popleft()
        if not self._free:
            return None
        slot = self._free.pop()
        self._requested.add(slot)
        return slot

    def lend(self, slot: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """What a worker wrote into a slot; the slot is free again when its last view is gone."""
        array = self.array(slot, shape, dtype)
        assert array is not None, "a worker wrote more than the slot holds"
        self._requested.discard(slot)
        # The last view may go in any thread, and at any moment: appending to a list is atomic.
        weakref.finalize(array, self._free.append, slot).atexit = False
        return array

    def release(self, slot: int) -> None:
        """Have back the slot of a request whose batch did not fit."""
        self._requested.discard(slot)
        self._free.append(slot)

    def reclaim(self) -> None:
        """Have back the slots of all requests that were given up; no worker may be at work on one."""
        self._free.extend(self._requested)
        self._requested.clear()

    def hold(self, batch: Any, event: Event) -> None:
        """Keep a batch, and so its slot, until the copy in front of `event` has finished."""
        self._held.append((event, batch))

    def pin(self, address: int, size: int) -> None:
        """Lock the pages of a batch that starts a slot: CUDA then copies it beside the computation.

        Done once a slot, and again when a larger batch comes: only pages in use are locked. Whoever copies
        from them without waiting must `hold` the batch. Batches elsewhere are left as they are.
        """
        start = address - self._memory.ctypes.data
        if start % self.slot_bytes or not 0 <= start < len(self._memory):
            return
        locked = self._pinned.get(address, 0)
        if size > locked and self._pinnable:
            if locked:
                _unpin(self._pinned, address)
            self._pinnable = _pin(self._pinned, address, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)

    def close(self) -> None:
        """Wait for copies and give the memory back, each slot as soon as nobody looks at it any more."""
        for event, _ in self._held:
            with suppress(RuntimeError):  # a device that failed has said so elsewhere
                event.synchronize()
        self._held.clear()
        self._end()


def _attached(slots: int, slot_bytes: int, file: Any) -> Ring:
    return Ring(slots, slot_bytes, file.detach())


def _memory_file(size: int) -> int:
    """Descriptor of a file of `size` bytes that has no name."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("medloom-ring", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    os.ftruncate(file, size)
    return file


def _let_go(file: int, pinned: dict[int, int], process: int) -> None:
    os.close(file)
    if os.getpid() == process:  # a forked copy has the descriptor, but nothing on the device
        for address in list(pinned):
            _unpin(pinned, address)


def _pin(pinned: dict[int, int], address: int, size: int) -> bool:
    """Register these bytes with CUDA; False where that is refused, e.g. by a limit on locked memory."""
    import torch

    cudart: Any = torch.cuda.cudart()
    try:
        torch.cuda.check_error(cudart.cudaHostRegister(address, size, 0))
    except RuntimeError as error:
        log.warning("batches cannot be locked in memory (%s): copies to the GPU will wait", error)
        with suppress(RuntimeError):  # CUDA reports the refusal once more, at the next kernel
            torch.ones(1, device="cuda")
        return False
    pinned[address] = size
    return True


def _unpin(pinned: dict[int, int], address: int) -> None:
    import torch

    del pinned[address]
    cudart: Any = torch.cuda.cudart()
    with suppress(RuntimeError):
        torch.cuda.check_error(cudart.cudaHostUnregister(address))
