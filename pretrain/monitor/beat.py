"""heartbeat.json: the sign of life of a run, and what it ended with.

Rows may be minutes apart, and a process that was killed writes no last word. So rank 0 says every few seconds
that it lives, at which step it is and since when; how a run ended stands in the same file. A beat that is
old means that nobody is there. The ages are wall-clock times of two machines: clocks that differ by more
than `LOST` seconds make a run look lost.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...data.atomic import write_json

BEAT = "heartbeat.json"
EVERY = 10.0  # seconds between two beats
LOST = 60.0  # seconds without a beat after which nobody is there

# What a beat says; `lost` and `stalled` are what a reader makes of it (status.py).
STARTING, RUNNING, STOPPED, REQUEUED, FINISHED, FAILED = (
    "starting", "running", "stopped", "requeued", "finished", "failed",
)  # fmt: skip
ALIVE = (STARTING, RUNNING)


@dataclass(kw_only=True)
class Beat:
    """One sign of life. Times are seconds since 1970."""

    state: str = STARTING
    time: float = 0.0  # of this beat
    started: float = 0.0  # of this process
    step: int = 0  # optimiser steps done
    stepped: float = 0.0  # when the last of them ended; 0: none in this process
    steps: int = 0  # of the whole run
    ranks: int = 1
    error: str = ""  # why it failed, without paths


def write_beat(folder: Path, beat: Beat) -> None:
    """Replace the file atomically. Raises OSError where it cannot be written."""
    write_json(folder / BEAT, asdict(beat))


def read_beat(folder: Path) -> Beat | None:
    """The last beat; None where there is none that can be read (a run of an older version, a half copy)."""
    defaults = asdict(Beat())
    try:
        values: dict[str, Any] = json.loads((folder / BEAT).read_text(encoding="utf-8"))
        return Beat(**{key: type(default)(values.get(key, default)) for key, default in defaults.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
