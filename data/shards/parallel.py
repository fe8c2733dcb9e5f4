"""Run one task over many jobs in processes; a job that kills its process is told, and the others go on.

Processes are spawned (about a second each): threads of BLAS and Blosc2 would not survive a fork. A worker
ends with its parent, however that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from ..errors import ShardError

Job = TypeVar("Job")
Result = TypeVar("Result")

ORPHAN_POLL_SECONDS = 1.0


def run_each(
    task: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int, method: str = "spawn"
) -> Iterator[tuple[int, Result | ShardError]]:
    """Yield (job number, result) as the results come in; a ShardError stands for a job whose process died.

    Args:
        task: picklable; what it raises is raised here.
        workers: processes; 1 works in this one.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from ((number, task(job)) for number, job in enumerate(jobs))
        return
    todo = dict(enumerate(jobs))
    while todo:
        for number, result in _pooled(task, todo, min(workers, len(todo)), method):
            del todo[number]
            yield number, result
        # Only a pool that broke leaves jobs. Which of those at work killed it is found out one at a time.
        for number in list(todo)[: 2 * workers]:
            alone = dict(_pooled(task, {number: todo.pop(number)}, 1, method))
            died = ShardError(
                "the process that read it was killed, as a rule for want of memory; use fewer workers"
            )
            yield number, alone.get(number, died)


def _pooled(
    task: Callable[[Job], Result], jobs: dict[int, Job], workers: int, method: str
) -> Iterator[tuple[int, Result]]:
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
    try:
        futures: dict[Future[Result], int] = {pool.submit(task, job): n for n, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears ctrl-c
    leave_with(parent)


def leave_with(parent: int) -> None:
    """End this process soon after `parent`: one that was killed cannot stop its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
