"""What the catalogue's commands have in common: own records, and one answer as table, JSON or CSV."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...data.catalog import Catalog
    from ...data.catalog.records import Dataset

FORMATS = ("table", "json", "csv")


def add_own(parser: argparse.ArgumentParser) -> None:
    """Declare --own."""
    parser.add_argument(
        "--own", type=Path, action="append", metavar="PATH",
        help="YAML file or folder of your own records (default: $MEDLOOM_CATALOG, else "
        "~/.config/medloom/catalog/*.yaml)",
    )  # fmt: skip


def add_format(parser: argparse.ArgumentParser) -> None:
    """Declare --format."""
    parser.add_argument("--format", choices=FORMATS, default="table", help="of the answer (default: table)")


def load(arguments: argparse.Namespace) -> Catalog:
    """The catalogue with the user's own records."""
    from ...data.catalog import load

    return load(arguments.own)


def write_json(value: Any) -> None:
    """Write a value as JSON to stdout."""
    write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with equal keys as CSV to stdout."""
    from ...data.atomic import csv_text
    from ...data.catalog.plain import flat

    write(csv_text([flat(dict(row)) for row in rows]))


def write(text: str) -> None:
    """Write text to stdout as it is; a reader that has seen enough (`| head`) ends it quietly."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def short(dataset: Dataset) -> dict[str, object]:
    """A dataset as a row of a table, its mark behind the id; fewer columns on a terminal below 120."""
    row: dict[str, object] = {
        "dataset": f"{dataset.id} {dataset.mark}".strip(),
        "name": dataset.name[:40],
        "modality": ", ".join(dataset.modalities),
        "organ": ", ".join(dataset.organs),
        "task": ", ".join(dataset.tasks),
        "count": "" if dataset.n_images is None else f"{dataset.n_images:,} {dataset.unit}",
        "year": dataset.year,
        "licence": dataset.licence or "unknown",
        "access": dataset.access,
    }
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < 120:
        for name in ("name", "task", "year", "access"):
            del row[name]
    return row


def legend(datasets: Sequence[Dataset]) -> str:
    """What the marks of these rows mean; empty when none has one."""
    from ...data.catalog.records import MEANING

    present = {dataset.mark for dataset in datasets}
    return "   ".join(f"{mark} {text}" for mark, text in MEANING.items() if mark in present)
