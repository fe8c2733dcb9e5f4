"""What summary.json says of calibration: expected error, Brier score and slope of each arm, and its diagram.

For every kind of task that scores probabilities (its metrics hold `brier`). Intervals are over patients.
Price: the slope is a small fit in each draw, so it has 200 draws where the others have 2,000 (about 1 s on
500 images of seven classes).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .metrics.calibration import Decisions, decisions, expected_error, slope
from .metrics.classification import ECE_BINS
from .scoring import CaseTable
from .statistics import bootstrap_mean, bootstrap_metric
from .tasks import Task

_DRAWS, _SLOPE_DRAWS = 2000, 200


def calibration(task: Task, table: CaseTable, split: str) -> dict[str, Any]:
    """Arm -> {"ece", "brier", "slope": {mean, low, high}, "bins": [...]}; empty where there is nothing such.

    A bin has low, high (of the probability), n decisions, their mean probability and the share that is right,
    with its interval over patients.
    """
    if "brier" not in task.set_metrics or not table.predicted:
        return {}
    cases = task.cases[split]
    truth, subjects = task.truth(cases), [case.subject for case in cases]
    found: dict[str, Any] = {}
    for arm, score in table.predicted.items():
        numbers = {
            "ece": bootstrap_metric(expected_error, truth, score, subjects, _DRAWS),
            "brier": bootstrap_metric(task.set_metrics["brier"], truth, score, subjects, _DRAWS),
            "slope": bootstrap_metric(slope, truth, score, subjects, _SLOPE_DRAWS),
        }
        named = {
            name: {"mean": value.mean, "low": value.low, "high": value.high}
            for name, value in numbers.items()
        }
        found[arm] = named | {"bins": _bins(decisions(truth, score), subjects)}
    return found


def _bins(made: Decisions, subjects: list[str]) -> list[dict[str, float]]:
    """The bins that hold something, in ascending order."""
    names = np.asarray(subjects)[made.case]
    rows = []
    for number in np.unique(made.bins):
        inside = made.bins == number
        share = bootstrap_mean(made.right[inside].astype(float), names[inside], _DRAWS)
        rows.append({
            "low": float(number / ECE_BINS), "high": float((number + 1) / ECE_BINS), "n": int(inside.sum()),
            "probability": float(made.probability[inside].mean()),
            "right": share.mean, "right_low": share.low, "right_high": share.high,
        })  # fmt: skip
    return rows
