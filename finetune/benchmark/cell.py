"""One cell: fine-tune, evaluate, and write what it cost; or why it failed.

`cell.json` is written last and means done; `failure.json` means that the same would fail again, and waits
for --retry. A cell that was stopped has neither, and goes on from its last checkpoint. One process at a time
works on a cell, whoever started it: a second one passes it by.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import resource
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ...data.atomic import write_json
from ...data.errors import MedloomError, first_line
from .config import BenchmarkConfig
from .grid import Cell

logger = logging.getLogger(__name__)

DONE, FAILURE = "cell.json", "failure.json"
State = Literal["done", "failed", "open"]
Outcome = Literal["done", "failed", "stopped", "elsewhere"]
Progress = Callable[[int, int, str], None]


def state(folder: Path) -> State:
    """What is known of a cell from its folder."""
    if (folder / DONE).is_file():
        return "done"
    return "failed" if (folder / FAILURE).is_file() else "open"


def run_cell(config: BenchmarkConfig, cell: Cell, progress: Progress | None = None) -> Outcome:
    """Do one cell in this process; what goes wrong becomes `failure.json`."""
    folder = cell.folder(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / ".lock") as mine:
        if not mine:
            return "elsewhere"
        if state(folder) == "done":
            return "done"
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            cost = _work(config, cell, folder, progress)
        except Exception as error:
            write_failure(folder, cell, error)
            return "failed"
        if cost is None:
            return "stopped"
        write_json(folder / DONE, {**facts(cell), **cost})
        return "done"


def facts(cell: Cell) -> dict[str, Any]:
    """What a cell is, for its JSON."""
    return {
        "encoder": cell.encoder, "arm": cell.arm, "protocol": cell.protocol, "fraction": cell.fraction,
        "seed": cell.seed, "draw": cell.draw,
    }  # fmt: skip


def write_failure(folder: Path, cell: Cell, error: BaseException | str) -> None:
    """Write why a cell failed: one line for the table, and the traceback of what is no user's mistake."""
    told = isinstance(error, MedloomError)
    values = {**facts(cell), "error": first_line(error)[:500], "refused": told}
    if isinstance(error, BaseException) and not told:
        values["error"] = f"{type(error).__name__}: {values['error']}"
        values["traceback"] = "".join(traceback.format_exception(error))[-4000:]
    write_json(folder / FAILURE, values)
    logger.warning("%s: %s", cell.name, values["error"])


def _work(
    config: BenchmarkConfig, cell: Cell, folder: Path, progress: Progress | None
) -> dict[str, Any] | None:
    """Fine-tune and evaluate; seconds and memory of both, None when a signal stopped it."""
    import torch

    from ..evaluation import evaluate
    from ..run import finetune, finished

    own = cell.config(config)
    memory = _Memory()
    begin = time.monotonic()
    run = finetune(own, progress=progress)
    if not finished(run, own):
        return None
    fitted = time.monotonic()
    evaluate(run, out=folder / "evaluation", progress=progress)
    cuda = torch.cuda.is_available() and own.device != "cpu"
    return {
        "seconds": {"fit": round(fitted - begin, 2), "score": round(time.monotonic() - fitted, 2)},
        "memory_mb": memory.peak_mb(),
        "accelerator_mb": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
    }


class _Memory:
    """Peak of this process's memory since it was made; since its start where the mark cannot be reset."""

    def __init__(self) -> None:
        import torch

        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> int:
        """MB of resident memory at its highest, libraries and loader workers' shared pages included."""
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path("/proc/self/status").read_text().splitlines()
            return round(int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024)
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process got the cell; on disks without locks it always does."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            logger.debug("%s cannot be locked (%s)", path, error)
        yield True
