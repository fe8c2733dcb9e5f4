"""Checkpoints that survive a kill at any instruction, and the callback that decides when to write one.

A checkpoint is written under a temporary name, fsynced and renamed over `last.ckpt`; the one before stays as
`previous.ckpt` through a hard link, so that at every moment at least one complete file exists. A reader
checks the CRC of every record in the file (torch itself does not): a truncated or flipped `last.ckpt` falls
back to `previous.ckpt` with a warning. The price is twice the disk space and one more read of the file at a
resume.
"""

from __future__ import annotations

import logging
import os
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ..data.atomic import TEMPORARY, replacing, sweep
from ..data.errors import CheckpointError
from .preempt import StopSignal, agree, steps_between_checks

log = logging.getLogger(__name__)

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"


def fault(path: Path) -> str | None:
    """Why `path` is no complete checkpoint; None when it is one. Reads the whole file."""
    if not path.is_file():
        return "missing"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        return f"not readable ({error})"
    return f"checksum of {broken} is wrong" if broken else None


def newest(folder: Path) -> Path | None:
    """The checkpoint to resume from: last.ckpt, else previous.ckpt with a warning; None when there is none.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    faults: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        reason = fault(path)
        if reason is None:
            if faults:
                log.warning("%s; resuming from %s", "; ".join(faults), path)
            return path
        if reason != "missing" or faults:
            faults.append(f"{path}: {reason}")
    if not faults:
        return None
    raise CheckpointError(
        f"{'; '.join(faults)}: no checkpoint is usable; start again in another folder (out=...)"
    )


def save(trainer: pl.Trainer, folder: Path) -> None:
    """Write last.ckpt on all ranks' behalf (a collective call), keeping the one before as previous.ckpt.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; last.ckpt is still the old one.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    temporary = folder / f"{TEMPORARY}{LAST}"
    try:
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            if last.exists():
                with replacing(previous) as link:
                    os.link(last, link)
            with replacing(last) as complete:
                temporary.replace(complete)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{last}: cannot be written ({error}): free space, then resume=true") from error
    trainer.strategy.barrier("checkpoint")


class Checkpointing(pl.Callback):
    """Saves every so many steps, every so many minutes, and when asked to stop; then it stops the run.

    The clock and the signals of one rank bind all ranks: they exchange (stop, due, seconds of a step) every k
    steps, with k × step time below a quarter of the grace period.
    """

    def __init__(
        self, folder: Path, *, every_steps: int, every_minutes: float, grace_seconds: float, total_steps: int
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.every_seconds = 60 * every_minutes
        self.grace_seconds = grace_seconds
        self.total_steps = total_steps
        self.signal = StopSignal()
        self.preempted = False
        self.saved_step = -1
        self._next_check = 0
        self._saved_at = self._checked_at = 0.0
        self._checked_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Install the handlers (after Lightning's own) and start the clocks."""
        if trainer.is_global_zero:
            sweep(self.folder)
        self.saved_step = self._checked_step = trainer.global_step
        self._next_check = trainer.global_step + 1
        self._saved_at = self._checked_at = time.monotonic()
        self.signal.install()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to."""
        step = trainer.global_step
        if step in (self.saved_step, self._checked_step):
            return  # a micro-batch of an unfinished step
        stop, due = self._agreed(trainer, step)
        if stop or due or step % self.every_steps == 0 or step >= self.total_steps:
            pl_module.check_finite()  # a checkpoint must not hold a state that nothing can be learnt from
            save(trainer, self.folder)
            self.saved_step, self._saved_at = step, time.monotonic()
        if stop and step < self.total_steps:
            name = self.signal.received.name if self.signal.received else "a signal on another rank"
            log.warning(
                "%s: checkpoint of step %d is written, stopping; continue with resume=true", name, step
            )
            self.preempted = True
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self.signal.uninstall()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self.signal.uninstall()

    def _agreed(self, trainer: pl.Trainer, step: int) -> tuple[bool, bool]:
        """(stop, due by the clock), equal on all ranks; between two checks both are False."""
        if step < self._next_check and trainer.world_size > 1:
            return False, False
        now = time.monotonic()
        seconds = (now - self._checked_at) / max(1, step - self._checked_step)
        wishes = [self.signal.received is not None, now - self._saved_at > self.every_seconds, seconds]
        stop, due, slowest = agree([float(wish) for wish in wishes], trainer.strategy.root_device)
        self._checked_step, self._checked_at = step, now
        self._next_check = step + steps_between_checks(slowest, self.grace_seconds)
        return bool(stop), bool(due)
