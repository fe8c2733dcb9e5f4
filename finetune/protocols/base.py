"""What a protocol is: how an encoder is asked what it knows, from frozen features to full fine-tuning.

A protocol says which head the task puts on the encoder, whether the encoder may change, and how the network
is fitted. The arm from scratch is trained by `full` whatever the protocol, because nothing that spares the
encoder suits random weights: a weak baseline would make a false gain. A new protocol is a file here, a line
in `PROTOCOLS` and its name in `config.PROTOCOLS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ...data.errors import ConfigError
from ...pretrain.encoders.base import Encoder
from ..tasks.base import Task

Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class Outcome:
    """What the fitting of an arm came to; `step` 0 where nothing was trained by steps."""

    step: int = 0  # whose weights were kept
    validation: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # into arm.json
    finished: bool = True  # False: stopped by a signal; the same command continues


@dataclass(slots=True)
class Session:
    """The arm that is being fitted, and what surrounds it."""

    task: Task
    arm: str  # pretrained, scratch or random
    folder: Path  # of the arm; holds metrics.jsonl, and last.ckpt while steps are running
    device: torch.device
    stop: Callable[[], bool] = lambda: False  # asked after every step; True: save and end unfinished
    progress: Progress | None = None
    record: Callable[[dict[str, Any]], None] = lambda _: None  # takes each row of metrics.jsonl

    def report(self, done: int, total: int, what: str) -> None:
        """Tell the progress bar."""
        if self.progress:
            self.progress(done, total, what)


class Protocol(ABC):
    """One way to fit a network on a task."""

    name: ClassVar[str]
    head: ClassVar[str] = "full"  # which network `Task.network` builds: a key of `Task.heads`
    frozen: ClassVar[bool] = False  # the encoder keeps its weights: random features are then a baseline too

    def network(self, task: Task, encoder: Encoder) -> nn.Module:
        """The network of an arm; also how a finished arm is built again.

        Raises:
            ConfigError: this kind of task has no such head.
        """
        if self.head not in task.heads:
            known = ", ".join(name for name, one in _protocols().items() if one.head in task.heads)
            raise ConfigError(
                f"protocol={self.name} does not go with {task.kind} (task {task.record.name}): choose {known}"
            )
        return task.network(encoder, self.head)

    @abstractmethod
    def fit(self, network: nn.Module, session: Session) -> Outcome:
        """Fit the network in place, choosing whatever there is to choose on validation alone."""


def better(found: dict[str, float], task: Task) -> tuple[float, ...]:
    """Higher is better: the criterion, then the log loss where a small validation split ties."""
    return (round(found[task.criterion], 6), -found.get("log_loss", 0.0))


def _protocols() -> dict[str, Protocol]:
    from . import PROTOCOLS

    return PROTOCOLS
