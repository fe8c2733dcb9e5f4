"""Names of the values of a label map, from the files in which tools keep them.

`mask_names` of a source names such a file; `mask_classes` in the collection adds to it and wins. Background
(0) has no name. Read are ITK-SNAP's label descriptions and 3D Slicer's or FreeSurfer's colour tables (.txt,
.ctbl, .lut, .label), BIDS's dseg.tsv and other tables with a column of values and one of names, and JSON in
either direction (`{"1": "liver"}`, nnU-Net's `{"labels": {"liver": 1}}`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CollectionError

_VALUE_COLUMNS = ("index", "value", "id", "labelid", "label_id", "mapping")
_NAME_COLUMNS = ("name", "label", "labelname", "label_name", "structure", "class", "abbreviation")
_ITK_SNAP = re.compile(r'\s*(\d+)(?:\s+[\d.]+){6}\s+"(.*)"\s*')  # value r g b alpha visible mesh "name"
_COLOURS = re.compile(r"\s*(\d+)\s+(\S.*?)(?:\s+\d+){3,4}\s*")  # value name r g b [a]


def read_names(path: Path) -> dict[int, str]:
    """Value -> name, without background.

    Raises:
        CollectionError: missing, of no known form, or a value or a name twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            pairs = list(_from_json(json.loads(text)))
        elif path.suffix.lower() in (".tsv", ".csv"):
            pairs = list(_from_table(text, "\t" if path.suffix.lower() == ".tsv" else ","))
        else:
            pairs = list(_from_lines(text))
    except OSError as error:
        raise CollectionError(f"{path}: cannot be read ({error.strerror}); see mask_names") from error
    except (ValueError, KeyError, csv.Error) as error:
        raise CollectionError(
            f"{path}: no table of label names ({error}); see docs/annotations.md"
        ) from error
    pairs = [(value, name) for value, name in pairs if value]
    if not pairs:
        raise CollectionError(f"{path}: names no value above 0; see docs/annotations.md for the forms")
    for what, column in (("value", 0), ("name", 1)):
        seen = [pair[column] for pair in pairs]
        twice = next((one for one in seen if seen.count(one) > 1), None)
        if twice is not None:
            raise CollectionError(f"{path}: {what} {twice!r} stands there twice; keep one")
    return dict(sorted(pairs))


def _from_json(data: Any) -> Iterable[tuple[int, str]]:
    data = data.get("labels", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise ValueError("expected an object {value: name}")
    for key, value in data.items():
        if isinstance(value, str):
            yield int(key), value
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value, str(key)
        else:
            raise ValueError(f"expected a name or a number for {key!r}, found {value!r}")


def _from_table(text: str, delimiter: str) -> Iterable[tuple[int, str]]:
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    columns = {str(name).strip().lower(): name for name in (rows[0] if rows else {})}
    value = next((columns[name] for name in _VALUE_COLUMNS if name in columns), None)
    name = next((columns[name] for name in _NAME_COLUMNS if name in columns), None)
    if value is None or name is None:
        raise ValueError(f"expected columns index and name, found {', '.join(columns) or 'none'}")
    for row in rows:
        yield int(row[value]), str(row[name]).strip()


def _from_lines(text: str) -> Iterable[tuple[int, str]]:
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _ITK_SNAP.fullmatch(line) or _COLOURS.fullmatch(line)
        if found is None:
            raise ValueError(f"line {line.strip()[:60]!r} is no value with name and colour")
        yield int(found[1]), found[2].strip()
