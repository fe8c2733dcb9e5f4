"""Verify a folder of shards byte by byte and name what is damaged: shard, member, reason.

Every shard is read twice at disk speed: once for its SHA-256 against the manifest, once for its structure
against its index. Where the SHA-256 differs, the checksums of the index tell which members are hit, so that a
repair fetches one shard again and not the collection.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import TEMPORARY
from ..errors import ShardError
from . import index as indexing
from .format import checksum
from .index import Index
from .manifest import Manifest, ShardEntry, SourceEntry

MEND = "delete it and run the build again, or copy it again"
MOST_NAMED = 20  # damaged members listed one by one in a shard


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; `member` is empty when the shard as a whole, or another file, is meant."""

    shard: str
    member: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}{' ' + self.member if self.member else ''}: {self.reason}"


def check(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> list[Fault]:
    """Verify every shard of a folder; an empty list means that all bytes are as they were written.

    Args:
        progress: called with (bytes done, all bytes, shard).

    Raises:
        ShardError: there is no readable manifest.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    faults = list(_strays(folder, manifest))
    total, done = sum(shard.bytes for shard in manifest.shards), 0
    keys: Counter[int] = Counter()
    for source in manifest.sources:
        if source.count != sum(shard.count for shard in source.shards):
            faults.append(Fault("manifest.json", "", f"counts of source {source.id} do not add up"))
        for entry in source.shards:
            if progress is not None:
                progress(done, total, f"check | {entry.file}")
            faults += _check_shard(folder / entry.file, entry, source, keys)
            done += entry.bytes
    twice = sum(1 for count in keys.values() if count > 1)
    if twice:
        faults.append(Fault("manifest.json", "", f"{twice} keys occur more than once; build again"))
    if progress is not None:
        progress(total, total, "check | ")
    return faults


def _strays(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    known = {entry.file for entry in manifest.shards}
    known |= {Path(name).with_suffix(".idx").name for name in known}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in known and not path.name.startswith("."):
            yield Fault(path.name, "", "is not in the manifest; run the build again, or delete it")
        if path.name.startswith(TEMPORARY):
            yield Fault(path.name, "", "was left by a killed build; running the build again removes it")
    lists = folder / "failures.jsonl"
    if lists.is_file():
        lines = sum(1 for line in lists.read_text(encoding="utf-8").splitlines() if line)
        if lines != manifest.failures:
            yield Fault(lists.name, "", f"lists {lines} failures, the manifest counts {manifest.failures}")


def _check_shard(tar: Path, entry: ShardEntry, source: SourceEntry, keys: Counter[int]) -> list[Fault]:
    """Faults of one shard; adds the key hashes of its samples to `keys`."""
    if not tar.is_file():
        return [Fault(entry.file, "", "is missing; run the build again, or copy it again")]
    faults: list[Fault] = []
    index = None
    try:
        index = indexing.load(indexing.index_path(tar))
    except ShardError as error:
        faults.append(Fault(indexing.index_path(tar).name, "", str(error)))
    size = tar.stat().st_size
    sound = size == entry.bytes and indexing.file_sha256(tar) == entry.sha256
    if not sound:
        reason = f"differs from what was written (sha256); {MEND}"
        if size != entry.bytes:
            reason = f"has {size} bytes, {entry.bytes} were written; {MEND}"
        hits = [] if index is None else list(_damaged(tar, index))
        faults += hits[:MOST_NAMED] or [Fault(entry.file, "", reason)]
        if len(hits) > MOST_NAMED:
            faults.append(Fault(entry.file, "", f"and {len(hits) - MOST_NAMED} more damaged members"))
        return faults
    try:
        rebuilt = indexing.rebuild(tar, write=False)
    except ShardError as error:
        return [*faults, Fault(entry.file, "", str(error))]
    if index is not None and rebuilt.to_bytes() != index.to_bytes():
        faults.append(
            Fault(indexing.index_path(tar).name, "", "does not fit its tar; delete it, it is rebuilt")
        )
    if len(rebuilt) != entry.count:
        reason = f"holds {len(rebuilt)} samples, the manifest says {entry.count}; run the build again"
        faults.append(Fault(entry.file, "", reason))
    if np.any(rebuilt.samples["ndim"] != source.ndim):
        faults.append(
            Fault(entry.file, "", f"holds samples that are not {source.ndim}D; run the build again")
        )
    keys.update(int(value) for value in rebuilt.samples["key_hash"])
    return faults


def _damaged(tar: Path, index: Index) -> Iterator[Fault]:
    """Members whose header or bytes are not what the index recorded, in the order of the tar."""
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        for row in index.members:
            name, problem = _header(descriptor, row)
            data = os.pread(descriptor, int(row["size"]), int(row["offset"]))
            if len(data) < int(row["size"]):
                yield Fault(tar.name, name, f"is cut short after {len(data)} of {int(row['size'])} bytes")
            elif checksum(data) != int(row["crc"]):
                yield Fault(tar.name, name, "fails its checksum")
            elif problem:
                yield Fault(tar.name, name, problem)
    finally:
        os.close(descriptor)


def _header(descriptor: int, row: Any) -> tuple[str, str]:
    """Name of a member from its tar header, and what is wrong with the header."""
    header = os.pread(descriptor, tarfile.BLOCKSIZE, int(row["offset"]) - tarfile.BLOCKSIZE)
    where = f"member at byte {int(row['offset'])} (sample {int(row['sample'])})"
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        return where, "has a damaged tar header"
    return info.name, "" if info.size == int(row["size"]) else "has another size in its tar header"
