"""A loader that gives nothing: no row is ever written then, so a thread of its own looks at the clock.

It says so once each time, in the log and to the tracker. Nothing is stopped: storage comes back, and a
process group has a time limit of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl


class StallWatch(pl.Callback):
    """Calls `tell(seconds)` when training waits long for a batch, the first one included.

    To be the last callback on the main process: what the others do after a step is no wait.
    """

    def __init__(self, seconds: float, tell: Callable[[float], None]) -> None:
        """Start nothing yet.

        Args:
            seconds: a wait that is no longer usual.
            tell: called from the thread, once a wait.
        """
        self.seconds = seconds
        self.tell = tell
        self._since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="medloom-stall", daemon=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the thread; training waits for its first batch from now on."""
        self._since = time.monotonic()
        self._thread.start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch has come."""
        self._since = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Training waits for the next batch from now on."""
        self._since = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """End the thread: nobody waits any more."""
        self._since = None
        self._over.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """End the thread."""
        self._since = None
        self._over.set()

    def _look(self) -> None:
        told: float | None = None
        while not self._over.wait(self.seconds / 10):
            since = self._since
            if since is None or since == told or time.monotonic() - since < self.seconds:
                continue
            told = since
            self.tell(time.monotonic() - since)
