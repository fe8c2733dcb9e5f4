"""What a run folder says at one moment: progress, rates, probes, checkpoint, alarms, and whether it lives.

A `Follower` reads only what was appended since its last look, so that a watcher on a shared file system costs
a few kilobytes a second however long the run is. The rows are the authority on the numbers, heartbeat.json
on whether somebody is there.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.config import read_yaml
from ...data.errors import ConfigError
from ..artefact import RECORD
from ..diagnose import Run
from ..fault_tolerance.checkpoint import LAST, SUMS, history, in_parts
from ..folder import CONFIG
from ..tracking import METRICS, of_last_start, rows_of
from .beat import ALIVE, BEAT, LOST, RUNNING, Beat, read_beat

RECENT = 20  # rows that say how fast a run is now
STALLED = 300.0  # seconds without a step, or 20 times the usual step, after which a living run stands still
STALLED_STEPS = 20
PROBES = ("linear", "knn", "dense")  # the first that a run has is its `best probe`

# States beside those of a beat.
GONE, STANDING, UNKNOWN = "lost", "stalled", "unknown"
WRONG = ("failed", GONE, STANDING)
OVER = ("finished", "failed", "stopped", GONE, UNKNOWN)  # nothing more will come by itself

Row = dict[str, Any]


@dataclass(frozen=True)
class Probe:
    """Mean score of one kind of probe over its datasets, at the step where it was best."""

    kind: str
    score: float
    step: int

    def __str__(self) -> str:
        return f"{self.kind} {self.score:.3f}"


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run folder at one moment. Seconds are ages or durations; None: not known."""

    run: Run
    state: str
    beat: Beat | None = None
    step: int = 0
    steps: int | None = None
    seconds_a_step: float | None = None  # lately, probes and checkpoints included
    seconds_left: float | None = None
    row_age: float | None = None
    step_age: float | None = None
    beat_age: float | None = None
    saved_step: int | None = None
    saved_age: float | None = None
    saved_bytes: int | None = None
    alarms: list[str] = field(default_factory=list)

    @property
    def last(self) -> Row:
        """The last row; empty where there is none."""
        return self.run.rows[-1] if self.run.rows else {}

    @property
    def wrong(self) -> bool:
        """Whether somebody should look: it failed, is lost or stands still, or an alarm stands."""
        return self.state in WRONG or bool(self.alarms and self.state != "finished")


class Follower:
    """Reads one run folder again and again."""

    def __init__(self, folder: Path, config: dict[str, Any] | None = None) -> None:
        """Read nothing but the configuration.

        Args:
            config: what `run_config` gave; None: it is read here.

        Raises:
            ConfigError: `folder` is no run of `medloom pretrain`.
        """
        self.folder = folder
        config = config or run_config(folder)
        if config is None:
            raise ConfigError(
                f"{folder} is no run of `medloom pretrain`: it has no {CONFIG} with an objective, or neither "
                f"{METRICS} nor {BEAT}; `medloom runs` lists those below a folder"
            )
        self._config = config
        self._rows: list[Row] = []
        self._mark: tuple[int, int] = (0, 0)  # inode and size of metrics.jsonl when it was last read

    def look(self, now: float | None = None) -> Status:
        """The folder as it is.

        Args:
            now: seconds since 1970; None: this machine's clock.
        """
        now = time.time() if now is None else now
        self._read_rows()
        run = Run(self.folder.name, self._rows, self._config)
        beat = read_beat(self.folder)
        pace = seconds_a_step(self._rows)
        row_step = self._rows[-1]["step"] if self._rows else 0
        step = max(row_step, beat.step) if beat and beat.state in ALIVE else row_step
        steps = (beat.steps if beat else 0) or run.get("trainer.steps")
        state = state_of(self.folder, beat, now, pace)
        left = pace * (steps - step) if pace is not None and steps and state in ALIVE else None
        return Status(
            run=run, state=state, beat=beat, step=step, steps=steps, seconds_a_step=pace, seconds_left=left,
            row_age=_age(self.folder / METRICS, now) if self._rows else None,
            step_age=max(0.0, now - beat.stepped) if beat and beat.stepped else None,
            beat_age=max(0.0, now - beat.time) if beat else None,
            alarms=str(self._rows[-1]["alarm"]).split(" | ") if self._rows and "alarm" in self._rows[-1]
            else [], **_checkpoint(self.folder, now),
        )  # fmt: skip

    def _read_rows(self) -> None:
        """Append what is new; a resumed run writes the file anew, which is then read from its start."""
        path = self.folder / METRICS
        try:
            found = path.stat()
        except OSError:
            self._rows, self._mark = [], (0, 0)
            return
        same = found.st_ino == self._mark[0] and found.st_size >= self._mark[1]
        if same and found.st_size == self._mark[1]:
            return
        fresh, end = _appended(path, self._mark[1] if same else 0)
        self._rows = [*(self._rows if same else []), *fresh]
        self._mark = (found.st_ino, end)


def run_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of a run of `medloom pretrain`; None where `folder` is none."""
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in (METRICS, BEAT)):
        return None
    try:
        config = read_yaml(folder / CONFIG)
    except ConfigError:
        return None
    return config if {"objective", "encoder", "trainer"} <= set(config) else None


def state_of(folder: Path, beat: Beat | None, now: float, pace: float | None) -> str:
    """What a beat means now: its own word, or that nobody is there, or that nothing moves."""
    if beat is None:
        return "finished" if (folder / RECORD).is_file() else UNKNOWN
    if beat.state not in ALIVE:
        return beat.state
    if now - beat.time > LOST:
        return GONE
    patience = max(STALLED, STALLED_STEPS * (pace or 0.0))
    if beat.state == RUNNING and now - beat.stepped > patience:
        return STANDING
    return beat.state


def seconds_a_step(rows: Sequence[Row]) -> float | None:
    """Of the last rows of the last process; None with fewer than two."""
    mine = of_last_start(rows[-RECENT:])
    paces = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(mine)
        if after["step"] > before["step"]
    ]
    if not paces:
        return None
    whole = (mine[-1]["time"] - mine[0]["time"]) / (mine[-1]["step"] - mine[0]["step"])
    # The first steps of a start are slow: until they are out of sight, the median is the better guess.
    return statistics.median(paces) if mine[0]["step"] <= 1 or len(mine) < RECENT else whole


def best_probe(rows: Sequence[Row]) -> Probe | None:
    """The best mean over datasets of the first kind in `PROBES` that the rows have."""
    for kind in PROBES:
        found = []
        for row in rows:
            scores = [value for key, value in row.items()
                      if key.startswith(f"probe/{kind}_") and isinstance(value, int | float)]  # fmt: skip
            if scores:
                found.append(Probe(kind, statistics.fmean(scores), row["step"]))
        if found:
            return max(found, key=lambda probe: probe.score)
    return None


def _appended(path: Path, start: int) -> tuple[list[Row], int]:
    """Whole rows from byte `start` on, and where they end: a line that is being written waits."""
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    end = text.rfind(b"\n") + 1
    return rows_of(text[:end].splitlines()), start + end


def _checkpoint(folder: Path, now: float) -> dict[str, Any]:
    """The newest checkpoint, whole or in parts: its age, bytes and step."""
    known = history(folder)  # none in the folder of an older version
    step = known[-1].step if known and (folder / LAST).is_file() else None
    for number, parts in in_parts(folder).items():
        if number <= (step or 0):
            break
        try:
            size = sum(path.stat().st_size for path in parts.iterdir())
            return _saved(number, size, (parts / SUMS).stat().st_mtime, now)
        except OSError:  # dropped meanwhile, for a newer one
            continue
    try:
        found = (folder / LAST).stat()
    except OSError:
        return {}
    return _saved(step, found.st_size, found.st_mtime, now)


def _saved(step: int | None, size: int, written: float, now: float) -> dict[str, Any]:
    return {"saved_step": step, "saved_bytes": size, "saved_age": max(0.0, now - written)}


def _age(path: Path, now: float) -> float:
    return max(0.0, now - path.stat().st_mtime)
