"""Check the tables of the catalogue as text, so that every fault is found, not the first alone.

Checked: ids, vocabulary, numbers, years, addresses, that both ends of a relation exist, checksums, sums of
splits, and that the tables agree with each other. Not checked: whether a fact is true, or an address answers.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import ConfigError
from .parsing import TABLES, Parser, read_rows
from .records import Dataset
from .vocabulary import FORMATS, IDENTIFIER, SOURCES, RelationKind

ADDRESS = re.compile(r"https?://[^\s;]+")
_PAPER = re.compile(r"doi:10\.\d{4,9}/\S+|arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})(v\d+)?|https?://\S+")
_MD5 = re.compile(r"[0-9a-f]{32}")
_PATH = re.compile(r"(^|\s)(/(home|work|mnt|data|Users|tmp)/|[A-Z]:\\)")
_NUMBER = re.compile(r"[1-9]\d*")

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a table."""

    table: str
    line: int
    row: str  # id of the row
    text: str

    def __str__(self) -> str:
        return f"{self.table} line {self.line} ({self.row}): {self.text}"


def faults(tables: Path = TABLES) -> list[Fault]:
    """All faults of the tables in a folder.

    Raises:
        ConfigError: a table is missing, or its rows cannot be split into cells.
    """
    names = ("datasets", "overlaps", "overlaps_more", "msd", "medmnist", "routes")
    for name in names:
        if not (tables / f"{name}.csv").is_file():
            raise ConfigError(f"{tables / name}.csv: no such table; a catalogue has {', '.join(names)}.csv")
    rows = {name: list(read_rows(tables / f"{name}.csv")) for name in names}
    known = {row["id"]: row for _, row in rows["datasets"]}
    found: list[Fault] = []

    def check(name: str, key: Callable[[Row], str], test: Callable[[Row], Iterable[str]]) -> None:
        found.extend(
            Fault(f"{name}.csv", line, key(row), text) for line, row in rows[name] for text in test(row)
        )

    check("datasets", lambda row: row["id"], _dataset)
    found += _repeated(rows["datasets"])
    for name in ("overlaps", "overlaps_more"):
        check(name, lambda row: f"{row['a']}, {row['b']}", lambda row: _overlap(row, known))
    found += _contradictions({name: rows[name] for name in ("overlaps", "overlaps_more")})
    check("msd", lambda row: row["task_id"], lambda row: _msd(row, known))
    check("medmnist", lambda row: row["id"], lambda row: _medmnist(row, known))
    check("routes", lambda row: row["id"], lambda row: _route(row, known))
    return found


def _dataset(row: Row) -> Iterator[str]:
    expected = [field.name for field in fields(Dataset) if field.name != "origin"]
    if sorted(row) != sorted(expected):
        yield f"columns differ from {', '.join(expected)}"
        return
    if not IDENTIFIER.fullmatch(row["id"]):
        yield f"id {row['id']!r}: lower-case letters, digits and single hyphens"
    if not row["name"].strip():
        yield "no name"
    for column in ("modalities", "organs", "dims", "tasks", "category", "unit", "access"):
        for word in filter(None, row[column].split(";")):
            try:
                Parser.token(column, word)
            except ConfigError as error:
                yield str(error)
    for column, known in (("formats", FORMATS), ("sources", SOURCES)):
        for word in filter(None, row[column].split(";")):
            if word not in known:
                yield f"{column}: unknown {word!r}"
    if not row["sources"]:
        yield "sources: empty; every row says where it is from"
    yield from _numbers(row)
    for address in (row["homepage"], *row["download"].split(";")):
        if address and not ADDRESS.fullmatch(address):
            yield f"{address!r} is no address"
    if row["paper"] and not _PAPER.fullmatch(row["paper"]):
        yield f"paper {row['paper']!r}: doi:10.…, arXiv:… or an address"
    for column, cell in row.items():
        if _PATH.search(cell):
            yield f"{column}: holds a path of somebody's machine"


def _numbers(row: Row) -> Iterator[str]:
    for column in ("n_images", "n_subjects"):
        if row[column] and not _NUMBER.fullmatch(row[column]):
            yield f"{column} {row[column]!r} is no positive whole number"
    if bool(row["n_images"]) != bool(row["unit"]):
        yield "n_images and unit go together"
    last = datetime.date.today().year + 1
    if row["year"] and not (row["year"].isdecimal() and 1950 <= int(row["year"]) <= last):
        yield f"year {row['year']!r}: expected 1950 to {last}"


def _repeated(rows: list[tuple[int, Row]]) -> Iterator[Fault]:
    """Ids, and names that differ only in case and punctuation, that occur twice."""
    plain = {line: re.sub(r"[^a-z0-9]", "", row["name"].lower()) for line, row in rows}
    ids, names = Counter(row["id"] for _, row in rows), Counter(plain.values())
    for line, row in rows:
        if ids[row["id"]] > 1:
            yield Fault("datasets.csv", line, row["id"], "id occurs twice")
        elif plain[line] and names[plain[line]] > 1:
            yield Fault("datasets.csv", line, row["id"], f"name {row['name']!r} occurs twice")


def _overlap(row: Row, known: dict[str, Row]) -> Iterator[str]:
    for end in (row["a"], row["b"]):
        if end not in known:
            yield f"no dataset {end}"
    if row["a"] == row["b"]:
        yield "a relation to itself"
    if row["relation"] not in set(RelationKind):
        yield f"relation: unknown {row['relation']!r}; known: {', '.join(RelationKind)}"
    if not ADDRESS.fullmatch(row["evidence_url"]):
        yield f"evidence_url {row['evidence_url']!r} is no address"
    if not row["basis"].startswith(("read", "recalled")):
        yield f"basis {row['basis']!r}: begins with read or recalled"


def _contradictions(tables: Mapping[str, list[tuple[int, Row]]]) -> Iterator[Fault]:
    """Relations recorded twice, and pairs of which each holds the other."""
    seen: set[tuple[str, ...]] = set()
    inside: set[tuple[str, ...]] = set()
    for table, line, row in ((f"{name}.csv", *item) for name, rows in tables.items() for item in rows):
        pair, name = (row["a"], row["b"]), f"{row['a']}, {row['b']}"
        if pair in seen or pair[::-1] in seen:
            yield Fault(table, line, name, "the pair is related twice")
        seen.add(pair)
        part, reverse = pair, pair[::-1]
        if row["relation"] == RelationKind.CONTAINS:
            part, reverse = reverse, part
        if row["relation"] in {RelationKind.CONTAINS, RelationKind.DERIVED_FROM, RelationKind.MEMBER_OF}:
            if reverse in inside:
                yield Fault(table, line, name, "each is said to hold the other")
            inside.add(part)


def _msd(row: Row, known: dict[str, Row]) -> Iterator[str]:
    identifier = f"msd-{row['task_id']}-{row['name']}".lower()
    if not _MD5.fullmatch(row["archive_md5"]):
        yield f"archive_md5 {row['archive_md5']!r} is no MD5"
    cases = int(row["n_train"]) + int(row["n_test"])
    if identifier not in known:
        yield f"no dataset {identifier}"
    elif str(cases) != known[identifier]["n_images"]:
        yield f"{cases} cases, but datasets.csv has {known[identifier]['n_images']}"
    structures = len(row["labels"].split(";")) - 1
    for column, cell in row.items():
        if column.endswith(("_dsc", "_nsd")) and cell and len(cell.split(";")) != structures:
            yield f"{column}: {len(cell.split(';'))} scores for {structures} structures"


def _medmnist(row: Row, known: dict[str, Row]) -> Iterator[str]:
    for size in row["sizes"].split(";"):
        if not _MD5.fullmatch(row[f"md5_{size}"]):
            yield f"md5_{size} {row[f'md5_{size}']!r} is no MD5"
        if not ADDRESS.fullmatch(row[f"url_{size}"]):
            yield f"url_{size} {row[f'url_{size}']!r} is no address"
    total = sum(int(row[f"n_{split}"]) for split in ("train", "val", "test"))
    if str(total) != row["n_total"]:
        yield f"the splits add up to {total}, n_total is {row['n_total']}"
    if len(row["labels"].split(";")) != int(row["n_classes"]):
        yield f"{len(row['labels'].split(';'))} labels for {row['n_classes']} classes"
    if row["id"] not in known:
        yield f"no dataset {row['id']}"
    elif known[row["id"]]["n_images"] != row["n_total"]:
        yield f"{row['n_total']} images, but datasets.csv has {known[row['id']]['n_images']}"


def _route(row: Row, known: dict[str, Row]) -> Iterator[str]:
    if row["id"] not in known:
        yield f"no dataset {row['id']}"
    for column in ("leaderboard", "evidence_url"):
        if row[column] and not ADDRESS.fullmatch(row[column]):
            yield f"{column} {row[column]!r} is no address"
    if not row["metrics"]:
        yield "no metrics"
    if not row["basis"].startswith(("read", "recalled")):
        yield f"basis {row['basis']!r}: begins with read or recalled"
