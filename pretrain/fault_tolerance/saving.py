"""When a checkpoint is written and when the run stops: by steps, by the clock, by a signal, by a time limit.

The state is copied to host memory at the end of a step, which all ranks take part in; a thread of rank 0
writes it while training goes on (`trainer.checkpoint_async`). One save at a time: a second one waits. The
save before a stop and the one of the last step are written before anything else happens. A periodic save that
fails (a full disk) is a warning and is tried again when the next one is due; one before a stop is an error on
all ranks. The price of the thread is the state once more in host memory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ...data.atomic import sweep
from ...data.errors import CheckpointError
from ..config import TrainerConfig
from ..ranks import any_rank, largest
from ..scale import split
from .checkpoint import Stored, store
from .preempt import StopSignal, steps_between_checks

log = logging.getLogger(__name__)

END_TIME = "SLURM_JOB_END_TIME"  # seconds since 1970 at which SLURM ends the job


def snapshot(trainer: pl.Trainer, *, copy: bool = True) -> dict[str, Any] | None:
    """Everything that a resumed run needs (a collective call); None on the ranks that do not write.

    Args:
        copy: tensors get memory of their own, which later steps do not change; False: those on the CPU are
            the run's own, to be written before the next step.
    """
    state: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    if not trainer.is_global_zero:
        return None
    moved = _on_host(state, copy=copy, seen={})
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)  # the copies have arrived
    return moved


def _on_host(value: Any, *, copy: bool, seen: dict[tuple[Any, ...], torch.Tensor]) -> Any:
    """`value` with its tensors in host memory; those that share memory still do."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        key = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
        if not value.numel() or key not in seen:
            if value.device.type == "cuda":  # through pinned memory: several times as fast
                moved = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            else:
                moved = value.cpu().clone() if copy else value.cpu()
            seen[key] = moved
        return seen[key]
    if isinstance(value, Mapping):
        return {name: _on_host(item, copy=copy, seen=seen) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(item, copy=copy, seen=seen) for item in value)
    return value


class Checkpointing(pl.Callback):
    """Saves every so many steps, every so many minutes, and when asked to stop; then it stops the run.

    The clock and the signals of one rank bind all ranks: they exchange (stop, due, seconds of a step) every k
    steps, with k × step time below a quarter of the grace period.
    """

    def __init__(self, folder: Path, config: TrainerConfig, *, total_steps: int, signal: StopSignal) -> None:
        self.folder = folder
        self.config = config
        self.total_steps = total_steps
        self.signal = signal
        self.preempted = False
        self.saved_step = -1  # of the last snapshot
        self._why: str | None = None  # why this rank wants to stop
        self._end = end_time(config)
        self._longest = 0.0  # seconds of a save, from the end of the step to the new name
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Stored] | None = None
        self._next_check = 0
        self._saved_at = self._checked_at = 0.0
        self._checked_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clocks; a signal that came before this moment stops the run before its first step."""
        if trainer.is_global_zero:
            sweep(self.folder)
        self.saved_step = self._checked_step = trainer.global_step
        self._next_check = trainer.global_step + 1
        self._saved_at = self._checked_at = time.monotonic()
        self._why = self._reason(None)
        if any_rank(self._why is not None) and trainer.global_step < self.total_steps:
            self._stop(trainer, f"nothing was trained since step {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time to."""
        step = trainer.global_step
        if step in (self.saved_step, self._checked_step):
            return  # a micro-batch of an unfinished step
        stop, due = self._agreed(trainer, step)
        last = step >= self.total_steps
        if stop or due or last or self._on_the_way(step):
            pl_module.guard.look(
                pl_module
            )  # a checkpoint must not hold a state that nothing can be learnt from
            self._save(trainer, step, must=stop or last)
            pl_module.guard.checkpoint = step
        if stop and not last:
            self._stop(trainer, f"checkpoint of step {step} is written")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the save under way."""
        self.settle()
        self._writer.shutdown()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Wait for the save under way: its step was sound."""
        self.settle()
        self._writer.shutdown()

    def settle(self) -> None:
        """Wait for the save under way, and say so when it failed."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        error = writing.exception()
        if error is None:
            self._longest = max(self._longest, writing.result().seconds)
        elif isinstance(error, CheckpointError):
            _goes_on(error)
        else:
            raise error

    def _on_the_way(self, step: int) -> bool:
        every = (self.config.checkpoint_every_steps, self.config.keep_every_steps)
        return any(steps is not None and step % steps == 0 for steps in every)

    def _save(self, trainer: pl.Trainer, step: int, *, must: bool) -> None:
        """Write the state of this step, in the thread unless it must be there before anything else happens.

        Raises:
            CheckpointError: it must, and a rank cannot write.
        """
        begin = time.monotonic()
        self.settle()
        if self.config.checkpoint_split and self.config.strategy == "fsdp2" and step < self.total_steps:
            try:
                split.save(trainer, self.folder, step)
            except CheckpointError as error:  # on all ranks
                if must:
                    raise
                _goes_on(error)
            self.saved_step, self._saved_at = step, time.monotonic()
            self._longest = max(self._longest, self._saved_at - begin)
            return
        aside = self.config.checkpoint_async and not must
        state = snapshot(trainer, copy=aside)
        if state is not None:
            keep = {"keep_every": self.config.keep_every_steps, "keep_last": self.config.keep_last}
            self._writing = self._writer.submit(store, state, self.folder, step, **keep)
        if must:
            self._written(trainer)
        elif not aside:
            self.settle()
            trainer.strategy.barrier("checkpoint")
        self.saved_step, self._saved_at = step, time.monotonic()
        self._longest = max(self._longest, self._saved_at - begin)

    def _written(self, trainer: pl.Trainer) -> None:
        """Wait on all ranks for a save that must not fail."""
        writing, self._writing = self._writing, None
        error = None if writing is None else writing.exception()
        failed = any_rank(error is not None)
        if error is not None:
            raise error
        if failed:
            raise CheckpointError("rank 0 cannot write the checkpoint: see its message, then resume=true")

    def _stop(self, trainer: pl.Trainer, state: str) -> None:
        why = self._why or "a signal on another rank"
        log.warning("%s: %s, stopping; continue with resume=true", why, state)
        self.preempted = True
        trainer.should_stop = True

    def _agreed(self, trainer: pl.Trainer, step: int) -> tuple[bool, bool]:
        """(stop, due by the clock), equal on all ranks; between two checks both are False."""
        if step < self._next_check and trainer.world_size > 1:
            return False, False
        now = time.monotonic()
        seconds = (now - self._checked_at) / max(1, step - self._checked_step)
        self._why = self._reason(seconds)
        wishes = [
            self._why is not None,
            now - self._saved_at > 60 * self.config.checkpoint_every_minutes,
            seconds,
        ]
        stop, due, slowest = largest([float(wish) for wish in wishes])
        self._checked_step, self._checked_at = step, now
        self._next_check = step + steps_between_checks(slowest, self.config.grace_seconds)
        return bool(stop), bool(due)

    def _reason(self, step_seconds: float | None) -> str | None:
        """Why this rank wants to stop now; without `step_seconds`, the clock is not asked."""
        if self.signal.received is not None:
            return self.signal.received.name
        if step_seconds is not None and self._ends_within(self._reserve(step_seconds)):
            return "the time limit"
        return None

    def _reserve(self, step_seconds: float) -> float:
        """Seconds before the end at which to stop: until the next check, two saves, and the grace period.

        Two, because one may be under way; the grace period covers a first save, of unknown length, and the
        end of the processes.
        """
        ahead = steps_between_checks(step_seconds, self.config.grace_seconds) * step_seconds
        return ahead + 2 * self._longest + self.config.grace_seconds

    def _ends_within(self, seconds: float) -> bool:
        return self._end is not None and time.time() > self._end - seconds


def _goes_on(error: CheckpointError) -> None:
    log.warning("%s; the run goes on and tries again when the next checkpoint is due", error)


def end_time(config: TrainerConfig, environ: Mapping[str, str] | None = None) -> float | None:
    """Seconds since 1970 at which this process will be ended: by SLURM or `trainer.time_limit_minutes`.

    Minutes count from the start of the process, which is not that of this call.
    """
    import psutil

    env = os.environ if environ is None else environ
    ends = []
    if config.time_limit_minutes is not None:
        ends.append(psutil.Process().create_time() + 60 * config.time_limit_minutes)
    if env.get(END_TIME, "").isdigit():
        ends.append(float(env[END_TIME]))
    return min(ends, default=None)
