"""What a process and its children use: CPU time, memory, bytes from disk; and what the others take meanwhile.

Loader workers live as long as the loader, so their CPU time is read from their own clocks while they run: the
kernel's clock of each process, in nanoseconds, finished threads included (ticks of 10 ms elsewhere). Children
that ended and were waited for are counted too. What is counted is everything since each process started: take
differences.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil


def tree(root: int | None = None) -> list[psutil.Process]:
    """The process `root` (default: this one) and all its living descendants."""
    top = psutil.Process(root)
    return [top, *top.children(recursive=True)]


def cpu_seconds() -> float:
    """CPU seconds of this process, of its living descendants, and of its children that ended."""
    ended = psutil.Process().cpu_times()
    total = float(ended.children_user) + float(ended.children_system)
    return total + sum(_clock(process) for process in tree())


def _clock(process: psutil.Process) -> float:
    if sys.platform == "linux":
        try:
            return time.clock_gettime((~process.pid << 3) | 2)  # CPUCLOCK_SCHED of another process
        except OSError:
            return 0.0  # it ended in between
    try:
        used = process.cpu_times()
    except psutil.Error:
        return 0.0
    return used.user + used.system


def resident_bytes() -> int:
    """Memory of this process and its descendants, shared pages counted once (PSS; RSS off Linux)."""
    total = 0
    for process in tree():
        try:
            total += _pss(process)
        except (OSError, psutil.Error):
            continue  # it ended in between
    return total


def _pss(process: psutil.Process) -> int:
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        return int(process.memory_info().rss)
    line = next(row for row in rollup.read_text().splitlines() if row.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def disk_bytes() -> int | None:
    """Bytes that this process and its descendants fetched from a disk; None where that is not told."""
    try:
        return sum(_read_bytes(process.pid) for process in tree())
    except (OSError, StopIteration):
        return None


def _read_bytes(pid: int) -> int:
    rows = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("read_bytes:")).split()[1])


def drop_cache(paths: Iterable[Path]) -> None:
    """Ask the kernel to forget the cached pages of these files. Written pages go to the disk first.

    Pages that a process has mapped stay; a file system in memory has nothing to drop.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Load:
    """The machine's clocks at one moment; `share_of_others` compares two."""

    busy: float  # CPU seconds of all processes on all cores
    total: float  # the same, idle time included
    mine: float

    @classmethod
    def now(cls) -> Load:
        """Read the clocks."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return cls(total - idle, total, cpu_seconds())

    def share_of_others(self) -> float:
        """Share of the machine's CPU time that others (and the hypervisor) took since this moment."""
        now = Load.now()
        spent = now.total - self.total
        taken = (now.busy - self.busy) - (now.mine - self.mine)
        return min(1.0, max(0.0, taken / spent)) if spent > 0 else 0.0
