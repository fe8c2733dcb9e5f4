"""Read the packaged CSV tables (data/catalog/tables, see PROVENANCE.md there) into records.

Cells repeat (30 modalities over 1,314 rows), so a list cell is parsed once and its tuple shared: the tables
take about 20 ms. A cell that the vocabulary does not know is an error that names table, line and column.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ConfigError, nearest
from ..sample import Organ
from .records import BUILT_IN, Dataset, MedMnistSet, MsdTask, Overlap
from .vocabulary import MODALITY_TOKENS, Access, Category, Dims, RelationKind, Task, Unit

TABLES = Path(__file__).with_name("tables")
DATASETS, MSD, MEDMNIST = (TABLES / f"{name}.csv" for name in ("datasets", "msd", "medmnist"))
OVERLAPS = (TABLES / "overlaps.csv", TABLES / "overlaps_more.csv")

Row = TypeVar("Row")

_COLUMNS: dict[str, dict[str, Any]] = {
    "modalities": dict(MODALITY_TOKENS),
    "organs": {m.value: m for m in Organ},
    "dims": {m.value: m for m in Dims},
    "tasks": {m.value: m for m in Task},
    "category": {m.value: m for m in Category},
    "unit": {m.value: m for m in Unit},
    "access": {m.value: m for m in Access},
    "relation": {m.value: m for m in RelationKind},
}


class Parser:
    """Turns cells of text into values; remembers the list cells it has seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], tuple[Any, ...]] = {}

    def tokens(self, column: str, cell: str) -> tuple[Any, ...]:
        """`ct;mri` -> (Modality.CT, Modality.MRI).

        Raises:
            ConfigError: a token is not in the vocabulary of `column`.
        """
        found = self._seen.get((column, cell))
        if found is None:
            found = tuple(self.token(column, word) for word in cell.split(";") if word)
            self._seen[column, cell] = found
        return found

    @staticmethod
    def token(column: str, word: str) -> Any:
        """One word of a controlled column."""
        known = _COLUMNS.get(column)
        if known is None:
            return word
        if word not in known:
            raise ConfigError(f"{column}: unknown {word!r}{nearest(word, set(known))}")
        return known[word]


def dataset(row: dict[str, str], parser: Parser, *, origin: str = BUILT_IN) -> Dataset:
    """A Dataset from a row of text cells (the columns of datasets.csv)."""
    several = {
        column: parser.tokens(column, row[column])
        for column in ("modalities", "organs", "dims", "tasks", "formats", "download", "sources")
    }
    return Dataset(
        id=row["id"], name=row["name"], year=_whole("year", row["year"]),
        category=parser.token("category", row["category"]) if row["category"] else None,
        n_images=_whole("n_images", row["n_images"]), n_subjects=_whole("n_subjects", row["n_subjects"]),
        unit=parser.token("unit", row["unit"]) if row["unit"] else None,
        access=parser.token("access", row["access"] or "unknown"),
        licence=row["licence"], homepage=row["homepage"], paper=row["paper"], notes=row["notes"],
        origin=origin, **several,
    )  # fmt: skip


def overlap(row: dict[str, str], parser: Parser) -> Overlap:
    """An Overlap from a row of text cells."""
    return Overlap(
        a=row["a"], relation=parser.token("relation", row["relation"]), b=row["b"],
        evidence_url=row["evidence_url"], basis_note=row["basis"],
    )  # fmt: skip


def msd_task(row: dict[str, str], parser: Parser) -> MsdTask:
    """An MsdTask from a row of msd.csv."""
    scores = {
        name: tuple(float(value) for value in cell.split(";"))
        for name, cell in row.items() if name.endswith(("_dsc", "_nsd")) and cell
    }  # fmt: skip
    own = {
        "channels": _numbered(row["channels"]), "labels": _numbered(row["labels"]),
        "n_train": int(row["n_train"]), "n_test": int(row["n_test"]),
        "median_spacing_mm": tuple(float(side) for side in row["median_spacing_mm"].split("x")),
        "median_shape": tuple(int(side) for side in row["median_shape"].split("x")),
        "paper": tuple(row["paper"].split(";")), "nsd_tolerance_mm": float(row["nsd_tolerance_mm"]),
        "scores": scores, "dataset": f"msd-{row['task_id']}-{row['name']}".lower(),
    }  # fmt: skip
    plain = {name: row[name] for name in MsdTask.__dataclass_fields__ if name not in own}
    return MsdTask(**plain, **own)


def medmnist_set(row: dict[str, str], parser: Parser) -> MedMnistSet:
    """A MedMnistSet from a row of medmnist.csv."""
    sizes = tuple(int(size) for size in row["sizes"].split(";"))
    source = row["source_dataset"]
    counts = ("n_classes", "n_channels", "n_train", "n_val", "n_test", "n_total")
    scores = {name: float(cell) for name, cell in row.items() if name.endswith(("_auc", "_acc")) and cell}
    own = {
        "modality": parser.token("modalities", row["modality"]), "labels": _numbered(row["labels"]),
        "sizes": sizes, "md5": {size: row[f"md5_{size}"] for size in sizes},
        "url": {size: row[f"url_{size}"] for size in sizes}, "scores": scores,
        "source_dataset": source if " " in source else source.lower(),
        **{name: int(row[name]) for name in counts},
    }  # fmt: skip
    plain = {name: row[name] for name in MedMnistSet.__dataclass_fields__ if name not in own}
    return MedMnistSet(**plain, **own)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of a CSV table with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        for cells in reader:
            if len(cells) != len(columns):
                raise ConfigError(
                    f"{path.name} line {reader.line_num}: {len(cells)} cells, the header has {len(columns)}; "
                    "quote cells that hold a comma"
                )
            yield reader.line_num, dict(zip(columns, cells, strict=True))


def read(path: Path, parse: Callable[[dict[str, str], Parser], Row], parser: Parser) -> list[Row]:
    """All rows of a table as records.

    Raises:
        ConfigError: a cell cannot be read; names the table and the line.
    """
    records: list[Row] = []
    for line, row in read_rows(path):
        try:
            records.append(parse(row, parser))
        except (ConfigError, ValueError, KeyError) as error:
            raise ConfigError(f"{path.name} line {line}: {error}") from error
    return records


def _whole(column: str, cell: str) -> int | None:
    if not cell:
        return None
    if not cell.isdecimal():
        raise ConfigError(f"{column}: {cell!r} is not a whole number; leave the cell empty when unknown")
    return int(cell)


def _numbered(cell: str) -> dict[int, str]:
    """`0=background;1=liver` -> {0: "background", 1: "liver"}."""
    pairs = (item.partition("=") for item in cell.split(";") if item)
    return {int(value): name for value, _, name in pairs}
