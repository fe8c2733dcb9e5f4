"""A pretraining run as its tracker sees it: rows, alarms, what it read, what it made, how it ended.

On rank 0 only; on the other ranks every call does nothing. Several rounds of training after rollbacks are one
run of the tracker. A run that is being preempted waits a sixth of its grace period for the tracker at most:
what comes after, the requeue, matters more.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.config import to_dict
from ..data.stream.stream import Stream
from .artefact import RECORD, WEIGHTS
from .config import PretrainConfig
from .fault_tolerance.guard import BadStep
from .folder import ENVIRONMENT
from .tracking import Tracker, lineage

PROBES = ("probe/knn_", "probe/linear_", "probe/dense_")


class Mirror:
    """The tracker of one process's share of a run; a context manager, opened when the run really starts."""

    def __init__(self, config: PretrainConfig, *, main: bool) -> None:
        """Refuse a tracker that is not installed, on every rank.

        Raises:
            ConfigError: the package is missing.
        """
        config.tracking.require()
        self.config = config
        self.main = main
        self.tracker: Tracker | None = None
        self.row: Mapping[str, Any] = {}
        self._finished = False

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tracker is None:
            return
        if kind is not None and issubclass(kind, BadStep):  # its message names samples: not here
            text = "a loss that is not finite or a spike of the gradient stopped the run; bad/ says which"
            self.alert("bad step", text, self.row.get("step", 0))
        stopped = kind is None and not self._finished
        self.tracker.finish(
            {**self.row, "finished": self._finished}, failed=kind is not None,
            seconds=self.config.trainer.grace_seconds / 6 if stopped else None,
        )  # fmt: skip

    def open(self, folder: Path, start: int, data: Stream, ancestor: Mapping[str, Any] | None) -> None:
        """Start the tracker and tell it what the run reads.

        Args:
            start: step of the checkpoint from which the run goes on.
            ancestor: encoder.json of `init_from`.
        """
        if not self.main:
            return
        config = self.config
        environment = json.loads((folder / ENVIRONMENT).read_text())
        values = {**to_dict(config), "environment": environment}
        self.tracker = Tracker(folder, config.tracking, name=config.name, values=values, start=start)
        self.tracker.uses(lineage.shards(data.shards.manifest, data.sources))
        if ancestor is not None:
            self.tracker.uses(lineage.encoder({"source": config.init_from, **ancestor}))

    def log(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Mirror a row; where it has probes, with their mean, which a sweep takes for any sources."""
        self.row = row
        if self.tracker is not None:
            scores = [value for key, value in row.items() if key.startswith(PROBES)]
            mean = {"probe/mean": statistics.fmean(scores)} if scores else {}
            self.tracker.log({**row, **mean}, images)

    def alert(self, name: str, text: str, step: int) -> None:
        """Tell of an alarm."""
        if self.tracker is not None:
            self.tracker.alert(name, text, step)

    def done(self, folder: Path) -> None:
        """The run is finished and its encoder written."""
        self._finished = True
        if self.tracker is not None:
            record = json.loads((folder / RECORD).read_text())
            self.tracker.made(lineage.encoder(record, [folder / WEIGHTS, folder / RECORD]))
