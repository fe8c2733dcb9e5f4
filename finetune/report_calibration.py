"""Section of the report: whether the probabilities of each arm mean what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .charts import arm_class, number
from .charts_calibration import reliability_diagram
from .report_inputs import Evaluation, finite
from .report_sections import arm_order, section

_NAMES = {"ece": "expected error", "brier": "Brier", "slope": "slope"}


def calibration(evaluations: Sequence[Evaluation]) -> str:
    """A diagram for each arm of each task that scores probabilities."""
    body = ""
    for evaluation in evaluations:
        found = evaluation.summary.get("calibration")
        if not isinstance(found, Mapping) or not found:
            continue
        figures = "".join(_figure(evaluation, arm, found[arm]) for arm in sorted(found, key=arm_order))
        body += f'<h3>{escape(evaluation.task)}</h3><div class="figures">{figures}</div>'
    lead = (
        "A point is a bin of decisions: how probable they were said to be, and how many were right, with a "
        "95 % interval over subjects; bars count them. On the diagonal, 0.8 means right in 8 of 10. A slope "
        "of 1 is right, below it probabilities are too extreme, above it too timid."
    )
    if any(e.kind == "classification" for e in evaluations):
        lead += (
            " Classification weights its classes by their rarity, which costs calibration and leaves the "
            "slope as it is."
        )
    return section("calibration", "Do the probabilities hold?", lead, body)


def _figure(evaluation: Evaluation, arm: str, found: Mapping[str, Any]) -> str:
    numbers = " · ".join(
        f"{name} {_with_interval(found[key])}" for key, name in _NAMES.items() if found.get(key)
    )
    chart = reliability_diagram(
        found.get("bins") or [], arm, label=f"{evaluation.task}, {arm}, reliability, {numbers}"
    )
    caption = f'<span class="arm {arm_class(arm)}">{escape(arm)}</span><br>{escape(numbers)}'
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _with_interval(found: Mapping[str, Any]) -> str:
    mean, low, high = (finite(found.get(key)) for key in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return "not defined"
    span = f" ({number(low, 2)} to {number(high, 2)})" if math.isfinite(low) else ""
    return f"{number(mean, 2)}{span}"
