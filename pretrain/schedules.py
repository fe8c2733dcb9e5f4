"""Schedules as pure functions of the optimiser step: nothing to save, nothing to restore.

A resumed run asks for the value at its step and gets what the undisturbed run got.
"""

from __future__ import annotations

import math

from ..data.errors import ConfigError, nearest

RATES = ("cosine", "poly", "constant")


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`; constant before and after.

    SGDR without restarts (arXiv 1608.03983, equation 5).
    """
    share = min(max(step / max(steps, 1), 0.0), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def linear(step: int, steps: int, start: float, end: float) -> float:
    """A straight line from `start` at step 0 to `end` at step `steps`; constant before and after."""
    return start + (end - start) * min(max(step / max(steps, 1), 0.0), 1.0)


def rate(
    kind: str, step: int, *, steps: int, warmup: int, peak: float, floor: float = 0.0, power: float = 0.9
) -> float:
    """Learning rate of optimiser step `step` (the first is 0): linear warm-up, then one of `RATES`.

    Args:
        kind: cosine (SGDR without restarts) | poly (nnU-Net's (1 - share)^0.9) | constant.
        steps, warmup, peak, floor: see `warmup_cosine`.

    Raises:
        ConfigError: an unknown kind, and as `warmup_cosine`.
    """
    if kind not in RATES:
        raise ConfigError(f"optim.schedule: unknown schedule {kind!r}{nearest(kind, set(RATES))}")
    cosine_rate = warmup_cosine(step, steps=steps, warmup=warmup, peak=peak, floor=floor)
    if kind == "cosine" or step < warmup:
        return cosine_rate
    if kind == "constant":
        return peak
    share = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return floor + (peak - floor) * (1.0 - share) ** power


def warmup_cosine(step: int, *, steps: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """Learning rate of optimiser step `step` (the first is 0): linear warm-up, then half a cosine.

    During warm-up the rate is peak·(step + 1)/warmup, so the first step already learns and step warmup - 1
    has the peak. From there it falls to `floor`, which step `steps` would have.

    Args:
        steps: optimiser steps of the whole run.
        warmup: optimiser steps of the warm-up; 0 starts at the peak.

    Raises:
        ConfigError: a warm-up longer than the run, or a floor above the peak.
    """
    if not 0 <= warmup <= steps or floor > peak:
        raise ConfigError(
            f"warm-up of {warmup} steps in a run of {steps}, floor {floor:g} and peak {peak:g}: the warm-up "
            "must be shorter than the run and the floor below the peak"
        )
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(step - warmup, steps - warmup, peak, floor)
