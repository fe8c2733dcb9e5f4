"""Alarms over the rows of metrics.jsonl: each names the rule that fired and what usually mends it.

A rule must hold in `HOLD` rows in a row: one unlucky batch is no collapse, and a constant encoder still trips
within 200 steps wherever `trainer.log_every` is 100 or less. Rules look at rows alone, so that a resumed run
goes on where it was, and `medloom diagnose` finds the same as the run did.

Features of an untrained network vary little (feature_std 0.06 to 0.7 for random ViTs on X-rays, fundus images
and tiles), so that before the end of the warm-up only what no random network does is an alarm.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

HOLD = 3  # rows in which a rule holds before it fires
HISTORY = 20  # rows that say what is usual
CONSTANT_STD = 0.002  # a thirtieth of what an untrained network has: the same features for all images
COLLAPSED_STD = 0.01  # share of the deviation of isotropic features below which all samples look alike
COLLAPSED_RANK = 1.5  # effective dimensions below which one direction carries everything
LEAST_INFORMATION = 0.002  # share of log K that the teacher's targets say of which image it is
SPIKE = 20.0  # gradient norm against its own median over `HISTORY` rows
STALLED = 0.5  # share of the time for the next batch above which the loader, not the device, sets the pace

Row = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """When an alarm fires, and what it says."""

    name: str
    holds: Callable[[Row, Sequence[Row]], bool]  # (row, at most HISTORY rows before it)
    means: str  # with the row's keys as fields
    mend: str
    warm: bool = True  # only after the warm-up
    hold: int = HOLD


@dataclass(frozen=True)
class Alarm:
    """A rule that fired at a step."""

    name: str
    step: int
    means: str
    mend: str

    def __str__(self) -> str:
        return f"{self.means}; {self.mend}"


def number(row: Row, key: str) -> float:
    """A value of a row; NaN where it is not there, or was not finite (null in the file)."""
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _not_finite(row: Row, _: Sequence[Row]) -> bool:
    return "rankme" in row and math.isnan(number(row, "rankme"))


def _spike(row: Row, before: Sequence[Row]) -> bool:
    usual = [v for v in (number(r, "grad_norm") for r in before) if v > 0]
    return len(usual) == HISTORY and number(row, "grad_norm") > SPIKE * statistics.median(usual)


RULES = (
    Rule(
        "finite", _not_finite, "features are not finite",
        "lower optim.base_lr, or train in bf16 or float32 instead of float16", warm=False, hold=1,
    ),
    Rule(
        "constant", lambda row, _: number(row, "feature_std") < CONSTANT_STD,
        f"feature_std {{feature_std:.4f}} < {CONSTANT_STD}: all images get the same features",
        "look at the panels for blank inputs, lower optim.base_lr, and check a teacher's temperature",
        warm=False,
    ),
    Rule(
        "spread", lambda row, _: CONSTANT_STD <= number(row, "feature_std") < COLLAPSED_STD,
        f"feature_std {{feature_std:.4f}} < {COLLAPSED_STD}: all images get nearly the same features",
        "lower optim.base_lr, lengthen optim.warmup_fraction, and look at the panels for blank inputs",
    ),
    Rule(
        "rank", lambda row, _: number(row, "rank_centred") < COLLAPSED_RANK
        and number(row, "feature_std") >= COLLAPSED_STD,
        f"rank_centred {{rank_centred:.2f}} < {COLLAPSED_RANK}: one direction carries everything",
        "lower optim.base_lr or optim.weight_decay, and check that the images differ",
    ),
    Rule(
        "teacher", lambda row, _: number(row, "marginal_entropy") - number(row, "teacher_entropy")
        < LEAST_INFORMATION,
        "teacher_entropy {teacher_entropy:.4f} of log K is that of all images together "
        "({marginal_entropy:.4f}): the teacher says the same of every image",
        "near 0 one prototype wins: centre by Sinkhorn-Knopp or raise the teacher temperature; near 1 none "
        "does: lower the teacher temperature; in both cases lower optim.base_lr",
    ),
    Rule(
        "gradient", _spike,
        f"grad_norm {{grad_norm:.3g}} is over {SPIKE:.0f} × its median of {HISTORY} rows: the run diverges",
        "lower optim.base_lr, set optim.clip, or resume from previous.ckpt", warm=False,
    ),
)  # fmt: skip

# What the clock says: a live run tells it, but no two runs agree on it, and training has no fault.
CLOCK_RULES = (
    Rule(
        "loader", lambda row, _: number(row, "data_wait") > STALLED,
        f"data_wait {{data_wait:.2f}} > {STALLED}: training waits for the loader more than it computes",
        "raise data.workers or data.crops_per_sample, put shards on a local disk, or set data.cache",
        warm=False,
    ),
)  # fmt: skip


class Watch:
    """Looks at rows one after the other and says which rules fire."""

    def __init__(self, warmup: float = 0.0, rules: Sequence[Rule] = RULES) -> None:
        """Start with no rows.

        Args:
            warmup: steps of the warm-up; rules that mean a trained network are silent until then.
        """
        self.warmup = warmup
        self.rules = rules
        self._before: deque[Row] = deque(maxlen=HISTORY)
        self._held = {rule.name: 0 for rule in rules}

    def see(self, row: Row) -> list[Alarm]:
        """The rules that fire at this row, the gravest first; an alarm stands as long as it fires."""
        fired = []
        for rule in self.rules:
            holds = (not rule.warm or row["step"] > self.warmup) and rule.holds(row, self._before)
            self._held[rule.name] = self._held[rule.name] + 1 if holds else 0
            if self._held[rule.name] >= rule.hold:
                values = {key: number(row, key) for key in row}
                fired.append(Alarm(rule.name, row["step"], rule.means.format(**values), rule.mend))
        # A row that holds a rule is not what is usual; else a spike of HISTORY rows would be.
        if not self._held.get("gradient"):
            self._before.append(row)
        return fired

    def replay(self, rows: Iterable[Row]) -> list[list[Alarm]]:
        """`see` of each row of a run so far."""
        return [self.see(row) for row in rows]
