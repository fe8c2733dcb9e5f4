"""One peer on one case, in a process of its own that answers requests; stopped while the others are measured.

CPU time is that of the whole process tree between two batches, after as many batches as the workers may have
read ahead, so that start-up and full queues are outside. The tree is stopped (SIGSTOP) between its turns:
threads that poll would be charged to the others.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from .peers import peer
from .peers.base import Batch, Load, Material

START_METHOD = "fork"  # of the loader workers: what torch does by default where there is fork


class Failed(Exception):
    """A peer could not do it; the message is the reason that the table gives."""


class Runner:
    """A process that holds one peer's loader. Requests: open, start, measure, verify, cold, mixing, stop."""

    def __init__(self, name: str, *, fresh: bool = True) -> None:
        # A fork would start at once, but its memory is shared with this process, and not the peer's alone.
        context: Any = multiprocessing.get_context("spawn" if fresh else "fork")
        self.name = name
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, name), daemon=False)
        self._process.start()
        there.close()
        self.ask("ready", timeout=120)
        self._signal(signal.SIGSTOP)

    def ask(self, request: str, *arguments: Any, timeout: float = 120) -> Any:
        """Wake the process, let it answer, stop it again. Raises Failed with the peer's own reason."""
        if request != "ready":
            self._signal(signal.SIGCONT)
            self._here.send((request, arguments))
        try:
            if not self._here.poll(timeout):
                raise Failed(f"{request}: no answer in {timeout:.0f} s")
            status, answer = self._here.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise Failed(f"{request}: the process ended with status {self._process.exitcode}") from error
        if status != "done":
            raise Failed(f"{request}: {answer}")
        if request != "ready":
            self._signal(signal.SIGSTOP)
        return answer

    def close(self, *, patience: float = 10) -> None:
        """End the process and its workers; kill what is left after `patience` seconds."""
        with contextlib.suppress(OSError):
            if patience:
                self._signal(signal.SIGCONT)
                self._here.send(("end", ()))
        self._here.close()
        self._process.join(patience)
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join(5)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid or 0, number)


def _serve(there: Connection, name: str) -> None:
    os.setpgid(0, 0)  # its own group: stopped and continued as a whole
    multiprocessing.set_start_method(START_METHOD, force=True)  # a spawned process would hand "spawn" on
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if not os.environ.get("BENCH_DEBUG"):
        os.dup2(null, 2)
    there.send(("done", None))
    held: _Held | None = None
    while True:
        try:
            request, arguments = there.recv()
        except EOFError:
            break
        if request == "end":
            break
        try:
            if held is None:
                held = _Held(name)
            answer: Callable[..., Any] = getattr(held, request)
            there.send(("done", answer(*arguments)))
        except Exception as error:
            if os.environ.get("BENCH_DEBUG"):
                traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            there.send(("failed", f"{type(error).__name__}: {lines[-1][:200]}"))
    if held is not None:
        held.stop()
    os._exit(0)  # the workers of some peers would hang an orderly exit


class _Held:
    """The peer, its folder and its running loader, inside the process."""

    material: Material
    load: Load
    folder: Path

    def __init__(self, name: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.peer = peer(name)
        self._batches: Iterator[Batch] | None = None

    def open(self, material: Material, load: Load) -> dict[str, Any] | None:
        """Store the images, unless that was done before: seconds, bytes; None for a kind it does not load."""
        import torch

        self.stop()
        if material.kind not in self.peer.kinds:
            return None
        self.material, self.load = material, load
        self.folder = material.folder / "peers" / self.peer.name
        torch.manual_seed(load.seed)
        random.seed(load.seed)  # of the boxes where there are no workers
        done = self.folder.with_suffix(".done")
        start = time.perf_counter()
        if not done.exists():
            if self.folder.is_symlink():
                self.folder.unlink()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self.peer.prepare(material, self.folder)
            done.touch()
        self.peer.ready(material)
        files = self.peer.files(material, self.folder)
        return {
            "prepare_s": time.perf_counter() - start,
            "stored_bytes": sum(path.stat().st_size for path in files),
            "settings": self.peer.settings,
            "ends_slowly": self.peer.ends_slowly,
        }

    def start(self) -> float:
        """Seconds from nothing to the first batch, the library imported before."""
        self.stop()
        start = time.perf_counter()
        self._batches = self.peer.batches(self.material, self.folder, self.load)
        next(self._batches)
        return time.perf_counter() - start

    def measure(self, seconds: float, least: int) -> dict[str, float]:
        """CPU ms a sample, samples a second, memory; at least `least` batches."""
        from medloom.data.loader.usage import cpu_seconds, resident_bytes

        assert self._batches is not None
        for _ in range(self.load.workers * (self.load.prefetch + 1)):
            next(self._batches)
        samples = count = 0
        cpu, start = cpu_seconds(), time.perf_counter()
        while count < least or time.perf_counter() - start < seconds:
            samples += len(next(self._batches)[1])
            count += 1
        wall, used = time.perf_counter() - start, cpu_seconds() - cpu
        return {
            "cpu_ms": 1000 * used / samples,
            "samples_per_s": samples / wall,
            "memory_mb": resident_bytes() / 1e6,
            "batches": count,
        }

    def verify(self) -> int:
        """Compare the next batch with the raw images, voxel by voxel; returns how many were compared."""
        assert self._batches is not None
        images, names = next(self._batches)
        for image, name in zip(np.asarray(images), names, strict=True):
            restored = self.peer.restore(image, name, self.material)
            raw = self.material.raw(name)
            if self.material.kind == "picture":
                same = np.array_equal(restored, raw)
            else:
                same = located(np.asarray(raw), restored) is not None
            if not same:
                raise Failed(f"its image {name} is not the image that was stored")
        return len(names)

    def cold(self, count: int) -> dict[str, float | None]:
        """Bytes from the disk (mean: some peers read ahead) and ms (median) for a crop of uncached files."""
        from medloom.data.loader.usage import disk_bytes, drop_cache

        self.stop()
        load = replace(self.load, workers=0, batch=1, seed=self.load.seed + 1)
        files = self.peer.files(self.material, self.folder)
        batches = self.peer.batches(self.material, self.folder, load)
        next(batches)
        times = []
        before = disk_bytes()
        for _ in range(count):
            drop_cache(files)
            start = time.perf_counter()
            next(batches)
            times.append(1000 * (time.perf_counter() - start))
        after = disk_bytes()
        _close(batches)
        # Nothing was read: the folder lies in memory, or the kernel does not count.
        told = (after - before) / count if before is not None and after is not None else 0
        return {"cold_bytes": told or None, "cold_ms": float(np.median(times))}

    def mixing(self, count: int) -> dict[str, float] | None:
        """Distinct shards in a batch (mean of `count`), and shards there are; None without shards."""
        numbers = self.peer.shards(self.material, self.folder)
        if numbers is None:
            return None
        assert self._batches is not None
        found = [len({numbers[name] for name in next(self._batches)[1]}) for _ in range(count)]
        return {"distinct": float(np.mean(found)), "shards": float(len(set(numbers.values())))}

    def stop(self) -> None:
        """End the loader."""
        if self._batches is not None:
            _close(self._batches)
            self._batches = None


def _close(batches: Iterator[Batch]) -> None:
    import gc

    with contextlib.suppress(Exception):
        batches.close()  # type: ignore[attr-defined]
    gc.collect()


def located(raw: np.ndarray, crop: np.ndarray) -> tuple[int, ...] | None:
    """Origin at which `crop` lies in `raw`, both [D, H, W]; None when no place holds exactly these voxels."""
    if raw.dtype != crop.dtype:
        return None
    rows = crop.reshape(-1, crop.shape[-1])
    at = int(np.argmax(rows.astype(np.float64).var(axis=1)))  # the row that is least likely to occur twice
    flat, row = raw.reshape(-1), rows[at]
    place = np.flatnonzero(flat[: len(flat) - len(row) + 1] == row[0])
    for step in range(1, len(row)):
        place = place[flat[place + step] == row[step]]
    offset = np.unravel_index(at, crop.shape[:-1])
    for start in place.tolist():
        z, y, x = np.unravel_index(start, raw.shape)
        origin = (int(z - offset[0]), int(y - offset[1]), int(x))
        if min(origin) < 0:
            continue
        if np.array_equal(raw[tuple(slice(o, o + n) for o, n in zip(origin, crop.shape, strict=True))], crop):
            return origin
    return None
