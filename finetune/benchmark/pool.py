"""Cells on this machine: some worker processes, each doing one cell after the other.

Processes live on between cells, because importing torch costs seconds and a cached probe less than one. A
process that dies (memory, a crash in a library) costs its cell, which becomes a failure, and is replaced. On
a signal the workers save and leave; the same command continues. Threads are the cores divided by the workers;
with several accelerators the workers take turns on them.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from .cell import Outcome, run_cell, state, write_failure
from .config import BenchmarkConfig
from .grid import Cell

logger = logging.getLogger(__name__)

Tell = Callable[[int, int, str], None]
_LEAVE_SECONDS = 60.0  # that a worker has to save what it does


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, config: BenchmarkConfig, number: int, threads: int, device: str | None) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.number = number
        self.cell: Cell | None = None
        arguments = (theirs, config, threads, device)
        self.process = context.Process(target=_serve, args=arguments, daemon=False)
        self.process.start()
        theirs.close()

    def give(self, cell: Cell) -> None:
        self.cell = cell
        with contextlib.suppress(OSError):  # it has died: the wait finds its end
            self.pipe.send(cell)

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)


def run_cells(
    config: BenchmarkConfig, cells: Sequence[Cell], *, jobs: int = 1, tell: Tell | None = None
) -> dict[str, Outcome]:
    """Do cells with `jobs` processes; returns the outcome of each by name.

    `tell(done, all, what)` is called at every start and end. KeyboardInterrupt and SIGTERM stop all of them,
    after they have saved, with "stopped" for what is not finished.
    """
    todo, outcomes = deque(cells), dict[str, Outcome]()
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    devices = _accelerators(config.device)
    workers: dict[Connection, _Worker] = {}
    stopping = _Stopping()

    def start(number: int) -> None:
        worker = _Worker(config, number, threads, devices[number % len(devices)] if devices else None)
        workers[worker.pipe] = worker
        worker.give(todo.popleft())

    def say(what: str) -> None:
        if tell:
            tell(len(outcomes), len(cells), f"cells | {what}")

    with stopping:
        for number in range(min(jobs, len(todo))):
            start(number)
        while workers:
            say(", ".join(worker.cell.name for worker in workers.values() if worker.cell))
            for pipe in wait([*workers], timeout=0.5):
                assert isinstance(pipe, Connection)
                worker = workers[pipe]
                outcome, alive = _answer(worker, config)
                if worker.cell is not None:
                    outcomes[worker.cell.name] = outcome
                if stopping.asked or not todo:
                    worker.leave()
                    del workers[pipe]
                elif alive:
                    worker.give(todo.popleft())
                else:
                    del workers[pipe]
                    start(worker.number)
            if stopping.asked and not stopping.told:
                stopping.tell([worker.process.pid for worker in workers.values()])
        say("finished" if not stopping.asked else "stopped")
    for cell in todo:
        outcomes[cell.name] = "stopped"
    return outcomes


class _Stopping:
    """Passes a first SIGINT or SIGTERM on to the workers once; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = self.told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        with contextlib.suppress(ValueError):  # not the main thread: whoever started it handles signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, pids: Sequence[int | None]) -> None:
        """Ask the workers to save and leave."""
        self.told = True
        for pid in pids:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def _answer(worker: _Worker, config: BenchmarkConfig) -> tuple[Outcome, bool]:
    """What a worker says of its cell and whether it lives; how it died is written as the cell's failure."""
    try:
        return worker.pipe.recv(), True
    except (EOFError, OSError):
        worker.process.join(_LEAVE_SECONDS)
    code, cell = worker.process.exitcode, worker.cell
    if code == -signal.SIGTERM:
        return "stopped", False
    if cell is not None and state(cell.folder(config.folder)) == "open":
        how = f"ended with status {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        mend = "; out of memory? lower --jobs or memory_gib" if code == -signal.SIGKILL else ""
        write_failure(cell.folder(config.folder), cell, f"its process {how}{mend}")
    return "failed", False


def _serve(pipe: Connection, config: BenchmarkConfig, threads: int, device: str | None) -> None:
    """A worker process: cells come, outcomes go."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent passes it on
    import torch

    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")  # the libraries' own deprecations are not the user's business
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")  # failures are in their files
    while True:
        try:
            cell = pipe.recv()
        except EOFError:
            return
        if cell is None:
            return
        pipe.send(run_cell(config, cell))


def _accelerators(device: str) -> list[str]:
    """CUDA devices that the workers share out, as CUDA_VISIBLE_DEVICES names them; empty: leave it."""
    if device == "cpu":
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        names = given.split(",")
    else:
        import torch

        names = [str(index) for index in range(torch.cuda.device_count())]
    return names if len(names) > 1 else []
