"""What the arms make of a set of images, corrupted or clean, and a metric of it with its bootstrap draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ...data.ingest.preprocess import describe
from ..data import Case
from ..evaluation import case_row
from ..statistics import mean_draws, metric_draws, structure_mean
from ..tasks import Task
from .corruptions import corrupt
from .losses import Pair

DRAWS = 2000  # of the bootstrap, for each score
_HELD_BYTES = 256 << 20  # corrupted images in memory
_HELD_CASES = 32


@dataclass(frozen=True, slots=True)
class Condition:
    """A corruption at a severity, and the cases that can suffer it."""

    name: str
    severity: int
    cases: tuple[int, ...]  # positions in the split

    @property
    def label(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.severity}"


@dataclass(slots=True)
class Scored:
    """What one arm made of the images: rows of the long table by case, predictions for metrics of sets."""

    rows: list[list[dict[str, Any]]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def values(self, metric: str, structures: Sequence[str], cases: Sequence[int]) -> np.ndarray:
        """A case metric [N, S], nan where excluded."""
        place = {name: column for column, name in enumerate(structures)}
        table = np.full((len(cases), len(structures)), np.nan)
        for number, case in enumerate(cases):
            for row in self.rows[case]:
                if row["metric"] == metric and row["structure"] in place:
                    table[number, place[row["structure"]]] = row["value"]
        return table


class Corrupted:
    """`Task.corrupt`: looks up images that were corrupted once for all arms."""

    def __init__(self) -> None:
        self._images: dict[str, np.ndarray] = {}

    def hold(self, task: Task, cases: Sequence[Case], name: str, severity: int) -> list[Case]:
        """Corrupt the images of these cases, forget those held before; the cases as ingest would see them."""
        self._images.clear()
        found = []
        for case in cases:
            image = task.data.image(case)
            if severity:
                image = corrupt(image, case.meta, name, severity)
                normalised = (case.meta.get("facts") or {}).get("normalised")
                stats = describe(image, None if normalised else case.meta["modality"])
                case = replace(case, meta={**case.meta, "stats": stats})
            self._images[case.key] = image
            found.append(case)
        return found

    def __call__(self, case: Case, image: np.ndarray) -> np.ndarray:
        return self._images[case.key]


def score_condition(
    task: Task,
    networks: Mapping[str, torch.nn.Module],
    cases: Sequence[Case],
    condition: Condition,
    device: torch.device,
    mirror: bool,
) -> dict[str, Scored]:
    """All arms on the condition's cases; those that it does not touch have no rows."""
    found = {arm: Scored(rows=[[] for _ in cases]) for arm in networks}
    held = Corrupted()
    task.corrupt = held
    try:
        for part in _chunks(cases, condition.cases):
            changed = held.hold(task, [cases[i] for i in part], condition.name, condition.severity)
            for arm, network in networks.items():
                mine = found[arm]
                predictions = task.predictions(network, changed, device, mirror=mirror)
                for index, prediction in zip(part, predictions, strict=True):
                    rows = task.rows(cases[index], prediction)
                    mine.rows[index] += [case_row(task, arm, cases[index], row) for row in rows]
                    if task.set_metrics:
                        mine.kept.append(prediction)
    finally:
        task.corrupt = None
    return found


def _chunks(cases: Sequence[Case], chosen: Sequence[int]) -> Iterator[list[int]]:
    """Cases whose images fit into memory together."""
    part: list[int] = []
    size = 0
    for index in chosen:
        meta = cases[index].meta
        own = math.prod(meta["shape"]) * np.dtype(meta["dtype"]).itemsize
        if part and (size + own > _HELD_BYTES or len(part) == _HELD_CASES):
            yield part
            part, size = [], 0
        part.append(index)
        size += own
    if part:
        yield part


def paired(
    task: Task, cases: Sequence[Case], chosen: Sequence[int], metric: str, clean: Scored, found: Scored
) -> Pair:
    """A metric on clean and on corrupted images of the same cases, and in the same draws of patients."""
    mine = [cases[i] for i in chosen]
    subjects = [case.subject for case in mine]
    if metric in task.set_metrics:
        function, truth = task.set_metrics[metric], task.truth(mine)
        sides = [task.stacked([clean.kept[i] for i in chosen]), task.stacked(found.kept)]
        points = [float(function(truth, side)) for side in sides]
        draws = [metric_draws(function, truth, side, subjects, DRAWS) for side in sides]
    else:
        tables = [side.values(metric, task.structures, chosen) for side in (clean, found)]
        unknown = np.isnan(tables[0] + tables[1])  # left out of one is left out of both
        tables = [np.where(unknown, np.nan, table) for table in tables]
        points = [structure_mean(table) for table in tables]
        draws = [mean_draws(table, subjects, DRAWS) for table in tables]
    first, second = (
        np.concatenate([[point], draw]).astype(np.float32) for point, draw in zip(points, draws, strict=True)
    )
    return Pair(first, second)
