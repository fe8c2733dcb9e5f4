"""Find the image whose decoder kills the process, and do its unit without it.

First the image that was being read when the process died, alone in a process of its own. If that one lives,
the fault came from an earlier image (a decoder that damages the heap is found out later): the largest number
from which reading to the same place still kills is searched by bisection, log2(records) processes. The image
is then listed like any that cannot be read, and the unit is built as if it had been refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import ShardError
from .units import Receipt, Unit

log = logging.getLogger(__name__)

UNEXPLAINED = 3  # deaths without an image at fault after which the machine is to blame

_OUT_OF_MEMORY = 9


@dataclass(frozen=True, slots=True)
class Crash:
    """A process that died: its exit code (negative: minus the signal) and the record it read last."""

    code: int | None
    record: int

    @property
    def reason(self) -> str:
        """One line for failures.jsonl."""
        if self.code is None or self.code >= 0:
            return f"the reader crashed (exit status {self.code})"
        hint = ", as a rule for want of memory" if self.code == -_OUT_OF_MEMORY else ""
        return f"the reader crashed (signal {-self.code}{hint})"


# (unit, records not to read and why, records to try and keep nothing of | None: build) -> what came of it.
Alone = Callable[[Unit, Mapping[int, str], range | None], Receipt | Crash | None]


def isolate(unit: Unit, alone: Alone) -> Receipt:
    """Build a unit that has killed two workers; `alone` does a job in a fresh process, nothing beside it.

    Raises:
        ShardError: the process is killed again and again, but by no image that can be told.
    """
    crashed: dict[int, str] = {}
    unexplained = 0
    while True:
        end = alone(unit, crashed, None)
        if isinstance(end, Receipt):
            return end
        assert isinstance(end, Crash)
        culprit = _culprit(unit, end.record, crashed, alone)
        if culprit is not None:
            crashed[culprit] = end.reason
            continue
        unexplained += 1
        log.warning("%s: %s at record %d, which reads well alone", unit.name, end.reason, end.record)
        if unexplained == UNEXPLAINED:
            raise ShardError(
                f"unit {unit.name}: its process died {UNEXPLAINED} times ({end.reason}) and no image "
                "is at fault; free memory or mend the machine, then run the same command again: finished "
                "units are kept"
            )


def _culprit(unit: Unit, last: int, crashed: Mapping[int, str], alone: Alone) -> int | None:
    """Number of the record that kills when records up to `last` are read, None when none does."""
    if last < 0:
        return None

    def kills(first: int) -> bool:
        return isinstance(alone(unit, crashed, range(first, last + 1)), Crash)

    if kills(last):
        return last
    if not kills(0):
        return None
    low, high = 0, last  # reading from `low` kills, from `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kills(middle) else (low, middle)
    return low
