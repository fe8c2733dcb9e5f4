"""Scores for a model card: what evaluations and benchmarks say of one encoder, with its baselines.

A score belongs to weights, not to a name: only runs whose own encoder.json carries the SHA-256 of the
released weights count, and a folder without one is refused. The headline metric of a task stands for it, on
the test split alone; every row carries its leakage statement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.errors import ConfigError
from .benchmark.config import FILE, load_benchmark
from .benchmark.grid import grid
from .benchmark.results import Entry, headline_metric, read_results
from .report_inputs import Evaluation, read_inputs
from .run import ENCODER
from .verdict import OVERALL

BASELINES = ("scratch", "random")


def scores_of(folders: Iterable[Path], sha256: str) -> list[dict[str, Any]]:
    """Rows of tasks, for `scores` of encoder.json.

    Args:
        folders: of `medloom evaluate`, of `medloom finetune` with its evaluation, or of `medloom benchmark`.
        sha256: of the released weights.

    Returns:
        {task, kind, protocol, fraction, metric, mean, low, high, runs, cases, subjects, leakage, statement,
        scratch, random}; numbers that are not known are None, the baselines {mean, low, high} or None.

    Raises:
        ConfigError: a folder without a score of these weights, or without a leakage statement.
    """
    rows: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        found = _benchmark(folder, sha256) if (folder / FILE).is_file() else _evaluated(folder, sha256)
        if not found:
            raise ConfigError(
                f"{folder}: holds no score of these weights ({sha256[:12]}) on a test split: give a folder "
                "of `medloom evaluate` or `medloom benchmark` whose encoder is this run"
            )
        rows += found
    return sorted(rows, key=lambda row: (row["task"], row["protocol"], row["fraction"]))


def _evaluated(folder: Path, sha256: str) -> list[dict[str, Any]]:
    inside = folder / "evaluation"
    folder = inside if (inside / "summary.json").is_file() else folder
    found = read_inputs([folder], []).evaluations
    if not found or found[0].summary.get("split") != "test" or not _same(folder.parent, sha256):
        return []
    evaluation = found[0]
    metric = headline_metric(evaluation)
    arms = {arm: _arm(evaluation, arm, metric) for arm in ("pretrained", *BASELINES)}
    own = arms.pop("pretrained")
    if own is None:
        return []
    summary = evaluation.summary
    return [
        _row(evaluation, folder, metric)
        | {"fraction": float(summary.get("fraction") or 1.0), "runs": 1, "protocol": evaluation.protocol}
        | own
        | arms
    ]


def _benchmark(folder: Path, sha256: str) -> list[dict[str, Any]]:
    config = load_benchmark(None, {"out": str(folder)})
    results = read_results(config.folder, grid(config))
    every = list(results.entries.values())
    rows = []
    for entry in every:
        mine = [_same(result.cell.folder(config.folder) / "run", sha256) for result in entry.results]
        if entry.arm != "pretrained" or not all(mine):
            continue
        arms = {arm: _beside(every, entry, arm) for arm in BASELINES}
        named = {"protocol": entry.protocol, "fraction": entry.fraction, "runs": len(entry.results)}
        rows.append(
            _row(entry.results[0].evaluation, folder, entry.metric)
            | named
            | _numbers(entry.mean, entry.low, entry.high)
            | {"leakage": entry.leakage}
            | arms
        )
    return rows


def _row(evaluation: Evaluation, folder: Path, metric: str) -> dict[str, Any]:
    """What a row says beside its numbers."""
    if not evaluation.leakage.get("statement"):
        raise ConfigError(
            f"{folder}: {evaluation.task} has no leakage statement: `medloom evaluate` it again"
        )
    n = (evaluation.summary.get("n") or {}).get("test") or {}
    return {
        "task": evaluation.task, "kind": evaluation.kind, "metric": metric,
        "cases": n.get("cases"), "subjects": n.get("subjects"),
        "leakage": str(evaluation.leakage.get("status")), "statement": str(evaluation.leakage["statement"]),
    }  # fmt: skip


def _arm(evaluation: Evaluation, arm: str, metric: str) -> dict[str, float | None] | None:
    """Mean and interval of an arm over its structures; an interval only where one row stands for all."""
    rows = [score for score in evaluation.arms.get(arm, []) if score.metric == metric]
    whole = [score for score in rows if score.structure in OVERALL] or (rows if len(rows) == 1 else [])
    if whole:
        return _numbers(whole[0].mean, whole[0].low, whole[0].high)
    return _numbers(sum(score.mean for score in rows) / len(rows), math.nan, math.nan) if rows else None


def _beside(every: list[Entry], entry: Entry, arm: str) -> dict[str, float | None] | None:
    """The baseline of an entry's architecture on the same task and labels."""
    for other in every:
        same = (other.task, other.family, other.fraction, other.metric) == (
            entry.task, entry.family, entry.fraction, entry.metric,
        )  # fmt: skip
        if same and other.arm == arm and (arm == "scratch" or other.protocol == entry.protocol):
            return _numbers(other.mean, other.low, other.high)
    return None


def _numbers(mean: float, low: float, high: float) -> dict[str, float | None]:
    values = {"mean": mean, "low": low, "high": high}
    return {name: float(v) if math.isfinite(v) else None for name, v in values.items()}


def _same(run: Path, sha256: str) -> bool:
    """Whether a fine-tuning run started from these weights."""
    try:
        return json.loads((run / ENCODER).read_text(encoding="utf-8")).get("sha256") == sha256
    except (OSError, ValueError, AttributeError):
        return False
