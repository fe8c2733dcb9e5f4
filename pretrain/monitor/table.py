"""Run folders below a folder, as one line each: `medloom runs`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...data.errors import ConfigError
from ..alarms import number
from .status import Follower, best_probe, run_config


def find_runs(roots: Sequence[Path]) -> Iterator[Follower]:
    """The runs at and below `roots`, sorted by path; what lies inside a run is not searched.

    Raises:
        ConfigError: a root that is no folder.
    """
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root} is no folder: name one that holds runs, e.g. `medloom runs runs`")
        for place, folders, _ in os.walk(root, followlinks=False):
            config = run_config(Path(place))
            if config is not None:
                folders.clear()
                yield Follower(Path(place), config)
            else:
                folders[:] = sorted(name for name in folders if not name.startswith("."))


def describe(follower: Follower, now: float | None = None) -> dict[str, Any]:
    """One run as plain values, those of the table and more. Seconds, bytes, shares; None: not known."""
    status = follower.look(now)
    run, last, probe = status.run, status.last, best_probe(status.run.rows)
    return {
        "run": str(follower.folder), "state": status.state, "method": run.method,
        "encoder": str(run.get("encoder.model") or run.get("encoder.size") or run.get("encoder.name") or ""),
        "family": str(run.get("encoder.name") or ""),
        "step": status.step, "steps": status.steps, "seconds_left": status.seconds_left,
        "seconds_a_step": status.seconds_a_step, "ranks": status.beat.ranks if status.beat else None,
        "loss": _value(last, "loss"), "rankme": _value(last, "rankme"),
        "samples_per_s": _value(last, "samples_per_s"), "data_wait": _value(last, "data_wait"),
        "mfu": _value(last, "mfu"), "gpu_memory_gb": _value(last, "gpu_memory_gb"),
        "probe": None if probe is None else probe.kind, "best_probe": None if probe is None else probe.score,
        "best_probe_step": None if probe is None else probe.step,
        "row_age": status.row_age, "beat_age": status.beat_age,
        "checkpoint_step": status.saved_step, "checkpoint_age": status.saved_age,
        "checkpoint_bytes": status.saved_bytes, "bytes": folder_bytes(follower.folder),
        "alarms": status.alarms, "error": status.beat.error if status.beat else "",
    }  # fmt: skip


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; one that several links name counts once, as on the disk."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                found = Path(place, name).lstat()
            except OSError:  # a temporary file that is gone by now
                continue
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def _value(row: dict[str, Any], key: str) -> float | None:
    value = number(row, key)
    return value if value == value else None
