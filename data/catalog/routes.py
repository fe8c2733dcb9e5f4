"""The route of a dataset: where its challenge is, how it is measured, what was reached, and what to run here.

Facts of challenges beyond the Decathlon and MedMNIST are few (tables/routes.csv) and recalled; the address of
a leaderboard that only follows from the host's usual form says so. What is not recorded is said to be
unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import TABLES, read_rows
from .records import Dataset, MedMnistSet, MsdTask

if TYPE_CHECKING:
    from .catalog import Catalog

ROUTES = TABLES / "routes.csv"

_UMBRELLA = "medmnist"
_GRAND_CHALLENGE = re.compile(r"https?://([a-z0-9-]+)\.grand-challenge\.org")
_KAGGLE = re.compile(r"https?://(?:www\.)?kaggle\.com/(?:competitions|c)/([^/#?]+)")


@dataclass(frozen=True, slots=True)
class Sourced:
    """A fact and where it is from."""

    value: str
    basis: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """A published result on the task."""

    name: str  # nnU-Net, leaderboard
    scores: dict[str, float]  # {"Dice liver": 95.75, ...}
    unit: str  # "percent" or "fraction"
    source: str
    status: str


@dataclass(frozen=True, slots=True)
class TaskHere:
    """A task record of configs/tasks that is measured on the dataset or on one that shares cases with it."""

    name: str
    metrics: tuple[str, ...]
    dataset: str  # of the record's source
    part: bool  # that is another dataset, which shares cases with this one


@dataclass(frozen=True, slots=True)
class Route:
    """The way from a dataset's page to a score here."""

    page: Sourced | None
    leaderboard: Sourced | None
    metrics: tuple[str, ...]
    metrics_basis: str
    baselines: tuple[Baseline, ...] = ()
    tasks: tuple[TaskHere, ...] = ()
    no_task: str = ""  # why there is no record of the dataset itself
    commands: tuple[str, ...] = field(default=())


def route(catalog: Catalog, identifier: str) -> Route:
    """The route of a dataset.

    Raises:
        ConfigError: unknown id.
    """
    dataset = catalog[identifier]
    row = _rows().get(dataset.id, {})
    msd, mnist = catalog.msd.get(dataset.id), catalog.medmnist.get(dataset.id)
    metrics, basis = tuple(filter(None, row.get("metrics", "").split(";"))), row.get("basis", "")
    if basis and row.get("evidence_url"):
        basis = f"{basis}: {row['evidence_url']}"
    baselines: tuple[Baseline, ...] = ()
    if msd:
        metrics = ("Dice", f"NSD at {msd.nsd_tolerance_mm:g} mm (tolerance: {msd.nsd_tolerance_status})")
        baselines = tuple(_msd_baselines(msd))
    elif mnist:
        metrics, basis = ("AUC", "ACC"), f"read: {mnist.results_source}"
        baselines = tuple(_medmnist_baselines(mnist))
    tasks = tuple(task for task in tasks_here() if dataset.id in task[1])
    here = [TaskHere(name, measured, own, own != dataset.id) for name, _, measured, own in tasks]
    here.sort(key=lambda task: task.part)
    return Route(
        _page(dataset),
        _leaderboard(dataset, row),
        metrics,
        basis,
        baselines,
        tuple(here),
        _no_task(catalog, dataset, here),
        tuple(_commands(catalog, dataset, here)),
    )


@lru_cache(maxsize=1)
def tasks_here() -> tuple[tuple[str, frozenset[str], tuple[str, ...], str], ...]:
    """(name, ids of the same cases, metrics, own dataset id) of every shipped task record."""
    from ..config import CONFIGS, read_yaml

    found = []
    for path in sorted(CONFIGS.joinpath("tasks").glob("*.yaml")):
        record: dict[str, Any] = read_yaml(path)
        own = str((record.get("source") or {}).get("dataset", ""))
        ids = frozenset({own, *map(str, record.get("related") or [])})
        metrics = tuple(record.get("metrics") or ())
        found.append((path.stem, ids, metrics or (f"the usual ones of {record.get('kind')}",), own))
    return tuple(found)


def _page(dataset: Dataset) -> Sourced | None:
    return Sourced(dataset.homepage, "homepage of the row, not opened") if dataset.homepage else None


def _leaderboard(dataset: Dataset, row: dict[str, str]) -> Sourced | None:
    """Recorded, or by the usual form of the host."""
    if row.get("leaderboard"):
        return Sourced(row["leaderboard"], row["basis"])
    usual = "the usual address at this host, not opened"
    if match := _GRAND_CHALLENGE.match(dataset.homepage):
        site = f"https://{match[1]}.grand-challenge.org/evaluation/challenge/leaderboard/"
        return Sourced(site, usual)
    if match := _KAGGLE.match(dataset.homepage):
        return Sourced(f"https://www.kaggle.com/competitions/{match[1]}/leaderboard", usual)
    return None


def _msd_baselines(task: MsdTask) -> Iterator[Baseline]:
    """Published rows, each structure by name."""
    names = {"nnunet_2018_phase1": "nnU-Net 2018, phase 1", "nnunet_leaderboard": "nnU-Net, leaderboard",
             "swin_unetr": "Swin UNETR, leaderboard"}  # fmt: skip
    structures = [name for value, name in sorted(task.labels.items()) if value]
    for key, name in names.items():
        scores = {
            f"{metric} {structure}": score
            for metric, ending in (("Dice", "dsc"), ("NSD", "nsd"))
            for structure, score in zip(structures, task.scores.get(f"{key}_{ending}", ()), strict=False)
        }
        if scores:
            yield Baseline(name, scores, "percent", task.results_source, task.results_status)


def _medmnist_baselines(item: MedMnistSet) -> Iterator[Baseline]:
    """One for each model and input size of the benchmark."""
    for model in dict.fromkeys(key.rpartition("_")[0] for key in item.scores):
        scores = {
            name.upper(): item.scores[f"{model}_{name}"]
            for name in ("auc", "acc")
            if f"{model}_{name}" in item.scores
        }
        name = re.sub(r"resnet_(\d+)_(.+)", r"ResNet-\1 (\2)", model).replace("_", " ")
        yield Baseline(name, scores, "fraction", item.results_source, "read")


def _no_task(catalog: Catalog, dataset: Dataset, tasks: Sequence[TaskHere]) -> str:
    if any(not task.part for task in tasks):
        return ""
    if dataset.id == _UMBRELLA:
        return f"none: it is {len(catalog.medmnist)} sets, each with its own route"
    return "no record yet; write one from configs/tasks (docs/evaluation.md)"


def _commands(catalog: Catalog, dataset: Dataset, tasks: Sequence[TaskHere]) -> Iterator[str]:
    """Fetch, build, train and score; with placeholders in capitals where the user decides.

    Without a record of its own, those that share its cases: of another dataset of the catalogue, the way
    begins on that dataset's own route.
    """
    if dataset.id == _UMBRELLA:  # is fetched set by set
        yield from (f"medloom catalog show {member}" for member in catalog.medmnist)
        return
    yield f"medloom data fetch {dataset.id}"  # where nothing can be fetched it prints the steps by hand
    yield f"medloom shards build datasets/{dataset.id}/collection.yaml --out shards/{dataset.id}"
    for task in [task for task in tasks if not task.part] or tasks:
        if task.part and task.dataset in catalog:
            yield f"medloom catalog show {task.dataset}"
            continue
        root = "ROOT" if task.part else "datasets"
        yield f"medloom finetune {task.name} --root {root} --encoder ENCODER --out runs/{task.name}"
        yield f"medloom evaluate runs/{task.name}"


@lru_cache(maxsize=1)
def _rows() -> dict[str, dict[str, str]]:
    path: Path = ROUTES
    return {row["id"]: row for _, row in read_rows(path)}
