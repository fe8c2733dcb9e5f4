"""Samples that cannot be read: remembered, logged once, counted against the budget of the whole run.

A worker that meets a damaged sample puts a substitute in its place and says so in the sample's `replaced`;
the main process collects these from the batches, so that the budget counts what all workers, all ranks and
all earlier starts of the run have met. With a file (`quarantine.jsonl` of the run folder) a restarted run
knows them from the start and does not read them again: the substitutes are drawn by position, so the pixels
are the same. A line holds shard, sample number, member and key, nothing else. Each line is one append under
a lock, so that ranks may share the file; a line torn by a kill is skipped. Price: whoever repairs the shards
and wants the samples back in the same run deletes the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ShardError

log = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
_KEPT = ("shard", "sample", "member", "key")  # of an entry, in the file

Entry = dict[str, Any]  # shard (file name), sample (number in it), member, key, reason


class Quarantine:
    """The unreadable samples of a run.

    Args:
        root: folder of the shards, for the message that stops the run.
        sources: shard file name -> source id.
        budget: unreadable samples of one source that a run survives.
        path: file to keep them in; None: this process remembers them.

    Raises:
        ShardError: the file already lists more than the budget allows, or cannot be read.
    """

    def __init__(
        self, root: str | Path, sources: Mapping[str, str], budget: int, path: Path | None = None
    ) -> None:
        self.root, self.budget, self.path = root, budget, path
        self._sources = sources
        self._entries: dict[tuple[str, int], Entry] = {}
        self._written: set[tuple[str, int]] = set()
        self._counts: Counter[str] = Counter()
        self._load()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, shard: str, sample: int) -> Entry | None:
        """The entry of a sample that is known to be unreadable."""
        return self._entries.get((shard, sample))

    def note(self, entry: Entry) -> bool:
        """Remember an unreadable sample in this process; False when it was known.

        Raises:
            ShardError: it is one too many of its source.
        """
        place = entry["shard"], entry["sample"]
        if place in self._entries:
            return False
        self._entries[place] = entry
        source = self._sources[entry["shard"]]
        self._counts[source] += 1
        if self._counts[source] > self.budget:
            raise ShardError(
                f"source {source}: {self._counts[source]} samples cannot be read, data.failure_budget is "
                f"{self.budget}; run `medloom shards check {self.root}`, then "
                f"`medloom shards repair {self.root}`; last: {entry['reason']}"
            )
        return True

    def collect(self, replaced: Iterable[list[Entry] | None]) -> None:
        """Take what a batch says was replaced: log it, append it to the file. Main process only.

        Raises:
            ShardError: the budget of a source is spent, or the file cannot be written.
        """
        for entry in (entry for entries in replaced for entry in entries or ()):
            place = entry["shard"], entry["sample"]
            if place not in self._entries:
                log_replaced(entry)
            if self.path is not None and place not in self._written:
                self._written.add(place)
                self._append(self.path, entry)
                self.note(entry)
                self._load()  # other ranks may have found others
            self.note(entry)

    def _append(self, path: Path, entry: Entry) -> None:
        line = json.dumps({name: entry.get(name, "") for name in _KEPT}).encode() + b"\n"
        try:
            with path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line  # a kill tore the last line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be written ({error.strerror}): free space, then resume"
            ) from error

    def _load(self) -> None:
        if self.path is None or not self.path.is_file():
            return
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                place = str(entry["shard"]), int(entry["sample"])
                if place[0] in self._sources:
                    self._written.add(place)
                    reason = f"{place[0]}: member {entry.get('member', '')}: listed in {self.path.name}"
                    self.note(entry | {"reason": reason})


def log_replaced(entry: Entry) -> None:
    """One line in the log about a sample that was replaced."""
    log.warning("sample %s replaced: %s", entry["key"] or entry["sample"], entry["reason"])
