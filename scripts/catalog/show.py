"""`medloom catalog show`: all facts of one dataset, where they are from, and its route."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .output import add_format, add_own

if TYPE_CHECKING:
    from ...data.catalog import Catalog
    from ...data.catalog.records import Dataset
    from ...data.catalog.routes import Route


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("id", help="dataset id")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the facts and the route."""
    from ...data.catalog.plain import plain, plain_relative
    from ...data.catalog.routes import route
    from .output import load, write_csv, write_json

    catalog = load(arguments)
    dataset = catalog[arguments.id]
    if arguments.format == "csv":
        write_csv([plain(dataset)])
        return 0
    way = route(catalog, dataset.id)
    if arguments.format == "json":
        record = plain(dataset) | {"recalled": list(dataset.recalled)}
        for name, table in (("msd", catalog.msd), ("medmnist", catalog.medmnist)):
            if dataset.id in table:
                record[name] = asdict(table[dataset.id])
        relatives = [plain_relative(relative) for relative in catalog.related(dataset.id)]
        write_json(record | {"related": relatives, "route": asdict(way)})
        return 0
    _facts(catalog, dataset)
    _route(way, dataset)
    return 0


def _facts(catalog: Catalog, dataset: Dataset) -> None:
    """The fields, the benchmark's own facts, the number of relatives."""
    from ...data.catalog.licences import terms
    from ..console import say

    say(f"{dataset.id} {dataset.mark}".strip())
    count = f"{dataset.n_images:,} {dataset.unit}" if dataset.n_images is not None else "unknown"
    rows: dict[str, Any] = {
        "name": dataset.name, "year": dataset.year, "modality": ", ".join(dataset.modalities),
        "organ": ", ".join(dataset.organs), "category": f"{dataset.category} (by rule, not read)",
        "dims": ", ".join(dataset.dims), "task": ", ".join(dataset.tasks), "count": count,
        "subjects": dataset.n_subjects, "format": ", ".join(dataset.formats), "access": dataset.access,
        "licence": f"{dataset.licence} ({terms(dataset.licence).words})" if dataset.licence else None,
        "homepage": dataset.homepage, "download": "\n".join(dataset.download), "paper": dataset.paper,
        **_benchmark(catalog, dataset.id), "notes": dataset.notes,
        "facts from": ", ".join(dataset.sources) or dataset.origin,
        "recalled": "\n".join(dataset.recalled) or "nothing",
    }  # fmt: skip
    _pairs(rows)
    relatives = catalog.related(dataset.id)
    certain = [relative.id for relative in relatives if relative.level == "certain"]
    more = len(relatives) - len(certain)
    say(
        f"  related      {', '.join(certain) or 'nothing recorded'}"
        + (f"; {more} more may be" if more else "")
    )


def _benchmark(catalog: Catalog, identifier: str) -> dict[str, Any]:
    """What the tables of the Decathlon and of MedMNIST add."""
    if identifier in catalog.msd:
        task = catalog.msd[identifier]
        return {
            "labels": ", ".join(f"{value} {name}" for value, name in task.labels.items()),
            "channels": ", ".join(f"{value} {name}" for value, name in task.channels.items()),
            "cases": f"{task.n_train} train + {task.n_test} test; {task.n_note}",
            "median": f"{' x '.join(map(str, task.median_shape))} voxels of "
            f"{' x '.join(map(str, task.median_spacing_mm))} mm",
            "from": task.institution, "archive md5": f"{task.archive_md5} ({task.md5_source})",
        }  # fmt: skip
    if identifier in catalog.medmnist:
        item = catalog.medmnist[identifier]
        return {
            "labels": ", ".join(f"{value} {name}" for value, name in item.labels.items()),
            "kind": item.task, "cases": f"{item.n_train} train + {item.n_val} val + {item.n_test} test",
            "sizes": ", ".join(map(str, item.sizes)), "made from": item.source_dataset,
        }  # fmt: skip
    return {}


def _route(way: Route, dataset: Dataset) -> None:
    """Challenge, metrics, baselines, what is here."""
    from ...data.catalog.records import BUILT_IN
    from ..console import print_table, say

    say()
    say("route")
    _pairs({
        "page": f"{way.page.value} ({way.page.basis})" if way.page else None,
        "leaderboard": f"{way.leaderboard.value} ({way.leaderboard.basis})" if way.leaderboard else None,
        "metrics": f"{', '.join(way.metrics)}\n({way.metrics_basis})" if way.metrics else None,
    })  # fmt: skip
    if way.baselines:
        names = dict.fromkeys(name for baseline in way.baselines for name in baseline.scores)
        print_table([
            {"  baseline": f"  {b.name}", **{name: b.scores.get(name) for name in names}, "unit": b.unit}
            for b in way.baselines
        ])  # fmt: skip
        for source, status in dict.fromkeys((b.source, b.status) for b in way.baselines):
            say(f"  baselines from {source}; {status}")
    else:
        say("  baselines    none recorded")
    for task in way.tasks:
        part = "; another dataset, which shares cases" if task.part else ""
        say(f"  task here    {task.name} ({', '.join(task.metrics)}{part})")
    if way.no_task:
        say(f"  {'' if way.tasks else 'task here':<12} {'itself: ' if way.tasks else ''}{way.no_task}")
    if dataset.origin == BUILT_IN:
        say("  commands")
        for line in way.commands:
            say(f"    {line}")
        if any("ENCODER" in line for line in way.commands):
            say("    ENCODER: a run of medloom pretrain, an encoder folder, .safetensors, .ckpt or timm:NAME")


def _pairs(rows: dict[str, Any]) -> None:
    """Name and value, one a line; what is not known says so."""
    from ..console import say

    for name, value in rows.items():
        if value is None or value == "":
            if name == "notes":
                continue
            value = "unknown"
        first, *rest = str(value).splitlines()
        say(f"  {name:<12} {first}")
        for line in rest:
            say(f"  {'':<12} {line}")
