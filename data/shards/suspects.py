"""Check just the samples that a training run put into quarantine: seconds where the folder takes hours.

A sample is read in full: tar header and checksum of each member, then everything is decoded, since a run can
also stop at bytes that are as they were written and yet cannot be decoded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ShardError
from . import index as indexing
from .check import MEND, MISSING, Fault, Progress
from .damage import Names, inspect
from .reader import SampleRef, Shards


@dataclass(frozen=True, slots=True, order=True)
class Suspect:
    """One sample of a quarantine list: shard file, number in it (-1: unknown), key."""

    shard: str
    sample: int
    key: str


def listed(path: str | Path) -> list[Suspect]:
    """The samples that `quarantine.jsonl` of a run lists, each once, by shard. A torn line is left out.

    Raises:
        ShardError: the file cannot be read, or not one of its lines names a sample.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read ({error.strerror}); name quarantine.jsonl of a run"
        ) from error
    found = set()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(line)
            key = str(row.get("key") or row.get("member") or "").partition(".")[0]
            number = row.get("sample")
            if number is not None or key:
                found.add(Suspect(str(row["shard"]), -1 if number is None else int(number), key))
    if lines and not found:
        raise ShardError(f"{path}: no line names shard and sample; name quarantine.jsonl of a run")
    return sorted(found)


def check_samples(
    folder: str | Path, suspects: Sequence[Suspect], progress: Progress | None = None
) -> list[Fault]:
    """Read these samples in full; an empty list means that all can be read now.

    Args:
        progress: called with (samples done, all, "check | shard").

    Raises:
        ShardError: the folder is no finished folder of shards.
    """
    shards = Shards.open(folder)
    entries = {entry.file: number for number, entry in enumerate(shards.manifest.shards)}
    faults: list[Fault] = []
    done = 0
    for shard, group in itertools.groupby(suspects, lambda suspect: suspect.shard):
        samples = list(group)
        if shard in entries:
            faults += _faults(shards, entries[shard], samples)
        else:
            reason = f"is not in the manifest of {folder}; the list belongs to other shards"
            faults += [Fault(shard, suspect.key, reason, MISSING) for suspect in samples]
        done += len(samples)
        if progress is not None:
            progress(done, len(suspects), f"check | {shard}")
    return faults


def _faults(shards: Shards, number: int, suspects: Sequence[Suspect]) -> Iterator[Fault]:
    """Faults of samples of one shard."""
    tar = Path(shards.root) / suspects[0].shard
    try:
        index = indexing.load(indexing.index_path(tar))
        descriptor = os.open(tar, os.O_RDONLY)
    except (ShardError, OSError) as error:
        yield Fault(tar.name, "", str(error))
        return
    try:
        names = Names(descriptor, index)
        for suspect in suspects:
            try:
                ref = SampleRef(number, suspect.sample) if suspect.sample >= 0 else shards.find(suspect.key)
                hits = [(name, reason) for row in index.members_of(ref.ordinal)
                        if (reason := inspect(descriptor, row, name := names.of(row)))]  # fmt: skip
                yield from (Fault(tar.name, name, f"{reason}; {MEND}") for name, reason in hits)
                if not hits:
                    shards.sample(ref)
            except (ShardError, IndexError) as error:
                yield Fault(tar.name, getattr(error, "member", "") or suspect.key, str(error))
    finally:
        os.close(descriptor)
