"""Preemption: a signal becomes a flag, the flag becomes a checkpoint at the end of a batch, then a requeue.

Stock Lightning loses the work here: on SIGTERM the loader workers die, the trainer raises and no checkpoint
is written; SLURM even records the job as completed. So Lightning's handlers are not installed
(`run.make_trainer`). Ours is there from the first line of the command to its last, only sets a flag (nothing
that could run inside a half-finished collective), and is guarded by the process id, because forked loader
workers inherit handlers. The ranks agree on the flag by one all-reduce every few steps, so that all of them
save at the same step.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """Remembers that this process was asked to stop. A second SIGINT interrupts at once.

    A context manager: the handlers are there inside.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> StopSignal:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def install(self) -> None:
        """Replace the handlers; only the main thread of a process may (elsewhere nothing happens)."""
        self._pid = os.getpid()
        try:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        except ValueError:
            log.debug("not the main thread: signals keep their handlers")

    def uninstall(self) -> None:
        """Put the former handlers back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked loader worker: the training process decides
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if number == signal.SIGINT and os.isatty(2):  # not logging: a handler may run inside of it
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C again: at once\n")


def steps_between_checks(step_seconds: float, grace_seconds: float, *, most: int = 50) -> int:
    """Steps until the ranks talk again: at most a quarter of the grace period, between 1 and `most`."""
    if step_seconds <= 0:
        return 1
    return max(1, min(most, int(grace_seconds / 4 / step_seconds)))


def requeue(environ: dict[str, str] | None = None) -> bool:
    """Ask SLURM to queue this job again (rank 0 calls it, after the checkpoint). True when it was accepted.

    Leaving inside the grace period, with status 0 or 1, is no request: without this the job is gone. A job
    that was cancelled is left alone: SLURM would start it again all the same.
    """
    env = dict(os.environ) if environ is None else environ
    job = env.get("SLURM_JOB_ID")
    if not job:
        return False
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    try:
        if _cancelled(_scontrol("show", "job", "--oneliner", job).stdout):
            log.info("job %s was cancelled: it is not queued again", job)
            return False
        done = _scontrol("requeue", job)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("scontrol requeue %s did not run (%s): requeue the job by hand", job, error)
        return False
    if done.returncode:
        log.warning("scontrol requeue %s: %s; requeue the job by hand", job, done.stderr.strip())
        return False
    log.info("job %s is queued again", job)
    return True


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=20, check=False)


def _cancelled(shown: str) -> bool:
    """Whether `scontrol show job` tells of a job that ends now, and not for its time limit.

    A preemption with a grace period and the signal before the limit leave the job RUNNING; a preemption
    without grace is requeued by SLURM itself.
    """
    facts = dict(re.findall(r"(\S+?)=(\S*)", shown))
    ends = facts.get("JobState") in ("COMPLETING", "CANCELLED")
    return ends and facts.get("Reason") != "TimeLimit"
