"""How loader workers start, end, and are found to be dead.

A worker leaves signals to the training process, and ends when that process says so or is gone. The second
needs a look of its own: torch looks at the number of the parent process, which under forkserver is that of
the fork server, and that lives on as long as its workers do.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data._utils import signal_handling

from ..errors import LoaderError

_LOOK_SECONDS = 1.0  # between two looks at whether the training process is alive
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_BLOCK = 32 << 20  # bytes; glibc takes no more on 64 bits; larger ones come from the kernel each time
_KEPT_BYTES = 256 << 20
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


@contextmanager
def starting(method: str) -> Iterator[None]:
    """Start workers inside: they are born deaf to signals, so that a preemption cannot hit one half started.

    Args:
        method: "fork", "spawn" or "forkserver". Workers of a fork server that runs already hear signals until
            `start_worker` has run.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    if method != "fork":  # helpers of multiprocessing start now, lest they are born deaf, too
        resource_tracker.ensure_running()
    if method == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(_: int) -> None:
    """Leave signals to the training process: a preemption must not kill the workers before the checkpoint.

    SIGTERM ends a worker when the training process sends it (`Process.terminate`), except under forkserver
    where a thread of a library may get it and ignore it: `end_workers` kills what does not end.
    """
    torch.set_num_threads(1)
    _keep_freed_memory()
    # What was there at the start stays: the collector would walk through all of torch again and again,
    # a fifth of the CPU of a picture.
    gc.freeze()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # Blocked signals reach who waits for them, although they are ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, name="signals", daemon=True).start()


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of crops: what goes back to the kernel is cleared page by page for the next.

    That is a quarter of the CPU of a 96^3 crop. The price: a worker keeps up to `_KEPT_BYTES` that are free.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _end_with_parent() -> None:
    """Leave when the training process sends SIGTERM or is gone; a Python handler cannot tell who sent it."""
    parent, started_by = multiprocessing.parent_process(), os.getppid()
    assert parent is not None, "a worker has a parent"
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, _LOOK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            os._exit(0)
        # Under fork a younger sibling holds the parent's end of the pipe that is looked at, hence the number.
        if os.getppid() != started_by or not parent.is_alive():
            os._exit(1)


def end_workers(iterator: Any) -> None:
    """End the workers of torch's iterator over a DataLoader, and return when they have.

    They are asked, and killed when they do not listen. When one has died they are killed at once: it may have
    taken the lock of their queue with it, and torch would wait for that without a limit.
    """
    if loss(iterator._workers) is None:
        iterator._shutdown_workers()
    if not iterator._shutdown:  # one has died, or torch does nothing because Python exits
        iterator._shutdown, iterator._worker_pids_set = True, False
        signal_handling._remove_worker_pids(id(iterator))
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
        worker.join()


def loss(workers: Iterable[Any]) -> LoaderError | None:
    """What to tell the user when one of these processes has died; None when none has."""
    for code in (worker.exitcode for worker in workers):
        if code == -getattr(signal, "SIGKILL", 9):
            return LoaderError(
                "a loader worker was killed (out of memory?): give the job more memory, or lower "
                "data.workers or data.prefetch"
            )
        if code:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return LoaderError(f"a loader worker ended {how}: set data.workers=0 to see where")
    return None


class ChildHandler:
    """Handler of SIGCHLD: torch's, which raises wherever the training process is, with the error of `loss`.

    Args:
        previous: the handler that torch has set.
        find: gives the `LoaderError`, or None when it was somebody else's worker.
    """

    def __init__(self, previous: Callable[[int, Any], Any], find: Callable[[], LoaderError | None]) -> None:
        self.previous, self.find = previous, find

    def __call__(self, number: int, frame: Any) -> None:
        """Raises LoaderError: a worker has died."""
        try:
            self.previous(number, frame)
        except RuntimeError as error:
            raise self.find() or error from error

    @staticmethod
    def install(find: Callable[[], LoaderError | None]) -> None:
        """Put it in front of torch's handler, once; only the main thread may."""
        if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGCHLD)
        if callable(previous) and not isinstance(previous, ChildHandler):
            signal.signal(signal.SIGCHLD, ChildHandler(previous, find))
