"""What the view of a dataset shows beyond its row: its route, published scores, facts of two benchmarks.

A section is {title, note, basis, rows: [[name, value]], table: {head, rows}}; a value is text, a number, a
list, {url, text}, {code} or {basis, text}. What is recalled carries that basis, which the page marks. The
commands are those of `medloom catalog show`; datasets share them but for their id, so a row names a pattern.
"""

from __future__ import annotations

import re
from typing import Any

from ..catalog import Catalog
from ..catalog.records import BUILT_IN, Dataset, MedMnistSet, MsdTask
from ..catalog.routes import Baseline, Route, route

Section = dict[str, Any]
ID = "{id}"  # in a pattern of commands


def sections(catalog: Catalog, dataset: Dataset, patterns: dict[tuple[str, ...], int]) -> dict[str, Any]:
    """{"sections": [...], "commands": number of a pattern}, each where there is one.

    Args:
        patterns: of commands so far, with their numbers; a new one is added.
    """
    way = route(catalog, dataset.id)
    found = [_route(way)] if way.leaderboard or way.metrics or way.tasks else []
    if way.baselines:
        found.append(_baselines(way.baselines))
    if dataset.id in catalog.msd:
        found.append({"title": "In the Decathlon", "rows": _msd(catalog.msd[dataset.id])})
    if dataset.id in catalog.medmnist:
        found.append({"title": "In MedMNIST", "rows": _medmnist(catalog.medmnist[dataset.id])})
    row: dict[str, Any] = {"sections": found} if found else {}
    if dataset.origin == BUILT_IN:
        pattern = tuple(_pattern(command, dataset.id) for command in way.commands)
        row["commands"] = patterns.setdefault(pattern, len(patterns))
    return row


def _pattern(command: str, identifier: str) -> str:
    """The command with `{id}` for the id, where that stands alone or ends a path."""
    return re.sub(rf"(?<![\w-]){re.escape(identifier)}(?![\w-])", ID, command)


def _route(way: Route) -> Section:
    """Leaderboard, metrics and the task records here, each with its basis."""
    rows: list[list[Any]] = []
    if way.leaderboard:
        rows.append(["Leaderboard", [{"url": way.leaderboard.value}, *_basis(way.leaderboard.basis)]])
    if way.metrics:
        rows.append(["Metrics", [", ".join(way.metrics), *_basis(way.metrics_basis)]])
    for task in way.tasks:
        part = "another dataset, which shares cases" if task.part else ""
        rows.append(["Task here", [{"code": task.name}, ", ".join(task.metrics), *([part] if part else [])]])
    if way.no_task:
        rows.append(["Task here", [way.no_task]])
    return {"title": "Route", "rows": rows}


def _basis(text: str) -> list[dict[str, str]]:
    """What the page shows beneath a fact: where it is from; recalled ones are marked."""
    return [{"basis": "recalled" if text.startswith("recalled") else "read", "text": text}] if text else []


def _baselines(baselines: tuple[Baseline, ...]) -> Section:
    """Published results, a row each; their source and status above."""
    names = list(dict.fromkeys(name for baseline in baselines for name in baseline.scores))
    rows = [
        [baseline.name, *[_score(baseline, name) for name in names]] for baseline in baselines
    ]  # fmt: skip
    told = [f"{b.source} ({b.status})" for b in baselines]
    recalled = any(b.status.startswith("recalled") for b in baselines)
    return {
        "title": "Published scores",
        "note": f"In {baselines[0].unit}. From {'; '.join(dict.fromkeys(told))}.",
        "basis": "recalled" if recalled else "read",
        "table": {"head": ["Method", *names], "rows": rows},
    }


def _score(baseline: Baseline, name: str) -> str:
    score = baseline.scores.get(name)
    return "" if score is None else f"{score:.{2 if baseline.unit == 'percent' else 3}f}"


def _msd(task: MsdTask) -> list[list[Any]]:
    return [
        ["Task", f"{task.task_id} {task.name}"],
        ["Channels", ", ".join(task.channels.values())],
        ["Labels", _numbered(task.labels)],
        ["Cases", f"{task.n_train} training, {task.n_test} test; {task.n_note}"],
        ["Median", f"{_times(task.median_spacing_mm)} mm, {_times(task.median_shape)} voxels (x, y, z)"],
        ["Archive", [{"url": task.url_aws}, {"code": f"md5 {task.archive_md5}"}]],
        ["From", task.institution],
    ]


def _medmnist(item: MedMnistSet) -> list[list[Any]]:
    return [
        ["Task", item.task],
        ["Labels", _numbered(item.labels)],
        ["Split", f"{item.n_train:,} train, {item.n_val:,} validation, {item.n_test:,} test"],
        ["Channels", item.n_channels],
        ["Archives", [{"url": item.url[size], "text": f"{size} px"} for size in item.sizes]],
        ["Made from", item.source_dataset],
    ]


def _numbered(labels: dict[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())


def _times(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)
