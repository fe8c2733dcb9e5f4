"""Run measurements as child processes, some at a time. Each leaves a JSON file, which a second call keeps.

A job that fails leaves one as well, with `error`: failures belong to the tables. `--retry` runs them again.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One run: the file it writes, and the arguments of the benchmark that makes it."""

    result: Path
    arguments: tuple[str, ...]


def run(module: str, jobs: Sequence[Job], *, at_once: int, threads: int, limit: float, retry: bool) -> None:
    """Run the jobs that have no result yet, `at_once` in parallel, each on `threads` threads.

    Args:
        module: `python -m MODULE ARGUMENTS` is the child; its last line of output is the result as JSON.
        limit: CPU seconds after which a child is killed, and counts as failed.
    """
    waiting = [job for job in jobs if not done(job.result, retry)]
    print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished before", flush=True)
    active: list[tuple[Job, subprocess.Popen[str], float, int]] = []
    cores = sorted(os.sched_getaffinity(0))
    slots = list(range(at_once))
    begin, count = time.monotonic(), len(waiting)
    while waiting or active:
        while waiting and len(active) < at_once:
            slot = slots.pop(0)
            job = waiting.pop(0)
            child = start(module, job, threads, cores, slot, limit)
            active.append((job, child, time.monotonic(), slot))
        time.sleep(0.2)
        for entry in list(active):
            job, process, began, slot = entry
            if process.poll() is None:
                continue
            finish(job, process, limit, time.monotonic() - began)
            active.remove(entry)
            slots.append(slot)
            left = len(waiting) + len(active)
            spent = (time.monotonic() - begin) / 60
            print(
                f"{job.result.stem}: {line(job.result)} | {count - left}/{count}, {spent:.1f} min", flush=True
            )


def start(
    module: str, job: Job, threads: int, cores: Sequence[int], slot: int, limit: float
) -> subprocess.Popen[str]:
    """A child on cores of its own, so that its threads never move, with a limit to its CPU time."""

    def bounded() -> None:
        os.sched_setaffinity(0, own)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))

    own = [cores[(slot * threads + i) % len(cores)] for i in range(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                   "OPENBLAS_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
                   "WANDB_MODE": "disabled"}  # fmt: skip
    job.result.parent.mkdir(parents=True, exist_ok=True)
    output = job.result.with_suffix(".out").open("w")
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", module, *job.arguments],
        stdout=output, stderr=subprocess.STDOUT, text=True, env=environment,
        preexec_fn=bounded,
    )  # fmt: skip


def finish(job: Job, process: subprocess.Popen[str], limit: float, seconds: float) -> None:
    """Turn a child's output into its result file."""
    log = job.result.with_suffix(".out")
    lines = [text for text in log.read_text(errors="replace").splitlines() if text.strip()]
    result: dict[str, Any] = {}
    if process.returncode == -signal.SIGXCPU:
        result = {"error": f"killed after {limit:.0f} CPU seconds"}
    elif process.returncode:
        reason = next((t for t in reversed(lines) if not t.startswith(" ")), "no output")
        result = {"error": reason[:300]}
    else:
        try:
            result = json.loads(lines[-1])
        except (IndexError, ValueError):
            result = {"error": f"its last line is no result: {(lines or ['nothing'])[-1][:200]}"}
    write(job.result, {**result, "wall_seconds": round(seconds, 1)})
    if "error" not in result:
        log.unlink()


def write(path: Path, values: Any) -> None:
    """JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)


def done(path: Path, retry: bool) -> bool:
    """Whether a result is there (a failure counts, unless it is to be tried again)."""
    return path.is_file() and not (retry and "error" in json.loads(path.read_text()))


def line(path: Path) -> str:
    """A result in a few words."""
    values = json.loads(path.read_text())
    if "error" in values:
        return f"failed: {values['error']}"
    cells = ", ".join(f"{name} {cell['score']:.3f}" for name, cell in values.get("cells", {}).items())
    return f"{cells} ({values.get('steps', 0)} steps, {values.get('cpu_seconds', 0):.0f} CPU s)"


def steps_for(budget: float, trial: Callable[[int], Any], memory: Path) -> tuple[int, float]:
    """Steps that fill `budget` CPU seconds: the cost of a step and of a run's start from two short trials.

    Args:
        trial: runs n steps from the beginning to the end of a run.
        memory: file that keeps the answer for the other seeds.

    Returns:
        steps (at least 1), CPU seconds a step.
    """
    if memory.is_file():
        return tuple(json.loads(memory.read_text()))  # type: ignore[return-value]
    few, more = 2, 7
    trial(1)  # the first step of a process pays for caches and first allocations
    spent = []
    for steps in (few, more):
        began = time.process_time()
        trial(steps)
        spent.append(time.process_time() - began)
    each = max(1e-6, (spent[1] - spent[0]) / (more - few))
    fixed = max(0.0, spent[0] - few * each)
    found = (max(1, int((budget - fixed) / each)), each)
    write(memory, found)
    return found
