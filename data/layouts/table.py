"""A table with a row per image: CSV, TSV or Parquet, columns named in the options.

`path` and `mask` name a column of relative paths, or are a template over columns (`images/{image_id}.jpg`).
What file names encode becomes columns through `path_pattern`, whose named groups are added to the row.
`words` translates a table's words into the vocabulary, by role: `{modality: {MRI-FLAIR: mri}, split: {"0":
train}, label: {"1": pneumonia}}`.

A row that cannot be used (file missing, unknown word) is refused alone; a column that does not exist stops
the scan. Only the
columns that the options name are kept in memory, about 0.5 kB a row.
"""

from __future__ import annotations

import csv
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CollectionError, ConfigError, nearest
from ..sample import Given, Record, parse_modality, parse_organ
from .annotators import one_record_each
from .base import Progress, Refusal, Source, as_it_is, compiled, counted, parse_split, readable

_TEMPLATE = re.compile(r"\{([^{}]+)\}")
_INTEGER = re.compile(r"[+-]?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # "007" is a code
_KEYS = (
    "path",
    "mask",
    "axes",
    "label",
    "subject",
    "study",
    "split",
    "modality",
    "organ",
    "annotator",
)  # name one column each
_ROLES = ("modality", "organ", "split", "label")


@dataclass
class Options:
    """Keys of `options` in a source of layout table; values name columns unless said otherwise."""

    file: str = "manifest.csv"  # the table, relative to the source's root: .csv, .tsv or .parquet
    path: str = "path"  # column or template; paths are relative to the source's root
    path_pattern: str | None = None  # regex on the path; its named groups become columns
    mask: str | None = None  # column or template; an empty cell means no mask
    axes: str | None = None  # column: axes of .npy and .b2nd files, e.g. CDHW; empty: from the shape
    label: str | None = None  # becomes labels["class"]
    labels: list[str] = field(default_factory=list)  # further columns, kept under their own names
    values: dict[str, str] = field(default_factory=dict)  # further columns, {column: name}
    subject: str | None = None  # default: every image is its own subject
    study: str | None = None
    split: str | None = None
    modality: str | None = None
    organ: str | None = None
    annotator: str | None = None  # column: rows of one image by several annotators become its readings
    words: dict[str, Any] = field(default_factory=dict)  # {role: {the table's word: ours}}

    def __post_init__(self) -> None:
        for role, mapping in self.words.items():
            if role not in _ROLES:
                raise ConfigError(f"words: unknown role {role!r}{nearest(role, _ROLES)}")
            if not isinstance(mapping, Mapping):
                raise ConfigError(f"words.{role}: expected {{table's word: our word}}, found {mapping!r}")
            if getattr(self, role) is None:
                raise ConfigError(f"words.{role}: translates nothing; name the column in `{role}` too")
            self.words[role] = {str(word): str(ours) for word, ours in mapping.items()}
        if self.path_pattern and not compiled(self.path_pattern, "path_pattern").groupindex:
            raise ConfigError(f"path_pattern: {self.path_pattern!r} has no named group; write (?P<name>...)")


describe = as_it_is  # a table speaks of rows only


def scan(
    root: Path, source: Source, options: Options, progress: Progress | None = None
) -> Iterator[Record | Refusal]:
    """Yield a Record per row of the table, in its order.

    Raises:
        CollectionError: the table is missing, empty or broken, or has not the columns that the options name.
    """
    table = root / options.file
    columns, rows = read_table(table, _needed(options))
    _check_columns(table, columns, options)
    items = ((_item(root, source, options, row), row) for row in counted(rows, source.dataset, progress))
    if options.annotator is None:
        yield from (item for item, _ in items)
    else:
        yield from one_record_each((item, _text(row, options.annotator)) for item, row in items)


def _item(root: Path, source: Source, options: Options, row: dict[str, Any]) -> Record | Refusal:
    name, path = "", root
    try:
        text = _fill(options.path, row)
        if not text:
            raise CollectionError(f"row {row['']}: no path ({options.path} is empty)")
        path = root / text
        name = posixpath.normpath(source.relative(path) if text.startswith("/") else text)
        row = row | _from_path(options, text)
        mask_text = _fill(options.mask, row) if options.mask else ""
        mask = root / mask_text if mask_text else None
        if why := readable(path):
            raise CollectionError(why)
        if mask and (why := readable(mask)):
            raise CollectionError(f"mask {mask_text}: {why}")
        modality = _word(options, row, "modality")
        organ = _word(options, row, "organ")
        split = _word(options, row, "split")
        subject = _text(row, options.subject) if options.subject else name
        if not subject:
            raise CollectionError(f"no subject (column {options.subject} is empty)")
        return Record(
            dataset=source.dataset,
            name=name,
            subject=subject,
            paths=(path,),
            modality=parse_modality(modality) if modality else source.modality,
            organ=parse_organ(organ) if organ else source.organ,
            licence=source.licence,
            study=_text(row, options.study) or None,
            split=parse_split(split) if split else None,
            labels=_labels(options, row),
            mask=mask,
            given=Given(axes=axes) if (axes := _text(row, options.axes)) else None,
        )
    except CollectionError as error:
        return Refusal(name or f"{options.file}:{row['']}", path, str(error))


def _labels(options: Options, row: Mapping[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if label := _word(options, row, "label"):
        labels["class"] = label
    for column, name in {**{column: column for column in options.labels}, **options.values}.items():
        if (value := plain_value(row.get(column))) is not None:
            labels[name] = value
    return labels


def _word(options: Options, row: Mapping[str, Any], role: str) -> str:
    """The row's word for a role, translated by `words`; empty when there is none."""
    text = _text(row, getattr(options, role))
    return options.words.get(role, {}).get(text, text)


def _text(row: Mapping[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # Parquet columns with gaps turn 1 into 1.0
        value = int(value)
    return str(value).strip()


def plain_value(value: Any) -> Any:
    """A JSON value: numbers as numbers, None for an empty cell, text for what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    text = str(value).strip()
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return text or None


def _fill(text: str, row: Mapping[str, Any]) -> str:
    """The cell of column `text`, or the template `text` filled; empty when any cell it needs is empty."""
    holes = _TEMPLATE.findall(text)
    if not holes:
        return _text(row, text).replace("\\", "/")  # tables from Windows
    cells = {hole: _text(row, hole) for hole in holes}
    if not all(cells.values()):
        return ""
    return _TEMPLATE.sub(lambda hole: cells[hole.group(1)], text)


def _from_path(options: Options, text: str) -> dict[str, str]:
    if not options.path_pattern:
        return {}
    found = re.search(options.path_pattern, text)
    if found is None:
        raise CollectionError(f"options.path_pattern {options.path_pattern!r} does not match {text!r}")
    return {group: value or "" for group, value in found.groupdict().items()}


def _check_columns(table: Path, columns: list[str], options: Options) -> None:
    groups = set(re.compile(options.path_pattern).groupindex) if options.path_pattern else set()
    clash = groups & set(columns)
    if clash:
        raise CollectionError(f"{table}: options.path_pattern names {sorted(clash)[0]!r}, which is a column")
    for key in _KEYS:
        text = getattr(options, key)
        known = set(columns) if key == "path" else {*columns, *groups}
        for column in (_TEMPLATE.findall(text) or [text]) if text else []:
            if column not in known:
                raise CollectionError(
                    f"{table}: no column {column!r} (options.{key}){nearest(column, known)}"
                )
    for key, wanted in (("labels", options.labels), ("values", list(options.values))):
        for column in wanted:
            if column not in {*columns, *groups}:
                hint = nearest(column, set(columns))
                raise CollectionError(f"{table}: no column {column!r} (options.{key}){hint}")


def _needed(options: Options) -> set[str]:
    """Columns that the options name, whether or not the table has them."""
    single = (getattr(options, key) for key in _KEYS)
    named = (column for text in single if text for column in (_TEMPLATE.findall(text) or [text]))
    return {*named, *options.labels, *options.values}


def read_table(table: Path, needed: set[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """All column names, and rows of the needed columns, each with its place in the table under the key ""."""
    if not table.is_file():
        beside = {entry.name for entry in table.parent.glob("*.*")} if table.parent.is_dir() else set()
        hint = nearest(table.name, beside) if beside else ""
        raise CollectionError(f"{table}: no such table (options.file){hint}")
    suffix = table.suffix.lower()
    if suffix == ".parquet":
        columns, rows = _read_parquet(table, needed)
    elif suffix in (".csv", ".tsv"):
        columns, rows = _read_text(table, "\t" if suffix == ".tsv" else ",", needed)
    else:
        raise CollectionError(f"{table}: unknown kind of table {suffix!r}; use .csv, .tsv or .parquet")
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise CollectionError(f"{table}: column {twice[0]!r} appears twice; rename one")
    if not rows:
        raise CollectionError(f"{table}: has no rows")
    return columns, rows


def _read_text(table: Path, delimiter: str, needed: set[str]) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            rows: list[dict[str, Any]] = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                line = reader.line_num
                if len(cells) != len(columns):
                    raise CollectionError(
                        f"{table} line {line}: {len(cells)} cells for {len(columns)} columns; mend the line"
                    )
                pairs = zip(columns, cells, strict=True)
                rows.append({"": line, **{column: cell for column, cell in pairs if column in needed}})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CollectionError(f"{table}: cannot be read as UTF-8 text with cells: {error}") from error
    return columns, rows


def _read_parquet(table: Path, needed: set[str]) -> tuple[list[str], list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = pyarrow.parquet.read_schema(table).names
        loaded = pyarrow.parquet.read_table(table, columns=[name for name in columns if name in needed])
    except (OSError, pyarrow.ArrowException) as error:
        raise CollectionError(f"{table}: cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return columns, [{"": number, **row} for number, row in enumerate(loaded.to_pylist(), 1)]
