"""Tables of the learning benchmark: every run, means over seeds, and who is ahead in how many cells.

Intervals: 95 %, test subjects drawn with replacement, the mean over the seeds of each draw. With some 40 to
100 test cases a cell they are wide; differences between two contenders are taken on the same draws.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from medloom.finetune.statistics import bootstrap_metric, paired_metric_difference

from .scoring import CELLS

DRAWS = 4000
Runs = dict[str, list[dict[str, Any]]]


def report(folder: Path, contenders: Sequence[str], options: argparse.Namespace) -> str:
    """Write results/DATE-learning.{md,json} and return the text."""
    runs = read(folder, contenders)
    parts = [head(runs, options), table(runs), ahead(runs), failures(runs), settings(runs), every(runs)]
    text = "\n\n".join("\n".join(part) for part in parts if part) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{datetime.date.today().isoformat()}-learning"
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(json.dumps(runs, indent=None))
    return text + f"\nwritten to {stem}.md"


def read(folder: Path, contenders: Sequence[str]) -> Runs:
    """Contender -> its runs by seed; runs that are not there yet are left out."""
    found: Runs = {}
    for name in contenders:
        paths = sorted(folder.glob(f"{name.replace('/', '+')}@*.json"))
        if paths:
            found[name] = [
                {"seed": int(p.stem.partition("@")[2]), **json.loads(p.read_text())} for p in paths
            ]
    return found


def good(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs that ended with scores."""
    return [run for run in runs if "cells" in run]


def score_of(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean over seeds of balanced accuracy (truth >= 0, score: class by seed) or of values (truth all -1).

    Args:
        truth: int [N]; score: float [N, seeds]; weights: [R, N] or None.
    """
    matrix = np.ones((1, len(truth))) if weights is None else np.atleast_2d(np.asarray(weights, float))
    if truth.max() < 0:
        used = ~np.isnan(score)
        sums = matrix @ np.where(used, score, 0.0)
        values = (sums / np.maximum(matrix @ used, 1e-12)).mean(axis=1)
        return float(values[0]) if weights is None else values
    recalls = []
    for label in np.unique(truth):
        rows = truth == label
        count = matrix[:, rows].sum(axis=1, keepdims=True)
        hits = matrix[:, rows] @ (score[rows] == label)
        recalls.append(np.divide(hits, count, out=np.full(hits.shape, np.nan), where=count > 0))
    values = np.nanmean(np.nanmean(np.stack(recalls), axis=0), axis=1)
    return float(values[0]) if weights is None else values


def material(runs: Sequence[dict[str, Any]], cell: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(truth [N], score [N, seeds], groups [N]) of one cell."""
    cells = [run["cells"][cell] for run in good(runs)]
    groups = np.array(cells[0]["groups"])
    if "truth" in cells[0]:
        return np.array(cells[0]["truth"]), np.array([c["predicted"] for c in cells], float).T, groups
    values = [[np.nan if v is None else v for v in c["values"]] for c in cells]
    return np.full(len(groups), -1), np.array(values, float).T, groups


def head(runs: Runs, options: argparse.Namespace) -> list[str]:
    """Title, machine, and how to run it."""
    import torch

    seeds = max((len(r) for r in runs.values()), default=0)
    return [
        "# Learning in equal CPU time", "",
        "Made by `python -m benchmarks.learning --shards SHARDS --real COLLECTION "
        f"--budget {options.budget:g} --seeds {seeds}`. {options.budget:g} CPU seconds of one thread a run, "
        f"{seeds} seeds, {platform.machine()}, torch {torch.__version__}. The same transformer (width 192, "
        "6 blocks, patches of 8 on 64 pixels), the same pictures; scoring.py says what the six cells are.",
    ]  # fmt: skip


def table(runs: Runs) -> list[str]:
    """Means over seeds with intervals over test subjects, steps and time."""
    rows = [
        "Mean over the seeds, 95 % interval over test subjects. kNN, linear: balanced accuracy; dense: Dice.",
        "",
        "| contender | " + " | ".join(CELLS) + " | mean | steps | CPU s |",
        "|---|" + "---|" * (len(CELLS) + 3),
    ]
    means = {name: means_of(each) for name, each in runs.items() if good(each)}
    best = {cell: max(values[cell] for values in means.values()) for cell in CELLS} if means else {}
    for name, each in runs.items():
        if name not in means:
            rows.append(f"| {name} | " + " | ".join(["failed"] * len(CELLS)) + " | | | |")
            continue
        shown = []
        for cell in CELLS:
            truth, score, groups = material(each, cell)
            interval = bootstrap_metric(score_of, truth, score, groups, n=DRAWS)
            mark = "**" if means[name][cell] == best[cell] else ""
            shown.append(f"{mark}{interval.mean:.3f}{mark} ({interval.low:.2f}–{interval.high:.2f})")
        ran = good(each)
        steps = "–".join(str(n) for n in sorted({min(r["steps"] for r in ran), max(r["steps"] for r in ran)}))
        seconds = np.mean([r["cpu_seconds"] for r in ran])
        rows.append(f"| {name} | {' | '.join(shown)} | {np.mean(list(means[name].values())):.3f} | {steps} | "
                    f"{seconds:.0f} |")  # fmt: skip
    return rows


def means_of(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Cell -> mean over the seeds."""
    return {cell: float(np.mean([run["cells"][cell]["score"] for run in good(runs)])) for cell in CELLS}


def ahead(runs: Runs) -> list[str]:
    """For every recipe of ours and every rival: in how many of the six cells ours is ahead."""
    own = [name for name in runs if name.startswith("medloom/") and good(runs[name])]
    others = [name for name in runs if not name.startswith("medloom/") and good(runs[name])]
    if not own or not others:
        return []
    rows = [
        "Cells (of six) in which the row is ahead of the column; in brackets those whose interval of the "
        "difference lies above zero, and below.", "",
        "| | " + " | ".join(others) + " | best of the others, cell by cell |",
        "|---|" + "---|" * (len(others) + 1),
    ]  # fmt: skip
    rivals = [name for name in others if name != "random"]
    for name in own:
        shown = [compared(runs[name], runs[other]) for other in others]
        mine = means_of(runs[name])
        top = {cell: max((means_of(runs[o])[cell] for o in rivals), default=np.nan) for cell in CELLS}
        shown.append(f"{sum(mine[cell] > top[cell] for cell in CELLS)}")
        rows.append(f"| {name} | " + " | ".join(shown) + " |")
    return rows


def compared(mine: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> str:
    """`cells ahead (surely ahead, surely behind)`."""
    count = surely = behind = 0
    for cell in CELLS:
        truth, a, groups = material(mine, cell)
        _, b, _ = material(other, cell)
        gap = paired_metric_difference(score_of, truth, a, b, groups, n=DRAWS)
        count += gap.difference > 0
        surely += gap.low > 0
        behind += gap.high < 0
    return f"{count} (+{surely}, −{behind})"


def failures(runs: Runs) -> list[str]:
    """Every failed run with its reason."""
    failed = [f"- {name}, seed {run['seed']}: {run['error']}" for name, each in runs.items() for run in each
              if "error" in run]  # fmt: skip
    return ["Failed runs:", "", *failed] if failed else ["No run failed."]


def settings(runs: Runs) -> list[str]:
    """Where each contender's numbers come from."""
    shown = [f"- {name}: {good(each)[0]['settings']}" for name, each in runs.items()
             if good(each) and "settings" in good(each)[0]]  # fmt: skip
    return ["Settings:", "", *shown]


def every(runs: Runs) -> list[str]:
    """One row a run."""
    rows = ["All runs:", "", "| contender | seed | " + " | ".join(CELLS) + " | steps | CPU s | last loss |",
            "|---|" + "---|" * (len(CELLS) + 4)]  # fmt: skip
    for name, each in runs.items():
        for run in each:
            if "cells" not in run:
                rows.append(f"| {name} | {run['seed']} |" + " failed |" * len(CELLS) + " | | |")
                continue
            cells = " | ".join(f"{run['cells'][cell]['score']:.3f}" for cell in CELLS)
            loss = f"{run['loss']:.3f}" if "loss" in run else ""
            rows.append(
                f"| {name} | {run['seed']} | {cells} | {run['steps']} | {run['cpu_seconds']:.0f} | {loss} |"
            )
    return rows
