"""The callback and the thread that write heartbeat.json while a run goes on.

The training thread only sets numbers; a thread writes them, every `EVERY` seconds and at each change of the
state. A file system that hangs or is full therefore costs no step, and a failed write is said once. The
price is one small file replaced every ten seconds.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ...data.errors import MedloomError, first_line
from ..artefact import WEIGHTS
from .beat import EVERY, FAILED, FINISHED, REQUEUED, RUNNING, STOPPED, Beat, write_beat

log = logging.getLogger(__name__)


class Heartbeat(pl.Callback):
    """A context manager around a run, and a callback of its trainer. Silent on all ranks but the main one."""

    def __init__(self, folder: Path, *, main: bool, steps: int, ranks: int, every: float = EVERY) -> None:
        """Nothing is written before `with`.

        Args:
            steps: of the whole run.
            ranks: processes that train together.
            every: seconds between two beats.
        """
        self.folder, self.every = folder, every
        self.beat = Beat(steps=steps, ranks=ranks, started=time.time())
        self._main, self._said = main, False
        self._writing = threading.Lock()
        self._over = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._main:
            self._write()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not self._main:
            return
        self._over = True
        self._wake.set()
        self._thread.join(timeout=self.every)
        asked = isinstance(error, KeyboardInterrupt | SystemExit)
        if error is not None and not asked:
            self.beat.error = without_paths(error)
        ended = FINISHED if (self.folder / WEIGHTS).is_file() else STOPPED
        if self.beat.state != REQUEUED:
            self.beat.state = ended if error is None or asked else FAILED
        self._write()

    def requeued(self) -> None:
        """The cluster took the request to queue this run again."""
        if self._main:
            self.beat.state = REQUEUED
            self._write()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The step at which this process begins."""
        self.beat.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step; a few attribute writes."""
        step = trainer.global_step
        if step == self.beat.step:
            return  # a micro-batch of an unfinished step
        first = self.beat.state != RUNNING
        self.beat.step, self.beat.stepped, self.beat.state = step, time.time(), RUNNING
        if first:
            self._wake.set()

    def _beat_on(self) -> None:
        while True:
            self._wake.wait(self.every)
            self._wake.clear()
            if self._over:
                return
            self._write()

    def _write(self) -> None:
        with self._writing:
            self.beat.time = time.time()
            try:
                write_beat(self.folder, self.beat)
            except OSError as error:
                if not self._said:
                    log.warning(
                        "heartbeat.json cannot be written (%s): `medloom watch` will take the run for lost",
                        error.strerror,
                    )
                self._said = True


def without_paths(error: BaseException) -> str:
    """What may be told of an error: our own messages with paths cut to their last part, else the kind alone.

    Messages of libraries name hosts, addresses and folders.
    """
    if not isinstance(error, MedloomError):
        return type(error).__name__
    text = re.sub(r"\w+://[^\s'\";,()/]*", "", first_line(error))  # hosts, where there is no path, too
    return re.sub(r"[~/]?[^\s'\":;,()=]*/(?=[^\s/])", "", text)
