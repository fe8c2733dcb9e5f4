"""What a benchmark's cells say, pooled over runs: scores with intervals, values by case, costs, failures.

Runs are seeds and draws of the labels. A score is the mean over runs of the task's headline metric; its
interval draws patients and runs together (hierarchy.py; the draws of patients are those of draws.npz, the
same for all encoders, so that differences are paired). A cell whose evaluation carries no leakage statement
has no score here: it is listed among the failures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...data.config import read_yaml
from ..hierarchy import pooled, pooled_difference
from ..metrics import info
from ..report_inputs import Evaluation, read_inputs
from ..statistics import Interval
from ..verdict import OVERALL
from ..verdict import headline_metric as first_headline
from .cell import DONE, FAILURE
from .grid import Cell

Key = tuple[str, str, str, float]  # task, encoder, protocol, fraction


@dataclass(slots=True)
class Result:
    """One finished cell."""

    cell: Cell
    evaluation: Evaluation
    cost: dict[str, Any]  # seconds, memory_mb, ... of cell.json
    training: dict[str, Any]  # arm.json
    ndim: int  # of the task's images


@dataclass(slots=True)
class Failure:
    """One cell without a score: failed, refused, not done yet, or without a leakage statement."""

    cell: Cell
    reason: str
    kind: str  # failed, refused, open, withheld


@dataclass(slots=True)
class Entry:
    """All runs of one encoder, protocol, task and share of the labels."""

    task: str
    kind: str
    encoder: str
    arm: str
    protocol: str
    fraction: float
    metric: str
    mean: float
    low: float
    high: float
    observed: np.ndarray  # [S] score of each run
    draws: np.ndarray  # [S, R] bootstrap draws of each, the same patients in a column
    results: list[Result] = field(default_factory=list)

    @property
    def subjects(self) -> float:
        """Training subjects, mean over the runs."""
        counts = [result.evaluation.summary.get("n") or {} for result in self.results]
        return float(np.mean([count.get("train", {}).get("subjects", 0) for count in counts]))

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(seed, draw of the labels) of each run."""
        return [(result.cell.seed, result.cell.draw) for result in self.results]

    @property
    def family(self) -> str:
        """The encoder whose baselines are those of this architecture."""
        return self.results[0].cell.family

    @property
    def ndim(self) -> int:
        """Dimensions of the task's images."""
        return self.results[0].ndim

    @property
    def leakage(self) -> str:
        """clean, leaked or unknown: the worst of the seeds."""
        found = {str(result.evaluation.leakage.get("status")) for result in self.results}
        return "leaked" if "leaked" in found else "clean" if found == {"clean"} else "unknown"

    @property
    def statement(self) -> str:
        """The leakage statement in words."""
        return str(self.results[0].evaluation.leakage.get("statement", ""))


@dataclass(slots=True)
class Results:
    """Everything that the page shows."""

    entries: dict[Key, Entry]
    failures: list[Failure]
    missing: list[str]  # files that could not be read


def read_results(folder: Path, cells: Sequence[Cell]) -> Results:
    """Read the cells of a benchmark's folder, finished or not."""
    done: dict[Key, list[Result]] = {}
    failures: list[Failure] = []
    missing: list[str] = []
    for cell in cells:
        found = _read(cell, cell.folder(folder), missing)
        if isinstance(found, Failure):
            failures.append(found)
        else:
            task = found.evaluation.task
            done.setdefault((task, cell.encoder, cell.protocol, cell.fraction), []).append(found)
    entries = {key: entry for key, results in done.items() if (entry := _entry(key, results)) is not None}
    return Results(entries, failures, list(dict.fromkeys(missing)))


def headline_metric(evaluation: Evaluation) -> str:
    """The metric that speaks for a task: the first of its kind's headlines that was scored."""
    scored = [score.metric for rows in evaluation.arms.values() for score in rows]
    return first_headline(evaluation.kind, scored) or next(iter(scored), "")


def overall(evaluation: Evaluation, arm: str, metric: str) -> float:
    """Mean of an arm over its structures."""
    rows = [score for score in evaluation.arms.get(arm, []) if score.metric == metric]
    whole = [score.mean for score in rows if score.structure in OVERALL]
    return whole[0] if whole else float(np.mean([score.mean for score in rows])) if rows else math.nan


def difference(first: Entry, second: Entry) -> Interval:
    """first - second, paired by patient and run, better is positive; no interval where runs differ."""
    sign = 1.0 if info(first.metric).higher_is_better else -1.0
    if first.draws.shape != second.draws.shape or first.metric != second.metric or first.runs != second.runs:
        return Interval(sign * (first.mean - second.mean), math.nan, math.nan)
    draws = sign * first.draws, sign * second.draws
    return pooled_difference(sign * first.observed, sign * second.observed, *draws)


def from_scratch(entry: Entry, entries: Iterable[Entry]) -> Entry | None:
    """The same network from scratch, on the same task and share of the labels; None for that one itself."""
    place = ("scratch", entry.task, entry.fraction, entry.family)
    found = next((e for e in entries if (e.arm, e.task, e.fraction, e.family) == place), None)
    return None if found is entry else found


def case_values(entry: Entry, metric: str, structure: str) -> dict[tuple[str, str], float]:
    """(case, patient) -> value, mean over the runs; a case that any run leaves out is nan."""
    rows: dict[tuple[str, str], list[float]] = {}
    for result in entry.results:
        for row in result.evaluation.cases:
            if (row.get("arm"), row.get("metric"), row.get("structure", "")) == (
                entry.arm,
                metric,
                structure,
            ):
                value = float(row["value"]) if row.get("status") != "excluded" else math.nan
                rows.setdefault((row["case"], row["subject"]), []).append(value)
    return {key: float(np.mean(values)) for key, values in rows.items()}


def case_metrics(entry: Entry) -> list[tuple[str, str]]:
    """(metric, structure) of the long table that rank an encoder on this task.

    Those that are reported and belong to cases; where all belong to the whole set (AUC), the one by which the
    worst cases are chosen (the probability of the true class).
    """
    evaluation = entry.results[0].evaluation
    reported = {score.metric for score in evaluation.arms.get(entry.arm, [])}
    pairs = dict.fromkeys((row["metric"], row.get("structure", "")) for row in evaluation.cases)
    own = [pair for pair in pairs if pair[0] in reported]
    if own:
        return own
    worst = {str(row.get("metric")) for row in evaluation.worst}
    return [pair for pair in pairs if pair[0] in worst]


def tasks_of(entries: Iterable[Entry]) -> list[str]:
    """Names of the tasks, in the order of the grid."""
    return list(dict.fromkeys(entry.task for entry in entries))


def _read(cell: Cell, folder: Path, missing: list[str]) -> Result | Failure:
    if not (folder / DONE).is_file():
        if (folder / FAILURE).is_file():
            values = _json(folder / FAILURE)
            kind = "refused" if values.get("refused") else "failed"
            return Failure(cell, str(values.get("error", "no reason was written")), kind)
        return Failure(cell, "not done yet", "open")
    inputs = read_inputs([folder / "evaluation"], [])
    missing += [line for line in inputs.missing if not line.startswith("No pretraining run")]
    if not inputs.evaluations:
        return Failure(cell, "its evaluation cannot be read", "failed")
    evaluation = inputs.evaluations[0]
    if not evaluation.leakage.get("statement"):
        return Failure(cell, "no leakage statement, so no score", "withheld")
    training = _json(folder / "run" / cell.arm / "arm.json")
    ndim = int(read_yaml(folder / "run" / "plan.yaml").get("ndim", 0))
    return Result(cell, evaluation, _json(folder / DONE), training, ndim)


def _entry(key: Key, results: list[Result]) -> Entry | None:
    task, encoder, protocol, fraction = key
    first, arm = results[0].evaluation, results[0].cell.arm
    metric = headline_metric(first)
    observed = np.array([overall(result.evaluation, arm, metric) for result in results])
    if not metric or not np.isfinite(observed).all():
        return None
    kept = [result.evaluation.draws.get(f"{arm}|{metric}") for result in results]
    whole = [draws for draws in kept if draws is not None]
    draws = np.stack(whole) if len(whole) == len(results) else np.full((len(results), 1), np.nan)
    found = pooled(observed, draws)
    return Entry(task, first.kind, encoder, arm, protocol, fraction, metric, found.mean, found.low,
                 found.high, observed, draws, results)  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError):
        return {}
