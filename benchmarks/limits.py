"""Physical limits of this machine, printed beside the results: memory copies and the disk."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np


def limits(folder: Path, megabytes: int) -> dict[str, float | None]:
    """GB/s of a copy in memory on one core; MB/s of sequential and random 128 kB reads of the disk, cold."""
    return {"copy_gb_s": _copy(), **_disk(folder, megabytes)}


def _copy() -> float:
    source, target = np.ones(1 << 26, np.uint8), np.empty(1 << 26, np.uint8)
    target[:] = source
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return float((1 << 26) / 1e9 / np.median(times))


def _disk(folder: Path, megabytes: int) -> dict[str, float | None]:
    from medloom.data.loader.usage import disk_bytes, drop_cache

    path, size = folder / ".disk-speed", megabytes << 20
    block = np.random.default_rng(0).bytes(1 << 20)
    try:
        with path.open("wb") as stream:
            for _ in range(megabytes):
                stream.write(block)
        drop_cache([path])
        before = disk_bytes()
        sequential = _rate(path, range(0, size, 1 << 20), 1 << 20)
        after = disk_bytes()
        if before is None or after is None or after - before < size // 2:
            return {"disk_sequential_mb_s": None, "disk_random_mb_s": None}  # it lies in memory
        drop_cache([path])
        places = np.random.default_rng(1).integers(0, size >> 17, 64) << 17
        return {"disk_sequential_mb_s": sequential, "disk_random_mb_s": _rate(path, places.tolist(), 1 << 17)}
    finally:
        path.unlink(missing_ok=True)


def _rate(path: Path, offsets: Any, length: int) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        start, count = time.perf_counter(), 0
        for offset in offsets:
            count += len(os.pread(descriptor, length, offset))
        return count / 1e6 / (time.perf_counter() - start)
    finally:
        os.close(descriptor)


def host() -> dict[str, Any]:
    """What the machine is, without its name: CPU model, cores, memory, file system, versions."""
    import psutil

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        rows = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(row.split(":", 1)[1].strip() for row in rows if row.startswith("model name"))
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of medloom and of whatever a peer may use; what is not installed says so."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "medloom", "torch", "numpy", "blosc2", "nibabel", "webdataset", "monai", "litdata",
        "mosaicml-streaming", "megatron-energon", "pillow",
    ):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
