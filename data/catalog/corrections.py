"""Turn a correction into a patch of the packaged tables, ready for `git apply` or a pull request.

Only the row in question changes, byte for byte, so the patch applies to any checkout in which that row and
its neighbours are as installed. Provenance is kept: the evidence goes into the row's notes, `other:reported`
into its sources. The patch is made only when the changed tables validate.
"""

from __future__ import annotations

import csv
import difflib
import io
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, nearest
from .parsing import DATASETS, OVERLAPS, TABLES
from .records import BUILT_IN, Dataset
from .validate import ADDRESS, faults
from .vocabulary import RelationKind

FOLDER = "data/catalog/tables"  # of the tables in the repository
FIXED = {"id", "sources", "origin"}


def correct(dataset: Dataset, changes: Mapping[str, str], evidence: str) -> str:
    """Patch that sets columns of a row of datasets.csv.

    Args:
        changes: column -> new cell, as the table writes it (`ct;mri`); empty: not known.
        evidence: an address where it can be read.

    Raises:
        ConfigError: an own record, an unknown column, a value that the checks refuse, or nothing changes.
    """
    _address(evidence)
    if dataset.origin != BUILT_IN:
        raise ConfigError(f"{dataset.id} is your own record: correct it in {dataset.origin}")
    lines = _lines(DATASETS)
    columns = next(csv.reader([lines[0]]))
    for column in changes:
        if column not in columns or column in FIXED:
            raise ConfigError(
                f"{column}: no column that can be corrected{nearest(column, set(columns) - FIXED)}"
            )
    number, cells = _find(lines, dataset.id)
    row = dict(zip(columns, cells, strict=True))
    changed = [column for column, value in changes.items() if row[column] != value]
    if not changed:
        raise ConfigError(f"{dataset.id}: nothing to correct, the row says so already")
    row |= changes
    words = f"{', '.join(changed)}: {evidence}"
    row["notes"] = f"{row['notes']}; {words}" if row["notes"] else words
    if "other:reported" not in row["sources"].split(";"):
        row["sources"] = ";".join(filter(None, [*row["sources"].split(";"), "other:reported"]))
    after = [*lines[:number], _line(row.values()), *lines[number + 1 :]]
    return _patch(DATASETS, lines, after)


def relate(a: str, relation: str, b: str, evidence: str, *, known: set[str]) -> str:
    """Patch that adds a relation to overlaps_more.csv, as read at `evidence`.

    Raises:
        ConfigError: an unknown end or relation, or a pair that is related already.
    """
    for end in (a, b):
        if end not in known:
            raise ConfigError(f"{end}: no such dataset in the catalogue{nearest(end, known)}")
    if relation not in set(RelationKind):
        raise ConfigError(f"unknown relation {relation!r}{nearest(relation, set(RelationKind))}")
    _address(evidence)
    path = OVERLAPS[-1]
    lines = _lines(path)
    return _patch(path, lines, [*lines, _line([a, relation, b, evidence, "read at the evidence_url"])])


def _address(evidence: str) -> None:
    if not ADDRESS.fullmatch(evidence):
        raise ConfigError(f"--evidence: {evidence!r} is no address; name the page where it can be read")


def _patch(path: Path, before: list[str], after: list[str]) -> str:
    """Unified diff of one table, after the changed tables have been checked."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(TABLES, Path(folder) / "tables"))
        (copy / path.name).write_text("".join(after), encoding="utf-8", newline="")
        old = {(fault.row, fault.text) for fault in faults()}
        new = [fault for fault in faults(copy) if (fault.row, fault.text) not in old]
    if new:
        raise ConfigError(f"{new[0].row}: {new[0].text}")
    name = f"{FOLDER}/{path.name}"
    head = f"diff --git a/{name} b/{name}\n"
    return head + "".join(difflib.unified_diff(before, after, f"a/{name}", f"b/{name}"))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def _find(lines: list[str], identifier: str) -> tuple[int, list[str]]:
    """(index of the line, cells) of a dataset; no cell of the tables holds a line break."""
    for number, line in enumerate(lines):
        if line.startswith(f"{identifier},"):
            return number, next(csv.reader([line]))
    raise ConfigError(f"{identifier}: no such row in {DATASETS.name}")


def _line(cells) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
