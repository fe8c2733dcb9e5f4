"""A loader that gives nothing: no row is ever written then, so a thread of its own looks at the clock.

It says so once each time, in the log and to the tracker. Nothing is stopped: storage comes back, and a
process group has a time limit of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class StallWatch:
    """Told when training begins and ends to wait for a batch; calls `tell(seconds)` when that lasts."""

    def __init__(self, seconds: float, tell: Callable[[float], None]) -> None:
        """Start the thread.

        Args:
            seconds: a wait that is no longer usual.
            tell: called from the thread, once a wait.
        """
        self.seconds = seconds
        self.tell = tell
        self._since: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="medloom-stall", daemon=True)
        self._thread.start()

    def waits(self) -> None:
        """Training waits for a batch from now on."""
        self._since = time.monotonic()

    def works(self) -> None:
        """A batch has come."""
        self._since = None

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        told: float | None = None
        while not self._over.wait(self.seconds / 10):
            since = self._since
            if since is None or since == told or time.monotonic() - since < self.seconds:
                continue
            told = since
            self.tell(time.monotonic() - since)
