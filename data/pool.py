"""Run units here or in worker processes; a killed parent leaves no orphans, a fault stops all workers.

Workers are spawned, not forked: BLAS, Blosc2 and torch threads of the parent would not survive a fork.
A worker costs about a second and 150 MB to start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from .errors import ShardError
from .units import HeldOutSets, Receipt, Unit
from .work import run_unit

POLL_SECONDS = 0.25
ORPHAN_POLL_SECONDS = 1.0

_shared: dict[str, Any] = {}  # in a worker: the records counter and the stop flag


class Stopped(Exception):
    """Another worker failed, or the user interrupted: this unit is given up."""


def run_all(
    units: list[Unit],
    out: Path,
    salt: bytes,
    held: HeldOutSets,
    *,
    workers: int,
    tell: Callable[[int, str], None],
) -> Iterator[Receipt]:
    """Do every unit and yield its receipt; `tell(records done, unit)` reports progress.

    Raises:
        ShardError: the first fault of any unit; the other units are stopped and leave nothing half-written.
    """
    if workers <= 1 or len(units) <= 1:
        yield from _run_here(units, out, salt, held, tell)
    else:
        yield from _run_in_processes(units, out, salt, held, min(workers, len(units)), tell)


def _run_here(
    units: list[Unit], out: Path, salt: bytes, held: HeldOutSets, tell: Callable[[int, str], None]
) -> Iterator[Receipt]:
    done = 0
    for unit in units:
        started = [done]

        def tick(unit: Unit = unit, started: list[int] = started) -> None:
            tell(started[0], unit.name)
            started[0] += 1

        yield run_unit(out, unit, salt, held, tick)
        done += len(unit.records)
        tell(done, unit.name)


def _run_in_processes(
    units: list[Unit],
    out: Path,
    salt: bytes,
    held: HeldOutSets,
    workers: int,
    tell: Callable[[int, str], None],
) -> Iterator[Receipt]:
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(), counter, stop))
    try:
        waiting: set[Future[Receipt]] = {pool.submit(_work, out, unit, salt, held) for unit in units}
        while waiting:
            done, waiting = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield future.result()
            tell(counter.value, f"{len(waiting)} of {len(units)} units to go")
    except BrokenProcessPool as error:
        raise ShardError(
            f"{out}: a worker process was killed, as a rule for want of memory; run the same command again "
            "with fewer --workers: finished units are kept"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int, counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears ctrl-c and sets the stop flag
    _shared.update(counter=counter, stop=stop)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    """A parent that was killed cannot stop its workers: each looks after itself."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_SECONDS)
    os._exit(1)


def _work(out: Path, unit: Unit, salt: bytes, held: HeldOutSets) -> Receipt:
    return run_unit(out, unit, salt, held, _tick)


def _tick() -> None:
    if _shared["stop"].is_set():
        raise Stopped
    counter = _shared["counter"]
    with counter.get_lock():
        counter.value += 1
