"""Which inputs are done: a line a file in `journal.jsonl`, from which the tables are written.

A line is appended when all outputs of the file are on disk, so that a killed prediction goes on with the next
file. A line cut short by the kill is ignored and its file predicted again. File names stand in it, as they do
in the names of the outputs: the folder is the user's own and holds nothing for others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data.atomic import csv_text, sweep, write_json, write_text
from ...data.errors import ConfigError
from .inputs import Input

JOURNAL, IDENTITY, TABLE, FAILURES = "journal.jsonl", "predict.json", "predictions.csv", "failures.csv"


class Journal:
    """The state of an output folder.

    Args:
        folder: created when missing.
        identity: what the predictions depend on (weights, options); another one in the folder is refused.

    Raises:
        ConfigError: the folder holds other predictions, or something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self._lines: dict[str, dict[str, Any]] = {}
        known = folder / IDENTITY
        if known.is_file():
            if json.loads(known.read_text()) != json.loads(json.dumps(identity)):
                raise ConfigError(
                    f"{folder}: holds predictions of another run or with other options: choose another --out"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: is not empty and holds no predictions: choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if not known.is_file():
            write_json(known, identity)
        self._read()

    def _read(self) -> None:
        path = self.folder / JOURNAL
        if not path.is_file():
            return
        whole = []
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            self._lines[entry["file"]] = entry
            whole.append(line)
        write_text(path, "".join(f"{line}\n" for line in whole))

    def done(self, item: Input) -> bool:
        """Whether the file was predicted as it is now; failures are tried again."""
        entry = self._lines.get(item.name)
        if entry is None or entry["failure"] is not None or item.fault:
            return False
        try:
            return entry["stamp"] == item.stamp
        except OSError:
            return False

    def add(self, item: Input, rows: Sequence[Mapping[str, Any]], failure: str | None = None) -> None:
        """Note what came of a file."""
        try:
            stamp = item.stamp
        except OSError:
            stamp = []
        entry = {"file": item.name, "stamp": stamp, "rows": list(rows), "failure": failure}
        self._lines[item.name] = entry
        with (self.folder / JOURNAL).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def write_tables(self, wanted: Sequence[Input]) -> tuple[int, int]:
        """Write predictions.csv and failures.csv of these inputs; returns how many files are in each."""
        entries = [self._lines[item.name] for item in wanted if item.name in self._lines]
        rows = [row for entry in entries for row in entry["rows"]]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        write_text(self.folder / TABLE, csv_text(rows, columns))
        failed = [{"file": e["file"], "reason": e["failure"]} for e in entries if e["failure"] is not None]
        if failed:
            write_text(self.folder / FAILURES, csv_text(failed, ["file", "reason"]))
        else:
            (self.folder / FAILURES).unlink(missing_ok=True)
        return len(entries) - len(failed), len(failed)
