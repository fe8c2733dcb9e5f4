"""metrics.jsonl, the authority on what happened in a run: every tracker mirrors it, none replaces it.

Rows are JSON objects with `step` and `samples`, one row a step, appended and flushed; a resumed run first
cuts the rows beyond its checkpoint, so that no step is there twice.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ...data.atomic import write_text

METRICS = "metrics.jsonl"


class Journal:
    """metrics.jsonl of a run, open for appending."""

    def __init__(self, folder: Path, *, keep_until: int) -> None:
        """Open; rows with a step above `keep_until`, and a last row that was cut off, are removed first."""
        self.path = folder / METRICS
        rows = [row for row in read_rows(self.path) if row["step"] <= keep_until]
        write_text(self.path, "".join(_line(row) for row in rows))
        self._file: TextIO = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; numbers that are not finite become null (JSON has none)."""
        self._file.write(_line(row))
        self._file.flush()

    def sync(self) -> None:
        """Make the rows durable; a checkpoint must not be ahead of its rows."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, in order; a line that a kill cut off is left out. Missing file: no rows."""
    return rows_of(path.read_bytes().splitlines()) if path.is_file() else []


def rows_of(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The rows that `lines` of a metrics.jsonl hold; what is no row is left out."""
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def of_last_start(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the last process wrote: a resumed run begins its clock anew."""
    for index in range(len(rows) - 1, 0, -1):
        if rows[index].get("time", 0.0) < rows[index - 1].get("time", 0.0):
            return list(rows[index:])
    return list(rows)


def _line(row: dict[str, Any]) -> str:
    clean = {key: None if isinstance(value, float) and not math.isfinite(value) else value
             for key, value in row.items()}  # fmt: skip
    return json.dumps(clean, allow_nan=False) + "\n"
