"""Keep what is intact of a damaged shard: a new shard of the samples whose every member passes its checksum.

The damaged tar is set aside first, under the SHA-256 that it should have, and read from there, so a salvage
that is killed is done again with the same result. What is lost is listed sample by sample in `dropped.jsonl`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import replacing, write_text
from ..errors import ShardError
from . import index as indexing
from .damage import Names, inspect
from .format import Member, split_name
from .index import Index, index_path, read_exactly
from .manifest import ShardEntry
from .writer import ShardWriter, explain_os_errors

ASIDE = "set-aside"  # folder for what was replaced and cannot be had again
DROPPED = "dropped.jsonl"


@dataclass(slots=True)
class Salvaged:
    """What is left of a shard (None: nothing), and what was lost: shard, sample, key, reason each."""

    entry: ShardEntry | None
    lost: list[dict[str, Any]] = field(default_factory=list)


def salvage(folder: Path, entry: ShardEntry) -> Salvaged:
    """Replace a damaged shard by its intact samples, or take it away when there are none.

    Raises:
        ShardError: the disk is full or cannot be written.
    """
    tar = _aside(folder, entry)
    index = _index(tar, entry)
    if index is None:
        reason = "the shard is missing" if tar is None else "the shard is damaged and has no index"
        for path in (folder / entry.file, index_path(folder / entry.file)):
            path.unlink(missing_ok=True)
        lost = [{"shard": entry.file, "sample": n, "key": "", "reason": reason} for n in range(entry.count)]
        return Salvaged(None, lost)
    assert tar is not None
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return _written(folder / entry.file, descriptor, index)
    finally:
        os.close(descriptor)


def _written(target: Path, descriptor: int, index: Index) -> Salvaged:
    names, lost, kept = Names(descriptor, index), [], []
    for ordinal in range(len(index)):
        rows = index.members_of(ordinal)
        reasons = [f"{names.of(row)}: {r}" for row in rows if (r := inspect(descriptor, row, names.of(row)))]
        if reasons:
            key = names.of(rows[0]).removesuffix(".json") if ".json" in names.of(rows[0]) else ""
            lost.append({"shard": target.name, "sample": ordinal, "key": key, "reason": "; ".join(reasons)})
        else:
            kept.append(rows)
    if not kept:
        target.unlink(missing_ok=True)
        index_path(target).unlink(missing_ok=True)
        return Salvaged(None, lost)
    with ShardWriter(target) as writer:
        for rows in kept:
            members = []
            for row in rows:
                _, kind, level = split_name(names.of(row))
                data = read_exactly(descriptor, row.size, row.offset)
                members.append(Member(names.of(row), kind, level, data))
            writer.put(members)
    return Salvaged(writer.entry, lost)


def record(folder: Path, lost: list[dict[str, Any]]) -> None:
    """Add what was lost to `dropped.jsonl`; a line that is there already is not repeated."""
    path = folder / DROPPED
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines += [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in lost]
    write_text(path, "".join(f"{line}\n" for line in dict.fromkeys(lines)))


def set_aside(folder: Path, path: Path, name: str) -> Path:
    """Move a file out of the way, into the sub-folder for such things."""
    (folder / ASIDE).mkdir(exist_ok=True)
    target = folder / ASIDE / name
    path.replace(target)
    return target


def _aside(folder: Path, entry: ShardEntry) -> Path | None:
    """The damaged tar, with its index, where a salvage may read it again and again."""
    there, aside = folder / entry.file, folder / ASIDE / f"{entry.sha256[:16]}-{entry.file}"
    if aside.is_file():
        return aside
    if not there.is_file():
        return None
    with explain_os_errors(aside, there.stat().st_size):
        aside.parent.mkdir(exist_ok=True)
        for path, target in ((index_path(there), index_path(aside)), (there, aside)):  # the tar last
            if path.is_file():
                with replacing(target) as temporary:
                    try:
                        os.link(path, temporary)
                    except OSError:  # a file system without links
                        shutil.copyfile(path, temporary)
    return aside


def _index(tar: Path | None, entry: ShardEntry) -> Index | None:
    if tar is None:
        return None
    try:
        index = indexing.load(index_path(tar))
    except ShardError:
        return None
    return index if (index.tar_bytes, len(index)) == (entry.bytes, entry.count) else None
