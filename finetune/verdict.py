"""The first sentence of a report: what the pretrained encoder is worth, in plain words and with its numbers.

One headline number a task: Dice (segmentation) or AUC (classification), averaged over structures when there
are several. "Beats" is said only where the 95 % interval of the paired difference lies on the better side
of zero; an interval that includes zero is called no clear difference, whatever its middle. The price is a
dull sentence on small test sets, which is what they deserve.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .charts import number
from .metrics import info
from .report_inputs import Comparison, Evaluation, finite
from .statistics import paired_difference

HEADLINES = {
    "segmentation": ("dice", "nsd", "iou", "hd95"),
    "detection": ("map", "ap50", "froc"),
    "classification": ("auc", "balanced_accuracy", "accuracy"),
    "multilabel": ("auc", "average_precision", "accuracy"),
    "ordinal": ("qwk", "grade_error", "auc", "accuracy"),
    "regression": ("mae", "rmse", "r2"),
    "retrieval": ("map@10", "recall@1", "precision@10"),
}
OVERALL = ("", "mean", "all", "average")  # names under which an evaluation writes its mean over structures
FEW_PATIENTS = 10
Outcome = Literal["better", "worse", "unclear", "unknown"]


@dataclass(frozen=True, slots=True)
class Headline:
    """The one comparison that speaks for a task."""

    task: str
    metric: str
    comparison: Comparison
    first: float  # mean of comparison.a
    second: float  # mean of comparison.b
    patients: int  # 0: not known

    @property
    def outcome(self) -> Outcome:
        """Whether arm a is better, worse, or not told apart from arm b."""
        low, high = oriented(self.comparison)
        if not (math.isfinite(low) and math.isfinite(high)):
            return "unknown"
        return "better" if low > 0 else "worse" if high < 0 else "unclear"


def oriented(comparison: Comparison) -> tuple[float, float]:
    """Interval of the difference with the sign turned so that positive means a is better."""
    low, high = comparison.low, comparison.high
    return (low, high) if info(comparison.metric).higher_is_better else (-high, -low)


def headline(evaluation: Evaluation, name: str | None = None) -> Headline | None:
    """Comparison of the pretrained arm with scratch, else with random features; None without either."""
    for baseline in ("scratch", "random"):
        rows = [c for c in evaluation.comparisons if (c.a, c.b) == ("pretrained", baseline)]
        for metric in HEADLINES.get(evaluation.kind, ()):
            fitting = [c for c in rows if c.metric == metric]
            if not fitting:
                continue
            chosen = next((c for c in fitting if c.structure in OVERALL), None)
            if chosen is None and len(fitting) == 1:
                chosen = fitting[0]
            if chosen is None:
                chosen = _over_structures(evaluation, metric, baseline, [c.structure for c in fitting])
            if chosen is not None:
                first, second = (_mean(evaluation, arm, chosen) for arm in (chosen.a, chosen.b))
                patients = len({row.get("subject") for row in evaluation.cases})
                return Headline(name or evaluation.task, metric, chosen, first, second, patients)
    return None


def headline_metric(kind: str, scored: Collection[str]) -> str | None:
    """The first of the kind's headline metrics that was scored; None when none was."""
    return next((metric for metric in HEADLINES.get(kind, ()) if metric in scored), None)


def headlines(evaluations: Sequence[Evaluation]) -> list[Headline]:
    """Headlines of all evaluations that have one; a task that occurs twice is named with its protocol."""
    names = [evaluation.task for evaluation in evaluations]
    found = []
    for evaluation in evaluations:
        twice = names.count(evaluation.task) > 1
        found.append(headline(evaluation, f"{evaluation.task} ({evaluation.protocol})" if twice else None))
    return [line for line in found if line is not None]


def verdict(evaluations: Sequence[Evaluation]) -> list[str]:
    """Sentences, the verdict first and then what limits it."""
    lines = headlines(evaluations)
    if not lines:
        sentence = (
            "There is no score yet, so nothing can be said about what pretraining is worth."
            if not any(evaluation.arms for evaluation in evaluations)
            else "The pretrained encoder was not compared with a baseline, so its scores say nothing "
            "about what pretraining is worth."
        )
        return [sentence, *_leaks(evaluations)]
    wins = [line for line in lines if line.outcome == "better"]
    baseline = lines[0].comparison.b
    against = {"scratch": "scratch", "random": "random features"}[baseline]
    if len(lines) == 1:
        opening = {
            "better": f"Pretrained beats {against} on {lines[0].task}",
            "worse": f"Pretrained is worse than {against} on {lines[0].task}",
            "unclear": f"Pretrained shows no clear difference from {against} on {lines[0].task}",
            "unknown": f"Pretrained cannot be told apart from {against} on {lines[0].task}",
        }[lines[0].outcome]
        sentence = f"{opening}: {_numbers(lines[0])}."
    else:
        count = f"{len(wins)} of {len(lines)} tasks" if wins else f"none of {len(lines)} tasks"
        sentence = f"Pretrained beats {against} on {count}: {'; '.join(_clause(line) for line in lines)}."
    few = [line for line in lines if 0 < line.patients < FEW_PATIENTS]
    limits = [f"{line.task} was tested on {_count(line.patients, 'subject')} only." for line in few]
    return [sentence, *limits, *_leaks(evaluations)]


def _clause(line: Headline) -> str:
    words = {
        "better": "better on",
        "worse": "worse on",
        "unclear": "no clear difference on",
        "unknown": "no interval for",
    }[line.outcome]
    return f"{words} {line.task} ({_numbers(line)})"


def _numbers(line: Headline) -> str:
    metric, c = info(line.metric), line.comparison
    unit = f" {metric.unit}" if metric.unit else ""
    digits = metric.digits
    text = f"{metric.label} {number(line.first, digits)}{unit} against {number(line.second, digits)}{unit}"
    text += f", difference {signed(c.difference, digits)}"
    if line.outcome == "unknown":
        return f"{text} without an interval"
    text += f", 95\u00a0%\u00a0CI {signed(c.low, digits)} to {signed(c.high, digits)}"
    return f"{text}, which includes zero" if line.outcome == "unclear" else text


def _leaks(evaluations: Sequence[Evaluation]) -> list[str]:
    found = []
    for evaluation in evaluations:
        status = str(evaluation.leakage.get("status", "unknown"))
        if status == "leaked":
            found.append(
                f"The encoder saw data of {evaluation.task} in pretraining: its score is not held out."
            )
        elif status != "clean":
            found.append(f"Whether the encoder saw data of {evaluation.task} in pretraining is not known.")
    return list(dict.fromkeys(found))


def signed(value: float, digits: int) -> str:
    """A difference with its sign."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _mean(evaluation: Evaluation, arm: str, comparison: Comparison) -> float:
    score = evaluation.score(arm, comparison.metric, comparison.structure)
    if score is not None:
        return score.mean
    values, _ = case_table(evaluation, arm, comparison.metric)
    return float(np.nanmean(np.nanmean(values, axis=0))) if values.size else math.nan


def case_table(evaluation: Evaluation, arm: str, metric: str) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Values of one arm [cases, structures], nan where excluded, with the (case, patient) of each row."""
    rows = [r for r in evaluation.cases if r.get("arm") == arm and r.get("metric") == metric]
    cases = sorted({(r.get("case", ""), r.get("subject", "")) for r in rows})
    structures = sorted({r.get("structure", "") for r in rows} - (set(OVERALL) - {""}))
    table = np.full((len(cases), len(structures)), np.nan)
    for row in rows:
        if row.get("structure", "") in structures and row.get("status", "ok") != "excluded":
            place = cases.index((row.get("case", ""), row.get("subject", "")))
            table[place, structures.index(row.get("structure", ""))] = finite(row.get("value"))
    return table, cases


def _over_structures(
    evaluation: Evaluation, metric: str, baseline: str, structures: Sequence[str]
) -> Comparison | None:
    """Mean over structures of the paired difference, from the long table."""
    first, cases = case_table(evaluation, "pretrained", metric)
    second, others = case_table(evaluation, baseline, metric)
    if not cases or cases != others or first.shape != second.shape or first.shape[1] < len(structures):
        return None
    found = paired_difference(first, second, [patient for _, patient in cases])
    return Comparison(
        metric, "mean", "pretrained", baseline, found.difference, found.low, found.high, found.p
    )
