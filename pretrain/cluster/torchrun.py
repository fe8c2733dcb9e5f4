"""torchrun with the manners of a cluster: `python -m medloom.pretrain.cluster.torchrun` takes its arguments.

Plain torchrun works too; three things are lost with it. On SIGTERM it gives the workers 30 seconds and ends
with a traceback and status 1, whatever they did; SIGUSR1 kills it and leaves them orphaned; a worker that
refuses its configuration or stops with a checkpoint is reported as a crash. Here the agent only hands
signals on and waits (the cluster's own grace period is the limit), and its exit status is the workers': 3 for
"stopped with a checkpoint" can be told from a crash by whoever restarts.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

STOPPED = 3  # as of `medloom pretrain`
_LEFT_TO_TORCH = "SIGHUP,SIGQUIT"

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Start the workers of this node and wait for them; returns their exit status.

    Several statuses make one: a signal (128 + its number) before 1, before the higher number, before 0.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    arguments = parse_args(list(argv))
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _LEFT_TO_TORCH
    if hasattr(arguments, "signals_to_handle"):
        arguments.signals_to_handle = _LEFT_TO_TORCH
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, _hand_on)
    try:
        run(arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        status = combined(codes)
        if status not in (2, STOPPED):  # these two said their line themselves
            log.error("%s", error)
        return status
    return 0


def combined(codes: Sequence[int]) -> int:
    """One exit status of several; negative numbers are signals, as subprocess counts.

    SIGTERM counts only where nothing else does: once one worker has ended, the agent sends it to the others,
    and one that was just leaving by itself, as it should, may die of it.
    """
    codes = [code for code in codes if code != -signal.SIGTERM] or codes
    killed = [128 - code for code in codes if code < 0]
    return max(killed) if killed else 1 if 1 in codes else max(codes, default=0)


def _hand_on(number: int, frame: FrameType | None) -> None:
    """Ask the workers to stop. SIGINT goes on as SIGTERM: a terminal has sent it to them already."""
    import psutil

    workers: list[Any] = psutil.Process().children()
    if not workers:
        sys.exit(STOPPED)  # still waiting for the other hosts: nothing has begun
    for worker in workers:
        try:
            worker.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
        except psutil.NoSuchProcess:
            continue


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sys.exit(main(sys.argv[1:]))
