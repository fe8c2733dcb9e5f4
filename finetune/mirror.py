"""Fine-tuning, evaluation and leaderboard as a tracker sees them (docs/tracking.md); the default is none.

The files of a run are complete without it. Rows of an arm carry its name (`pretrained/loss`). Cases are
numbered in the order of the table: their keys stay in the run folder. Every run says what it read and made,
so that the shards, the encoder, the fine-tuned model, its evaluation and the leaderboard are linked.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.config import to_dict
from ..data.shards.manifest import Manifest
from ..pretrain.artefact import fingerprint
from ..pretrain.folder import ENVIRONMENT, environment
from ..pretrain.tracking import Artifact, Tracker, TrackingConfig, group_of, lineage
from .config import FinetuneConfig

Row = Callable[[dict[str, Any]], None]


class FinetuneMirror:
    """The tracker of a fine-tuning run."""

    def __init__(self, tracker: Tracker, config: FinetuneConfig) -> None:
        self._tracker = tracker
        self._config = config
        self._summary: dict[str, Any] = {}

    def rows_of(self, arm: str) -> Row:
        """What takes the rows of an arm's metrics.jsonl."""

        def log(row: dict[str, Any]) -> None:
            named = {f"{arm}/{key}": value for key, value in row.items() if key not in ("step", "samples")}
            self._tracker.log({"step": row["step"], **named})

        return log

    def finished(self, arm: str, folder: Path) -> None:
        """An arm is trained and written."""
        facts = json.loads((folder / "arm.json").read_text())
        self._summary |= {f"{arm}/best/{name}": value for name, value in facts["validation"].items()}
        if self._tracker.active:  # the hash reads the whole model
            self._tracker.made(model(self._config, arm, folder))

    @property
    def summary(self) -> dict[str, Any]:
        """What the arms came to."""
        return self._summary


@contextmanager
def mirrored(config: FinetuneConfig, folder: Path, manifest: Manifest) -> Iterator[FinetuneMirror]:
    """The tracker of a fine-tuning run, from its first arm to its last; RUN/encoder.json is written."""
    values = {**to_dict(config), "environment": json.loads((folder / ENVIRONMENT).read_text())}
    tracker = Tracker(folder, config.tracking, name=folder.name, values=values, job="finetune")
    tracker.uses(lineage.shards(manifest))
    tracker.uses(lineage.encoder(json.loads((folder / "encoder.json").read_text())))
    mirror = FinetuneMirror(tracker, config)
    failed = True
    try:
        yield mirror
        failed = False
    finally:
        tracker.finish(mirror.summary, failed=failed)


def model(config: FinetuneConfig, arm: str, folder: Path) -> Artifact:
    """The trained network of an arm."""
    weights = folder / "model.safetensors"
    facts = {"task": config.task.name, "protocol": config.protocol, "arm": arm, "seed": config.seed}
    found = fingerprint(weights)
    name = lineage.named("model", config.task.name, arm, found["sha256"][: lineage.DIGITS])
    return Artifact("model", name, {**facts, **found}, (weights,))


def evaluation(folder: Path) -> Artifact:
    """The evaluation in `folder`: its scores, and the hash of its cases."""
    summary = json.loads((folder / "summary.json").read_text())
    found = fingerprint(folder / "cases.csv")
    facts = {key: summary[key] for key in ("task", "protocol", "split", "encoder", "seed", "fraction")}
    facts |= {"scores": _scores(summary), "leakage": summary["leakage"].get("status"), **found}
    name = lineage.named("evaluation", summary["task"], found["sha256"][: lineage.DIGITS])
    return Artifact("evaluation", name, facts)


def use_tracker(config: FinetuneConfig, name: str | None) -> None:
    """Take another tracker than the configuration's, where one is named, and see that it is installed.

    Raises:
        ConfigError: no such tracker, or its package is missing.
    """
    config.tracking.tracker = name or config.tracking.tracker
    config.tracking.check()
    config.tracking.require()


def mirror_evaluation(
    config: FinetuneConfig, runs: Sequence[Path], arms: Sequence[str], folder: Path
) -> None:
    """Show an evaluation that is written: scores, the table of cases, pictures of the worst."""
    if config.tracking.tracker == "none":
        return
    summary = json.loads((folder / "summary.json").read_text())
    values = {**to_dict(config), "split": summary["split"], "environment": summary["environment"]}
    name = f"{runs[0].name}-{folder.name}"
    tracker = Tracker(
        folder, config.tracking, name=name, values=values, job="evaluate", group=group_of(runs[0])
    )
    for run in runs if tracker.active else []:
        for arm in arms:
            tracker.uses(model(config, arm, run / arm))
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    numbers = {key: number for number, key in enumerate(dict.fromkeys(row["case"] for row in cases), start=1)}
    scores = _scores(summary)
    tracker.log({"step": config.steps, **{f"score/{key}": value for key, value in scores.items()}})
    tracker.table("cases", [_case(row, numbers) for row in cases])
    pictures = {f"{row['arm']}-{numbers[row['case']]}": folder / row["image"] for row in summary["worst"]}
    worst = [
        {"case": numbers[row["case"]], "arm": row["arm"], "structure": row["structure"],
         "metric": row["metric"], "value": row["value"], "image": f"{row['arm']}-{numbers[row['case']]}"}
        for row in summary["worst"]
    ]  # fmt: skip
    if worst:
        tracker.table("worst", worst, pictures)
    tracker.made(evaluation(folder))
    tracker.finish(scores)


def mirror_benchmark(
    tracking: TrackingConfig, folder: Path, evaluations: Sequence[Path], scores: Sequence[Mapping[str, Any]]
) -> None:
    """Show a leaderboard that is written.

    Args:
        folder: of the benchmark, with scores.csv.
        evaluations: folders of the evaluations that it was made from.
        scores: rows of scores.csv.
    """
    values = {"environment": environment(), "cells": len(evaluations)}
    tracker = Tracker(folder, tracking, name=folder.name, values=values, job="benchmark")
    for place in evaluations if tracker.active else []:
        tracker.uses(evaluation(place))
    best = {f"score/{row['task']}/{row['encoder']}/{row['protocol']}": row["mean"] for row in scores}
    tracker.log({"step": len(evaluations), **best})
    tracker.table("leaderboard", scores)
    found = fingerprint(folder / "scores.csv")
    facts = {
        "tasks": sorted({row["task"] for row in scores}),
        "encoders": sorted({row["encoder"] for row in scores}), **found,
    }  # fmt: skip
    name = lineage.named("leaderboard", folder.name, found["sha256"][: lineage.DIGITS])
    tracker.made(Artifact("benchmark", name, facts, (folder / "scores.csv",)))
    tracker.finish(best)


def _scores(summary: Mapping[str, Any]) -> dict[str, float]:
    """arm/metric or arm/metric/structure -> mean."""
    found = {}
    for arm, rows in summary["arms"].items():
        for row in rows:
            if row["mean"] is not None:
                found["/".join(filter(None, (arm, row["metric"], row.get("structure"))))] = row["mean"]
    return found


def _case(row: Mapping[str, str], numbers: Mapping[str, int]) -> dict[str, Any]:
    """A line of cases.csv without the keys of case and subject."""
    value = float(row["value"]) if row["value"] else math.nan
    return {"case": numbers[row["case"]], "arm": row["arm"], "structure": row["structure"],
            "metric": row["metric"], "value": value if math.isfinite(value) else None,
            "status": row["status"]}  # fmt: skip
