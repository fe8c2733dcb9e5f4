"""What a run folder measured: seconds of a step on so many ranks, and how fast checkpoints were written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ...data.errors import ConfigError
from ..alarms import number
from ..config import PretrainConfig, load_config
from ..diagnose import Run
from ..fault_tolerance.checkpoint import history
from ..folder import CONFIG, ENVIRONMENT
from ..monitor.beat import read_beat
from ..tracking import of_last_start

SETTLED = 2  # rows at the start of a process that are left out: caches fill, kernels are compiled


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run folder. Times are medians over rows."""

    name: str
    config: PretrainConfig
    device: str  # as env.json names it
    ranks: int
    seconds: float  # of a step, without diagnostics and probes
    data_wait: float  # share of it
    store_gb_s: float | None  # a checkpoint written, fsynced and read back

    @property
    def working(self) -> float:
        """Seconds of a step without the wait for data."""
        return self.seconds * (1 - self.data_wait)

    @property
    def precision(self) -> str:
        """Lightning's name, `auto` resolved as the run did."""
        wanted = self.config.trainer.precision
        if wanted != "auto":
            return wanted
        return "32-true" if self.device.startswith("cpu") else "bf16-mixed"


def read_measured(folder: Path) -> Measured:
    """The figures of the last process that trained in `folder`.

    Raises:
        ConfigError: no run, no heartbeat (which says how many ranks there were), or too few rows.
    """
    run, beat = Run.read(folder), read_beat(folder)
    if beat is None:
        raise ConfigError(
            f"{folder}: no heartbeat.json, which says on how many ranks it ran: measure it anew"
        )
    rows = of_last_start(run.rows)[SETTLED:]
    rates = [rate for rate in (number(row, "samples_per_s") for row in rows) if rate > 0]
    if not rates:
        raise ConfigError(
            f"{folder}: {len(run.rows)} rows say no rate beyond the first {SETTLED} of a start: train more "
            "steps, or lower trainer.log_every"
        )
    config = load_config(folder / CONFIG)
    waits = [wait for wait in (number(row, "data_wait") for row in rows) if math.isfinite(wait)]
    known = [stored for stored in history(folder) if stored.seconds > 0]
    speeds = [stored.bytes / stored.seconds / 1e9 for stored in known]
    return Measured(
        name=folder.name, config=config, device=_device(folder), ranks=beat.ranks,
        seconds=config.data.step_samples / median(rates), data_wait=median(waits) if waits else 0.0,
        store_gb_s=median(speeds) if speeds else None,
    )  # fmt: skip


def _device(folder: Path) -> str:
    try:
        return str(json.loads((folder / ENVIRONMENT).read_text())["devices"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return "unknown"
