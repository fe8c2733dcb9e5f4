"""What a tracker can do. It runs in a thread of its own (tracker.py), so that it may block and raise."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Segment:
    """One run of a tracker from a start or a resume to its end."""

    folder: Path  # of the run; trackers keep their files in it
    name: str
    job: str  # pretrain | finetune | evaluate | benchmark
    values: dict[str, Any]  # configuration, environment and lineage, nothing private in them
    start: int = 0  # step from which this segment goes on
    group: str | None = None  # of a run that this one belongs to; None: a group of its own


@dataclass(frozen=True)
class Artifact:
    """A link of the lineage: shards, encoder, fine-tuned model, evaluation, leaderboard.

    What has the same facts is the same artifact wherever it is told of: a run that made an encoder and a run
    that starts from it need not know each other.
    """

    kind: str  # dataset | encoder | model | evaluation | benchmark
    name: str  # with the beginning of a hash
    facts: dict[str, Any]  # plain JSON, nothing private; hashes stand for what is not uploaded
    files: tuple[Path, ...] = field(default=(), compare=False)

    def text(self) -> str:
        """The facts as a file: the same bytes from the same facts."""
        return json.dumps({"kind": self.kind, **self.facts}, indent=1, sort_keys=True) + "\n"


class Backend(ABC):
    """One kind of tracker. Every call may raise; the front counts and says it once."""

    title = ""

    @abstractmethod
    def start(self) -> str | None:
        """Open the run; returns what to tell the user, such as an address or how to look at it."""

    @abstractmethod
    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        """Mirror one row of metrics.jsonl (it has `step`), and pictures by name."""

    @abstractmethod
    def alert(self, name: str, text: str, step: int) -> None:
        """Tell of an alarm."""

    @abstractmethod
    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        """Show a table; a cell of the column `image` names one of `images`."""

    @abstractmethod
    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        """Link the run to what it read (`used`) or made."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        """Close the run; waits until everything is delivered."""

    def abandon(self, alive: Callable[[], bool]) -> str | None:
        """Give up on a call that does not end; returns what is left to do by hand.

        Args:
            alive: whether the thread is still in that call.
        """
        return None


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, by key, without its step and the time of day."""
    found = {
        key: float(value)
        for key, value in row.items()
        if key not in ("step", "time") and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {key: value for key, value in found.items() if value - value == 0}
