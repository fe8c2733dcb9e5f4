"""From the long per-case table to means, intervals and paired differences.

A segmentation is averaged over cases, then over structures, never over pooled voxels; a classification metric
belongs to the whole set. Intervals are bootstrapped over patients (statistics.py). The pretrained arm is
compared with each baseline on the same cases; `p_holm` corrects over all comparisons of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .metrics import info
from .run import arms
from .statistics import (
    Difference,
    bootstrap_mean,
    bootstrap_metric,
    holm,
    mean_draws,
    metric_draws,
    paired_difference,
    paired_metric_difference,
    summarise,
)
from .tasks import Task

MEAN = "mean"  # name of the average over structures
DRAWS_KEPT = 2_000  # in draws.npz


@dataclass(slots=True)
class CaseTable:
    """Rows of cases.csv, and of each arm what metrics of a whole set take (`Task.stacked`)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    predicted: dict[str, np.ndarray] = field(default_factory=dict)

    def values(self, arm: str, metric: str, structure: str) -> tuple[np.ndarray, list[str], list[str]]:
        """(values [N] with nan where excluded, statuses, subjects), cases in the table's order."""
        chosen = [
            row for row in self.rows
            if (row["arm"], row["metric"], row["structure"]) == (arm, metric, structure)
        ]  # fmt: skip
        return (
            np.array([row["value"] for row in chosen], dtype=float),
            [row["status"] for row in chosen],
            [row["subject"] for row in chosen],
        )


def arm_scores(task: Task, table: CaseTable, arm: str, split: str) -> list[dict[str, Any]]:
    """Means with intervals; a segmentation also gets the average over its structures."""
    rows: list[dict[str, Any]] = []
    for metric in (m for m in task.record.metrics if m in task.set_metrics):
        truth, subjects = _truth(task, split)
        found = bootstrap_metric(task.set_metrics[metric], truth, table.predicted[arm], subjects)
        rows.append({"metric": metric, "structure": "", "mean": found.mean, "low": found.low,
                     "high": found.high, "n": len(truth), "excluded": 0, "replaced": 0})  # fmt: skip
        for part, function in task.parts(metric).items():
            found = bootstrap_metric(function, truth, table.predicted[arm], subjects)
            rows.append({"metric": metric, "structure": part, "mean": found.mean, "low": found.low,
                         "high": found.high, "n": len(truth), "excluded": 0, "replaced": 0})  # fmt: skip
    structures = task.structures
    for metric in (m for m in task.record.metrics if m not in task.set_metrics):
        for structure in structures:
            values, statuses, subjects = table.values(arm, metric, structure)
            found = summarise(values, statuses, subjects)
            rows.append({"metric": metric, "structure": structure, "mean": found.mean, "low": found.low,
                         "high": found.high, "n": found.n, "excluded": found.excluded,
                         "replaced": found.replaced})  # fmt: skip
        if len(structures) > 1:
            own = [row for row in rows if row["metric"] == metric]
            values, subjects = _by_structure(table, arm, metric, structures)
            found = bootstrap_mean(values, subjects)
            rows.append({"metric": metric, "structure": MEAN, "mean": found.mean, "low": found.low,
                         "high": found.high, "n": len(values),
                         "excluded": sum(row["excluded"] for row in own),
                         "replaced": sum(row["replaced"] for row in own)})  # fmt: skip
    return rows


def arm_draws(task: Task, table: CaseTable, arm: str, split: str) -> dict[str, np.ndarray]:
    """Bootstrap draws [DRAWS_KEPT] of each metric, of a segmentation the average over its structures.

    The patients of a draw are the same for every run on the same cases: with these, runs are compared in
    pairs, and pooled over seeds, without their predictions.
    """
    found: dict[str, np.ndarray] = {}
    for metric in task.record.metrics:
        if metric in task.set_metrics:
            truth, subjects = _truth(task, split)
            predicted = table.predicted[arm]
            found[metric] = metric_draws(task.set_metrics[metric], truth, predicted, subjects, DRAWS_KEPT)
        elif task.structures:
            values, subjects = _by_structure(table, arm, metric, task.structures)
            found[metric] = mean_draws(values, subjects, DRAWS_KEPT)
    return {metric: values.astype(np.float32) for metric, values in found.items()}


def comparisons(task: Task, table: CaseTable, split: str) -> list[dict[str, Any]]:
    """Pretrained minus each baseline; `p` as tested, `p_holm` corrected over all rows of the run."""
    rows: list[dict[str, Any]] = []
    known = arms(task.config)
    for baseline in (arm for arm in known if arm != "pretrained" and "pretrained" in known):
        for metric in (m for m in task.record.metrics if info(m).compared):
            for structure, found in _differences(task, table, baseline, metric, split):
                rows.append({"metric": metric, "structure": structure, "a": "pretrained", "b": baseline,
                             "difference": found.difference, "low": found.low, "high": found.high,
                             "p": found.p, "n": found.n, "patients": found.patients})  # fmt: skip
    corrected = holm([row["p"] for row in rows]) if rows else []
    for row, p in zip(rows, corrected, strict=True):
        row["p_holm"] = float(p)
    return rows


def _differences(
    task: Task, table: CaseTable, baseline: str, metric: str, split: str
) -> Iterator[tuple[str, Difference]]:
    """Yield (structure, Difference) of the pretrained arm and a baseline."""
    if metric in task.set_metrics:
        truth, subjects = _truth(task, split)
        a, b = table.predicted["pretrained"], table.predicted[baseline]
        yield "", paired_metric_difference(task.set_metrics[metric], truth, a, b, subjects)
        return
    structures = task.structures
    for structure in structures:
        a, _, subjects = table.values("pretrained", metric, structure)
        b, _, _ = table.values(baseline, metric, structure)
        if np.isfinite(a - b).any():
            yield structure, paired_difference(a, b, subjects)
    if len(structures) > 1:
        a, subjects = _by_structure(table, "pretrained", metric, structures)
        b, _ = _by_structure(table, baseline, metric, structures)
        gaps = a - b
        kept = np.isfinite(gaps).any(axis=1)
        if kept.any():
            means = np.array([np.nanmean(row) for row in gaps[kept]])
            chosen = np.asarray(subjects)[kept]
            yield MEAN, paired_difference(means, np.zeros_like(means), chosen)


def _by_structure(
    table: CaseTable, arm: str, metric: str, structures: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Values [N, S] of all structures, nan where excluded, and the subject of each case."""
    columns = [table.values(arm, metric, structure) for structure in structures]
    return np.stack([values for values, _, _ in columns], axis=1), columns[0][2]


def _truth(task: Task, split: str) -> tuple[np.ndarray, list[str]]:
    """What is to be predicted, and the subject of each case."""
    cases = task.cases[split]
    return task.truth(cases), [case.subject for case in cases]
