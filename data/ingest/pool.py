"""Run units in this process or in worker processes that may die: a unit whose worker died is done again.

Workers are spawned, not forked: BLAS, Blosc2 and torch threads of the parent would not survive a fork. A
worker costs about a second and 150 MB to start. A killed parent leaves no orphans; a fault stops all workers.

A decoder that kills its process (a segmentation fault, the kernel's out-of-memory killer) does not end the
build: the unit is done again by a fresh worker, and if that dies too, set aside until the others are done and
searched for the image at fault (crashes.py).

Memory: a unit is given out only while the needs of all units under way fit in the budget (needs.py); one that
needs more than all of it waits until it is alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..shards.parallel import leave_with
from .crashes import Crash, isolate
from .needs import WORKER_BYTES, need_of
from .units import HeldOutSets, Receipt, Unit, finished
from .work import run_unit, try_records

POLL_SECONDS = 0.25

Tell = Callable[[int, str], None]


class Stopped(Exception):
    """Another worker failed, or the user interrupted: this unit is given up."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is asked for: a unit, or with `only` a trial of some of its records."""

    unit: Unit
    crashed: Mapping[int, str] = field(default_factory=dict)  # record -> why it is not read again
    only: range | None = None


def run_all(
    units: list[Unit],
    out: Path,
    salt: bytes,
    held: HeldOutSets,
    *,
    workers: int,
    memory: int | None,
    tell: Tell,
) -> Iterator[Receipt]:
    """Do every unit and yield its receipt; `tell(records done, what)` reports progress.

    Args:
        workers: processes; 0 works in this one, where a crash is the end.
        memory: bytes that the workers may use together, None: no bound.

    Raises:
        ShardError: the first fault of any unit; the other units are stopped and leave nothing half-written.
    """
    if workers <= 0:
        yield from _run_here(units, out, salt, held, tell)
    elif units:
        with Pool(out, salt, held, min(workers, len(units)), memory) as pool:
            yield from pool.run(units, tell)


def _run_here(units: list[Unit], out: Path, salt: bytes, held: HeldOutSets, tell: Tell) -> Iterator[Receipt]:
    done = 0
    for unit in units:

        def tick(number: int, done: int = done, name: str = unit.name) -> None:
            tell(done + number, name)

        yield run_unit(out, unit, salt, held, tick)
        done += len(unit.records)
        tell(done, unit.name)


class _Worker:
    """A process, the job it is at, and the record that it read last."""

    def __init__(self, pool: Pool) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, os.getpid(), pool.stop, pool.out, pool.salt, pool.held)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.started = False
        self.job: Job | None = None
        self.record = -1

    def give(self, job: Job) -> None:
        self.job, self.record = job, -1
        with contextlib.suppress(OSError):  # dead already: that is noticed where answers are read
            self.connection.send(job)

    def answers(self) -> Iterator[tuple[str, Any]]:
        """What the worker has said since; ("died", exit code) when it is no more."""
        try:
            while self.connection.poll():
                kind, value = self.connection.recv()
                if kind == "at":
                    self.started, self.record = True, value
                else:
                    self.job = None
                    yield kind, value
        except (EOFError, OSError):
            self.process.join()
            yield "died", self.process.exitcode

    def end(self) -> None:
        self.connection.close()  # which it hears when it asks for the next job, or says anything
        self.process.join()


class Pool:
    """Worker processes for one run; a context manager that leaves none behind."""

    def __init__(self, out: Path, salt: bytes, held: HeldOutSets, size: int, memory: int | None) -> None:
        self.out, self.salt, self.held = out, salt, held
        self.size, self.memory = size, memory
        self.stop = multiprocessing.get_context("spawn").Event()
        self.workers: list[_Worker] = []
        self.needs: dict[str, int] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for worker in self.workers:
            worker.end()

    def run(self, units: list[Unit], tell: Tell) -> Iterator[Receipt]:
        waiting, sick, deaths, done = deque(units), [], set(), 0
        while waiting or any(worker.job for worker in self.workers):
            self._hand_out(waiting)
            for job, kind, value in self._next_answers():
                if kind == "done":
                    done += len(job.unit.records)
                    yield value
                elif job.unit.name in deaths:
                    sick.append(job.unit)
                else:
                    deaths.add(job.unit.name)
                    waiting.appendleft(job.unit)
            under_way = sum(max(0, worker.record) for worker in self.workers if worker.job)
            tell(done + under_way, f"{len(waiting)} of {len(units)} units to go")
        yield from self.isolate(sick, tell, done)

    def isolate(self, units: list[Unit], tell: Tell, done: int) -> Iterator[Receipt]:
        """Do units that have killed workers, one after the other and nothing beside them."""
        for unit in units:
            tell(done, f"looking for the image that crashes the reader in {unit.name}")
            yield isolate(unit, self._alone)
            done += len(unit.records)
            tell(done, unit.name)

    def _hand_out(self, waiting: deque[Unit]) -> None:
        """Give idle workers the first units that fit in memory; when nothing is under way, the very first."""
        busy = [self._need(worker.job.unit) for worker in self.workers if worker.job]
        idle = [worker for worker in self.workers if not worker.job]
        for unit in list(waiting) if len(busy) < self.size else ():
            used = sum(busy) + self._need(unit) + (len(busy) + 1) * WORKER_BYTES
            if busy and self.memory is not None and used > self.memory:
                continue
            waiting.remove(unit)
            (idle.pop() if idle else self._hire()).give(Job(unit))
            busy.append(self._need(unit))
            if len(busy) == self.size:
                return

    def _need(self, unit: Unit) -> int:
        if self.memory is not None and unit.name not in self.needs:
            self.needs[unit.name] = need_of(unit)
        return self.needs.get(unit.name, 0)

    def _hire(self) -> _Worker:
        self.workers.append(_Worker(self))
        return self.workers[-1]

    def _next_answers(self) -> Iterator[tuple[Job, str, Any]]:
        """(job, "done" | "died", receipt | exit code) as they come in, for `POLL_SECONDS` at most."""
        busy = {worker.connection: worker for worker in self.workers if worker.job}
        for connection in wait(list(busy), POLL_SECONDS):
            worker = busy[connection]  # type: ignore[index]
            job = worker.job
            for kind, value in worker.answers():
                if kind == "fault":
                    raise value
                if kind == "died":
                    self.workers.remove(worker)
                    worker.connection.close()
                    if not worker.started:
                        raise ShardError(
                            f"a worker process ended before it began (exit status {value}); a script that "
                            'builds needs `if __name__ == "__main__":`'
                        )
                assert job is not None
                yield job, kind, value

    def _alone(self, unit: Unit, crashed: Mapping[int, str], only: range | None) -> Receipt | Crash | None:
        """Do one job in a fresh process while no other runs."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()
        worker = self._hire()
        worker.give(Job(unit, crashed, only))
        while True:
            for _, kind, value in self._next_answers():
                return Crash(value, worker.record) if kind == "died" else value


def _serve(connection: Connection, parent: int, stop: Any, out: Path, salt: bytes, held: HeldOutSets) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears ctrl-c and sets the stop flag
    leave_with(parent)

    def tick(number: int) -> None:
        if stop.is_set():
            raise Stopped
        connection.send(("at", number))

    with contextlib.suppress(EOFError, OSError):  # the parent has hung up
        while True:
            job = connection.recv()
            connection.send(("at", -1))
            try:
                answer = ("done", do(job, out, salt, held, tick))
            except Stopped:
                return
            except BaseException as error:
                answer = ("fault", portable(error))
            connection.send(answer)


def do(job: Job, out: Path, salt: bytes, held: HeldOutSets, tick: Callable[[int], None]) -> Receipt | None:
    if job.only is not None:
        return try_records(job.unit, job.only, salt, job.crashed, tick)
    # A worker that died after the receipt was written has nothing left to do.
    return finished(out, job.unit) or run_unit(out, job.unit, salt, held, tick, job.crashed)


def portable(error: BaseException) -> BaseException:
    """`error` with its traceback as a note; what cannot be pickled becomes a RuntimeError."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError("\n".join(error.__notes__))
