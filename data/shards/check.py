"""Verify a folder of shards byte by byte and name what is damaged: shard, member, reason.

Every shard is read twice at disk speed: once for its SHA-256 against the manifest, once for its structure
against its index. Where the SHA-256 differs, the checksums of the index tell which members are hit, so that a
repair fetches one shard again and not the collection. The manifest is verified by the hash that it carries.
`fast` reads indices and sizes only: a second for thousands of shards, and blind to flipped bits in pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..atomic import TEMPORARY
from ..errors import ShardError
from . import index as indexing
from .damage import damaged
from .index import Index, file_sha256, index_path, read_exactly
from .manifest import MANIFEST, Manifest, ShardEntry, sealed
from .parallel import run_each

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

MEND = "run `medloom shards repair` on the folder"
MOST_NAMED = 20  # damaged members listed one by one in a shard

# Kinds of faults: what a repair needs to know of them.
MISSING, BYTES, INDEX, COUNT, TWICE, STRAY, RECORD = (
    "missing", "bytes", "index", "count", "twice", "stray", "record",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; `member` is empty when the shard as a whole, or another file, is meant.

    `kind`: missing, bytes (the tar is not as written), index (the .idx), count (against the manifest), twice
    (a key), stray (a file that does not belong), record (manifest.json and the lists).
    """

    shard: str
    member: str
    reason: str
    kind: str = BYTES

    def __str__(self) -> str:
        return f"{self.shard}{' ' + self.member if self.member else ''}: {self.reason}"


@dataclass(slots=True)
class ShardReport:
    """What one shard was found to be."""

    faults: list[Fault]
    sha256: str = ""  # of the bytes that are there; empty when they were not read
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))  # hashes of its keys


@dataclass(frozen=True, slots=True)
class Findings:
    """What a folder was found to be; `sha256` maps the shards that were read to what their bytes hash to."""

    faults: list[Fault]
    manifest: Manifest | None
    sha256: dict[str, str]


def check(
    folder: str | Path, progress: Progress | None = None, *, workers: int = 1, fast: bool = False
) -> list[Fault]:
    """Verify every shard of a folder; an empty list means that all bytes are as they were written.

    Args:
        progress: called with (bytes done, all bytes, "check | shard").
        workers: processes; the result does not depend on it.
        fast: indices, sizes and records only; the tars are not read.

    Raises:
        ShardError: the folder holds no shards at all.
    """
    return examine(folder, progress, workers=workers, fast=fast).faults


def examine(
    folder: str | Path,
    progress: Progress | None = None,
    *,
    workers: int = 1,
    fast: bool = False,
    trusted: bool = True,
) -> Findings:
    """As `check`, with what a repair needs to know besides.

    Args:
        trusted: False holds the shards against their indices, whatever the manifest says.
    """
    folder = Path(folder)
    manifest, faults = _manifest(folder)
    if not trusted:
        manifest = None
    known: list[tuple[ShardEntry, int | None]]
    if manifest is None:  # each shard against its own index
        tars = sorted(folder.glob("[!.]*.tar"))
        known = [(ShardEntry(tar.name, -1, tar.stat().st_size, ""), None) for tar in tars]
    else:
        known = [(entry, source.ndim) for source in manifest.sources for entry in source.shards]
        faults += [*_strays(folder, manifest), *_lists(folder, manifest)]
    reports = _reports(folder, known, workers, fast, progress)
    owners = {entry.sha256: entry.file for entry, _ in known if entry.sha256}
    for (entry, _), report in zip(known, reports, strict=True):
        owner = owners.get(report.sha256)
        if owner is not None and report.sha256 != entry.sha256:
            reason = f"holds the bytes of {owner} (sha256): renamed or swapped; {MEND}"
            report.faults = [Fault(entry.file, "", reason)]
        faults += report.faults
    faults += _twice(folder, [entry.file for entry, _ in known], [report.keys for report in reports])
    digests = {e.file: r.sha256 for (e, _), r in zip(known, reports, strict=True) if r.sha256}
    return Findings(faults, manifest, digests)


def _reports(
    folder: Path,
    known: Sequence[tuple[ShardEntry, int | None]],
    workers: int,
    fast: bool,
    progress: Progress | None,
) -> list[ShardReport]:
    reports = [ShardReport([]) for _ in known]
    total, done = sum(entry.bytes for entry, _ in known), 0
    for number, report in run_each(partial(check_shard, folder, fast), known, workers=workers):
        entry = known[number][0]
        if isinstance(report, ShardError):
            report = ShardReport([Fault(entry.file, "", str(report))])
        reports[number] = report
        done += entry.bytes
        if progress is not None:
            progress(done, total, f"check | {entry.file}")
    return reports


def check_shard(folder: Path, fast: bool, job: tuple[ShardEntry, int | None]) -> ShardReport:
    """Check one shard against its row of the manifest and the source's ndim.

    A row without a SHA-256, and a count of -1, stand for a lost manifest: the index alone is the judge.
    """
    entry, ndim = job
    tar = folder / entry.file
    if not tar.is_file():
        return ShardReport([Fault(entry.file, "", f"is missing; {MEND}", MISSING)])
    try:
        return _check_shard(tar, entry, ndim, fast)
    except Exception as error:  # whatever is wrong with one shard must not hide the faults of the others
        log.debug("%s", tar, exc_info=True)
        reason = f"cannot be read ({type(error).__name__}: {error}); {MEND}"
        return ShardReport([Fault(entry.file, "", reason)])


def _check_shard(tar: Path, entry: ShardEntry, ndim: int | None, fast: bool) -> ShardReport:
    faults: list[Fault] = []
    index, size = None, tar.stat().st_size
    try:
        index = indexing.load(index_path(tar))
        if index.tar_bytes != entry.bytes or entry.count not in (-1, len(index)):
            faults.append(Fault(index_path(tar).name, "", f"does not fit its tar; {MEND}", INDEX))
            index = None
    except ShardError as error:
        faults.append(Fault(index_path(tar).name, "", str(error), INDEX))
    if fast:
        if size != entry.bytes:
            faults.append(Fault(tar.name, "", f"has {size} bytes, {entry.bytes} were written; {MEND}"))
        return _counted(tar, entry, ndim, index, ShardReport(faults))
    digest = file_sha256(tar)
    if size != entry.bytes or (digest != entry.sha256 and entry.sha256):
        return ShardReport([*faults, *_hits(tar, entry, index, size)], digest)
    if not entry.sha256 and index is not None and (hits := damaged(tar, index)):
        return ShardReport([*faults, *_named(tar.name, hits)], digest)
    try:
        rebuilt = indexing.rebuild(tar, write=False)
    except ShardError as error:
        return ShardReport([*faults, Fault(entry.file, "", str(error))], digest)
    if index is not None and index_path(tar).read_bytes() != rebuilt.to_bytes():
        faults.append(Fault(index_path(tar).name, "", f"does not fit its tar; {MEND}", INDEX))
    return _counted(tar, entry, ndim, rebuilt, ShardReport(faults, digest))


def _counted(
    tar: Path, entry: ShardEntry, ndim: int | None, index: Index | None, report: ShardReport
) -> ShardReport:
    """Hold the counts of an index against the manifest."""
    if index is None:
        return report
    if entry.count not in (-1, len(index)):
        reason = f"holds {len(index)} samples, the manifest says {entry.count}; run the build again"
        report.faults.append(Fault(tar.name, "", reason, COUNT))
    if ndim is not None and np.any(index.samples["ndim"] != ndim):
        reason = f"holds samples that are not {ndim}D; run the build again"
        report.faults.append(Fault(tar.name, "", reason, COUNT))
    report.keys = np.array(index.samples["key_hash"], np.uint64)
    return report


def _hits(tar: Path, entry: ShardEntry, index: Index | None, size: int) -> list[Fault]:
    """Faults of a shard that is not as it was written: its damaged members where the index tells them."""
    hits = [] if index is None else damaged(tar, index)
    if hits:
        return _named(tar.name, hits)
    reason = f"differs from what was written (sha256), and no index tells which members; {MEND}"
    if size != entry.bytes:
        reason = f"has {size} bytes, {entry.bytes} were written; {MEND}"
    elif index is not None:
        reason = f"every member is intact, but the sha256 is not the manifest's; {MEND}"
    return [Fault(entry.file, "", reason)]


def _named(shard: str, hits: Sequence[tuple[str, str]]) -> list[Fault]:
    faults = [Fault(shard, member, reason) for member, reason in hits[:MOST_NAMED]]
    if len(hits) > MOST_NAMED:
        faults.append(Fault(shard, "", f"and {len(hits) - MOST_NAMED} more damaged members"))
    return faults


def _manifest(folder: Path) -> tuple[Manifest | None, list[Fault]]:
    """The manifest and what is wrong with it. Raises ShardError where there is none and no shard either."""
    try:
        manifest = Manifest.load(folder)
    except ShardError as error:
        if not any(folder.glob("[!.]*.tar")):
            raise
        return None, [Fault(MANIFEST, "", str(error), RECORD)]
    faults = []
    if not sealed(folder):
        reason = f"was altered after it was written (its hash differs); {MEND}"
        faults.append(Fault(MANIFEST, "", reason, RECORD))
    for source in manifest.sources:
        if source.count != sum(shard.count for shard in source.shards):
            reason = f"counts of source {source.id} do not add up; {MEND}"
            faults.append(Fault(MANIFEST, "", reason, RECORD))
    return manifest, faults


def _strays(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    known = {entry.file for entry in manifest.shards}
    known |= {Path(name).with_suffix(".idx").name for name in known}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tar", ".idx") and path.name not in known and not path.name.startswith("."):
            yield Fault(path.name, "", "is not in the manifest; run the build again, or delete it", STRAY)
        if path.name.startswith(TEMPORARY):
            yield Fault(
                path.name, "", "was left by a killed build; running the build again removes it", STRAY
            )


def _lists(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    """Lines of failures.jsonl and excluded.jsonl against the counts of the manifest."""
    excluded = sum(manifest.held_out.excluded.values())
    for name, expected in (("failures.jsonl", manifest.failures), ("excluded.jsonl", excluded)):
        if not (folder / name).is_file():
            continue
        try:
            lines = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            yield Fault(name, "", f"is damaged ({error}); run the build again", RECORD)
            continue
        if len(lines) != expected:
            reason = f"lists {len(lines)} records, the manifest counts {expected}; run the build again"
            yield Fault(name, "", reason, RECORD)


def _twice(folder: Path, files: Sequence[str], keys: Sequence[np.ndarray]) -> Iterator[Fault]:
    """Keys that occur more than once: 8 bytes a sample, sorted."""
    if not keys:
        return
    merged = np.concatenate(keys)
    shards = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
    order = np.argsort(merged, kind="stable")
    again = order[1:][merged[order[1:]] == merged[order[:-1]]]
    first = np.cumsum([0, *(len(k) for k in keys)])
    for place in sorted(again.tolist())[:MOST_NAMED]:
        shard = int(shards[place])
        key = _key(folder / files[shard], place - int(first[shard]))
        others = {files[int(shards[p])] for p in np.flatnonzero(merged == merged[place]) if p != place}
        reason = f"occurs more than once (also in {', '.join(sorted(others))}); build again"
        yield Fault(files[shard], f"{key}.json", reason, TWICE)
    if len(again) > MOST_NAMED:
        yield Fault(MANIFEST, "", f"{len(again) - MOST_NAMED} more keys occur more than once", TWICE)


def _key(tar: Path, ordinal: int) -> str:
    index = indexing.rebuild(tar, write=False)
    row = index.members_of(ordinal)[0]
    with tar.open("rb") as handle:
        data = read_exactly(handle.fileno(), row.size, row.offset)
    return str(json.loads(data)["key"])
