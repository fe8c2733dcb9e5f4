"""The leaderboard: one HTML file, made from the folders of the cells alone, in the style of the report.

Whatever is asked of it, no score is printed without its leakage statement: such a cell is listed as withheld.
Beside the page: scores.csv (one row an encoder, protocol, share and task) and cells.csv (one row a cell, with
its cost), so that nobody has to read numbers off a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from ...data.atomic import csv_text, write_text
from ..charts import number
from ..metrics import info
from ..report_sections import shown
from .config import BenchmarkConfig
from .grid import grid
from .results import Entry, Results, difference, from_scratch, read_results, tasks_of
from .sections import boards, costs, curves, failures, leakage, made, tasks, worst
from .standing import Standing, standings

PAGE, SCORES, CELLS = "leaderboard.html", "scores.csv", "cells.csv"
_HERE = Path(__file__).parent.parent
_STYLE = """
td.score { white-space: nowrap; } td.score span { display: block; color: var(--soft); font-size: 13px; }
td.score b { font-weight: 600; } td.score b.better { color: var(--better); }
td.score b.worse { color: var(--worse); }
td.score b.leaked { color: var(--bad); } td.none { color: var(--soft); }
.baseline { color: var(--soft); font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: 26px; }
.charts figure { max-width: 560px; }
"""


def write_page(config: BenchmarkConfig) -> tuple[Path, Results]:
    """Read the cells, write the page and the tables; returns the page's path and what it shows."""
    results = read_results(config.folder, grid(config))
    table = standings(results)
    write_text(config.folder / SCORES, csv_text(score_rows(results)))
    write_text(config.folder / CELLS, csv_text(cell_rows(results)))
    path = config.folder / PAGE
    write_text(path, render(config, results, table))
    return path, results


def render(config: BenchmarkConfig, results: Results, table: Sequence[Standing]) -> str:
    """The page as text."""
    sections = [
        boards(table, results), curves(results), tasks(results), leakage(results), worst(results, table),
        costs(results), failures(results), made(config, results),
    ]  # fmt: skip
    sentences = verdict(table)
    limits = "".join(f"<li>{escape(line)}</li>" for line in _limits(config, results))
    return Template((_HERE / "report.html").read_text(encoding="utf-8")).substitute(
        title="medloom benchmark",
        css=(_HERE / "report.css").read_text(encoding="utf-8").strip() + _STYLE,
        verdict=escape(sentences[0]),
        limits="".join(f"<p>{escape(line)}</p>" for line in sentences[1:])
        + (f'<ul class="limits">{limits}</ul>' if limits else ""),
        facts=_facts(results),
        sections="\n".join(part for part in sections if part),
    )


def verdict(table: Sequence[Standing]) -> list[str]:
    """A sentence a board: who stands first, and whether the order is firm."""
    sentences = []
    for standing in table:
        if len(standing.ranks) < 2:
            continue
        where = f"{standing.protocol[0].upper()}{standing.protocol[1:]}, {standing.detail}"
        over = f"over {len(standing.tasks)} task{'s' if len(standing.tasks) > 1 else ''}"
        first, second = standing.ranks[:2]
        if first.rank == second.rank:
            same = [rank.method for rank in standing.ranks if rank.rank == first.rank]
            sentences.append(f"{where}: nothing tells {', '.join(same)} apart {over}.")
            continue
        firm = "" if first.high < second.low else ", an order that other patients might turn around"
        sentences.append(
            f"{where}: {first.method} has the best mean rank {over}, {number(first.rank, 2)} before "
            f"{second.method} with {number(second.rank, 2)}{firm}."
        )
    return sentences or ["There are no two encoders to compare yet."]


def score_rows(results: Results) -> list[dict[str, Any]]:
    """Rows of scores.csv; `gain`: the paired difference from scratch, better is positive."""
    rows = []
    for entry in results.entries.values():
        scratch = from_scratch(entry, results.entries.values())
        gain = None if scratch is None else difference(entry, scratch)
        rows.append({
            "task": entry.task, "encoder": entry.encoder, "arm": entry.arm, "protocol": entry.protocol,
            "fraction": entry.fraction, "metric": entry.metric, "mean": entry.mean, "low": entry.low,
            "high": entry.high, "gain": gain and gain.mean, "gain_low": gain and gain.low,
            "gain_high": gain and gain.high, "runs": len(entry.results), "leakage": entry.leakage,
        })  # fmt: skip
    return rows


def cell_rows(results: Results) -> list[dict[str, Any]]:
    """Rows of cells.csv: finished cells with their cost, others with their reason."""
    rows = []
    for entry in results.entries.values():
        for result in entry.results:
            seconds = result.cost.get("seconds") or {}
            rows.append({
                "cell": result.cell.name, "status": "done", "fit_seconds": seconds.get("fit"),
                "score_seconds": seconds.get("score"), "memory_mb": result.cost.get("memory_mb"),
                "accelerator_mb": result.cost.get("accelerator_mb"), "reason": "",
            })  # fmt: skip
    empty = dict.fromkeys(("fit_seconds", "score_seconds", "memory_mb", "accelerator_mb"))
    for failure in results.failures:
        told = {"cell": failure.cell.name, "status": failure.kind}
        rows.append({**told, **empty, "reason": shown(failure.reason)})
    return rows


def summary_rows(results: Results) -> list[dict[str, Any]]:
    """Rows for the terminal: one an encoder and protocol, one column a task."""
    names = tasks_of(results.entries.values())
    rows: dict[tuple[str, str, float], dict[str, Entry]] = {}
    for entry in results.entries.values():
        rows.setdefault((entry.encoder, entry.protocol, entry.fraction), {})[entry.task] = entry
    return [
        {"encoder": encoder, "protocol": protocol, "labels": f"{100 * fraction:g} %"}
        | {task: _brief(found.get(task)) for task in names}
        for (encoder, protocol, fraction), found in rows.items()
    ]


def _brief(entry: Entry | None) -> str:
    if entry is None:
        return "–"
    digits = info(entry.metric).digits
    told = f"{number(entry.mean, digits)} ({number(entry.low, digits)} to {number(entry.high, digits)})"
    return told if entry.leakage == "clean" else f"{told} {entry.leakage}"


def _limits(config: BenchmarkConfig, results: Results) -> list[str]:
    lines = []
    left_out = [name for name in ("random", "scratch") if name not in config.baselines]
    if left_out:
        lines.append(f"The baselines {' and '.join(left_out)} were switched off.")
    leaked = sorted({(e.encoder, e.task) for e in results.entries.values() if e.leakage == "leaked"})
    if leaked:
        told = "; ".join(f"{encoder} on {task}" for encoder, task in leaked)
        lines.append(f"Leaked, and so without a rank there: {told}.")
    waiting = [failure for failure in results.failures if failure.kind == "open"]
    if waiting:
        lines.append(f"{len(waiting)} cells are not done yet; ranks will change.")
    if len(config.seeds) < 3:
        lines.append(f"{len(config.seeds)} seed{'s' if len(config.seeds) > 1 else ''}: "
                     "intervals hold little of what training itself varies.")  # fmt: skip
    return lines


def _facts(results: Results) -> str:
    entries = list(results.entries.values())
    done = sum(len(entry.results) for entry in entries)
    seconds = sum(
        sum((result.cost.get("seconds") or {}).values()) for entry in entries for result in entry.results
    )
    facts = {
        "Encoders": len({entry.encoder for entry in entries if entry.arm == "pretrained"}),
        "Tasks": len({entry.task for entry in entries}),
        "Cells": f"{done} of {done + len(results.failures)}",
        "Hours of the cells": number(seconds / 3600, 2),
    }
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{items}</dl>'
