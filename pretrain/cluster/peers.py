"""A rank that is lost: the message of the others, in one line, within `trainer.timeout_minutes`.

A rank that dies closes its connections and the others know at once. A host whose link goes down says nothing:
its peers wait in a collective until the timeout of the process group. What they then raise differs by
backend and place (gloo's RuntimeError, the store's DistNetworkError, NCCL's DistBackendError); none of them
says what to do. NCCL's watchdog ends the process itself when the main thread does not come back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from ...data.errors import RankError

# What gloo and c10d say when a peer is gone; torch has no class for gloo's.
_SILENT = ("timed out", "timeout")
_GONE = ("connection closed", "connection reset", "broken pipe", "no route to host", "network is unreachable",
         "connection refused", "failed to connect", "socket closed", "connection was likely closed",
         "nccl error", "failed to recv", "aborted")  # fmt: skip
_PLACES = ("gloo", "nccl", "store", "processgroup", "socket", "rendezvous", "process group")


def give_up_after(minutes: float, trainer: Any) -> None:
    """Let the process group of a Lightning Trainer that is not running yet wait so long, not longer."""
    # Lightning's strategies for several ranks keep it there until they make the group; where Lightning
    # chooses the strategy itself there is no other way to give it.
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(minutes=minutes)


@contextlib.contextmanager
def watched(minutes: float) -> Iterator[None]:
    """Turn what a collective raises when a rank is lost into one line.

    Raises:
        RankError: instead of the backend's error, which stays as its cause.
    """
    try:
        yield
    except Exception as error:
        lost = lost_rank(error, minutes)
        if lost is None:
            raise
        raise lost from error


def lost_rank(error: BaseException, minutes: float) -> RankError | None:
    """What `error`, raised in a distributed run, means; None when no other rank is to blame."""
    import torch.distributed as dist

    text = " ".join(str(error).split())
    low = text.lower()
    known = isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError)
    if not known and not (isinstance(error, RuntimeError) and any(place in low for place in _PLACES)):
        return None
    silent = any(word in low for word in _SILENT)
    if not silent and not known and not any(word in low for word in _GONE):
        return None
    what = (
        f"another rank has not answered for {minutes:g} minutes (trainer.timeout_minutes): its host or its "
        "network is down, or it hangs"
        if silent
        else "the connection to another rank is closed: that process has ended, its own log says why"
    )
    return RankError(f"{what}; start again with resume=true ({text[:160]})")
