"""Collection -> folder of shards: parallel by processes, resumable by receipts, equal bytes whatever happens.

    OUT/manifest.json                what there is; written last
    OUT/DATASET-2d-00000.tar, .idx   shards and their indices
    OUT/failures.jsonl               images that could not be used: key, dataset, reason
    OUT/excluded.jsonl               images kept out on purpose: key, dataset, reason
    OUT/build.json, OUT/units/       what makes the build resumable

Nothing in the folder or the log names a person or a file: failures carry salted keys. The readable path is in
`BuildResult`, which looks it up again from the collection; the command prints it.

Held-out images are kept out three ways: by rule (dataset, split), by subject inside the dataset, and by the
hash of the decoded pixels against every held-out image, whatever dataset a copy hides in. The price: held-out
images are decoded once. Copies that were scaled or compressed again are not found this way, but by a
curation (curate/), whose decisions a build follows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic import sweep, write_text
from ..collection import Collection, Exclusion, Failure, HeldOut, Scan, scan
from ..curate.curation import Curation
from ..errors import ShardError
from ..layouts.base import Source
from ..privacy import key_of, subject_key
from ..sample import Record
from ..shards.manifest import MANIFEST, Manifest, SourceEntry
from ..shards.manifest import HeldOut as HeldOutEntry
from ..shards.writer import explain_os_errors
from .claim import claimed, identity_of
from .ingest import scrub, words_of
from .pool import run_all
from .summary import source_entry
from .units import UNITS, HeldOutSets, Receipt, Unit, finished, plan

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
RunAll = Callable[..., Iterator[Receipt]]

FAILURES = "failures.jsonl"
EXCLUDED = "excluded.jsonl"
SHARD_BYTES = 256 << 20

HELD_OUT = "held-out."  # prefix of the units that are only hashed

BY_COLLECTION = "excluded by the collection"
BY_RULE = "held out by rule"

_QUOTED = re.compile(r"(?<!\w)(?:'[^']*'|\"[^\"]*\")(?!\w)")
_OURS = re.compile(r".+-[23]d-\d{5}\.(tar|idx)")


@dataclass(slots=True)
class BuildResult:
    """What a build made, with readable paths for the local user (they are not in the folder)."""

    manifest: Manifest
    failures: list[Failure]
    excluded: list[Exclusion]


def build(
    collection: Collection,
    out: Path,
    *,
    workers: int = 0,
    ray: str | None = None,
    memory: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    profile: str = "small",
    curation: Path | None = None,
    progress: Progress | None = None,
    keep_held_out: bool = False,
) -> BuildResult:
    """Build, or finish building, the shards of a collection in the folder `out`.

    The result depends neither on `workers` nor on `ray` nor on `memory`.

    Args:
        workers: processes; 0 works in this one, where a decoder that crashes ends the build.
        ray: address of a Ray cluster that does the units instead, or "local" (see ray_pool.py).
        memory: bytes that the workers may use together (on Ray: on each node); None: no bound.
        shard_bytes: source bytes that go into one shard.
        profile: "small" or "fast" to decode, see shards/codec.py.
        curation: curation.json, whose decisions are followed; images that it does not know, or that have
            changed since, are refused.
        progress: called with (records done, all records, "stage | detail").
        keep_held_out: True stores held-out images too (shards of a task, never for pretraining).

    Raises:
        ShardError: `out` holds something else, another build works in it, or the disk is full or unwritable.
        CollectionError: the collection cannot be used as a whole.
        ConfigError: the curation cannot be read, or is another collection's.
    """
    out = Path(out)
    curated = Curation.load(curation, collection.name, collection.salt) if curation else None
    identity = identity_of(collection, shard_bytes, profile, keep_held_out, curated)
    found = scan(collection, progress)
    with claimed(out, identity), executor(out, workers=workers, ray=ray, memory=memory) as run_all:
        return _build(collection, found, out, identity, run_all, progress, curated)


@contextlib.contextmanager
def executor(out: Path, *, workers: int, ray: str | None, memory: int | None) -> Iterator[RunAll]:
    """Yield what does units: this process, worker processes, or the nodes of a Ray cluster."""
    if ray is None:
        yield partial(run_all, workers=workers, memory=memory)
        return
    from .ray_pool import RayPool

    with RayPool(ray, out, workers=workers, memory=memory) as pool:
        yield pool.run_all


def held_out_sets(found: Scan, hashing: list[tuple[Unit, Receipt]], salt: bytes) -> HeldOutSets:
    """What the stored units must keep out, once all held-out images are hashed."""
    subjects = ((r.dataset, subject_key(salt, r.dataset, r.subject)) for _, r in found.held_out)
    contents = (value for _, receipt in hashing for value in receipt.hashes)
    return HeldOutSets(frozenset(subjects), frozenset(contents))


def _build(
    collection: Collection,
    found: Scan,
    out: Path,
    identity: dict[str, Any],
    run_all: RunAll,
    progress: Progress | None,
    curated: Curation | None,
) -> BuildResult:
    salt, keep = collection.salt, identity["keep_held_out"]
    how = {"shard_bytes": identity["shard_bytes"], "profile": identity["profile"]}
    held = HeldOutSets()
    hashing: list[tuple[Unit, Receipt]] = []
    if not keep and found.held_out:
        units = plan(found.held_out, salt=salt, prefix=HELD_OUT, **how)
        hashing = _run(units, out, salt, held, run_all, progress)
        held = held_out_sets(found, hashing, salt)
    pairs = in_order(collection, found) if keep else found.records
    units = with_decisions(plan(pairs, salt=salt, extra=held.digest, **how), curated, salt)
    receipts = _run(units, out, salt, held, run_all, progress)
    failures, excluded = _failures(found, receipts, salt), _excluded(found, receipts, salt, keep)
    manifest = Manifest(
        name=collection.name,
        sources=tuple(_sources(collection, receipts)),
        build=how | {"keep_held_out": keep, "curation": identity["curation"]},
        salt_fingerprint=identity["salt_fingerprint"],
        held_out=_held_out(collection.held_out, hashing, excluded, keep),
        failures=len(failures),
    )
    if not manifest.count:
        first = f"; the first: {failures[0].path}: {failures[0].reason}" if failures else ""
        raise ShardError(f"{out}: not one image of collection {collection.name} could be stored{first}")
    scanned = {row.key for row in found.failures}
    _finish(out, manifest, failures, scanned, excluded, [*hashing, *receipts])
    return BuildResult(manifest, failures, excluded)


def _run(
    units: list[Unit],
    out: Path,
    salt: bytes,
    held: HeldOutSets,
    run_all: RunAll,
    progress: Progress | None,
) -> list[tuple[Unit, Receipt]]:
    """Receipts of all units, in their order; only those without a valid receipt are worked on."""
    receipts = {unit.name: finished(out, unit) for unit in units}
    todo = [unit for unit in units if receipts[unit.name] is None]
    if todo and (out / MANIFEST).exists():
        log.warning("%s: %d of %d units changed since the last build", out, len(todo), len(units))
        (out / MANIFEST).unlink()  # until the build is finished again, the folder is not for reading
    stage = "hash held-out images" if units and units[0].name.startswith(HELD_OUT) else "store images"
    for receipt in work_through(units, todo, stage, out, salt, held, run_all, progress):
        receipts[receipt.unit] = receipt
    return [(unit, receipt) for unit in units if (receipt := receipts[unit.name]) is not None]


def work_through(
    units: list[Unit],
    todo: list[Unit],
    stage: str,
    out: Path,
    salt: bytes,
    held: HeldOutSets,
    run_all: RunAll,
    progress: Progress | None,
) -> Iterator[Receipt]:
    """Yield the receipts of the units `todo` as they are done; `progress` counts records of all `units`."""
    total = sum(len(unit.records) for unit in units)
    done = total - sum(len(unit.records) for unit in todo)

    def tell(records: int, name: str) -> None:
        if progress is not None:
            progress(done + records, total, f"{stage} | {name}")

    tell(0, "")
    yield from run_all(todo, out, salt, held, tell=tell)


def with_decisions(units: list[Unit], curated: Curation | None, salt: bytes) -> list[Unit]:
    """Units that carry the curation's decisions about their records."""
    if curated is None:
        return units
    return [
        replace(unit, curated=curated.of(key_of(salt, r.dataset, r.name) for r in unit.records))
        for unit in units
    ]


def in_order(collection: Collection, found: Scan) -> list[tuple[Source, Record]]:
    """All records, held-out ones too, by source in the collection's order, then by name."""
    rank = {source.dataset: number for number, source in enumerate(collection.sources)}
    pairs = [*found.records, *found.held_out]
    return sorted(pairs, key=lambda pair: (rank[pair[0].dataset], pair[1].name))


def _failures(found: Scan, receipts: list[tuple[Unit, Receipt]], salt: bytes) -> list[Failure]:
    rows = list(found.failures)
    for unit, receipt in receipts:
        paths = _paths(unit, salt) if receipt.failures else {}
        rows += [Failure(unit.source.dataset, key, paths[key], why) for key, why in receipt.failures]
    return sorted(rows, key=lambda row: (row.dataset, row.key))


def _excluded(found: Scan, receipts: list[tuple[Unit, Receipt]], salt: bytes, keep: bool) -> list[Exclusion]:
    rows = [Exclusion(row.dataset, row.key, row.path, BY_COLLECTION) for row in found.excluded]
    if not keep:
        for source, record in found.held_out:
            path = source.relative(record.paths[0])
            rows.append(Exclusion(record.dataset, key_of(salt, record.dataset, record.name), path, BY_RULE))
    for unit, receipt in receipts:
        paths = _paths(unit, salt) if receipt.excluded else {}
        # The key of a frame is not the key of its file.
        rows += [Exclusion(unit.source.dataset, k, paths.get(k, "(a frame)"), w) for k, w in receipt.excluded]
    return sorted(rows, key=lambda row: (row.dataset, row.key, row.reason))


def _paths(unit: Unit, salt: bytes) -> dict[str, str]:
    return {
        key_of(salt, record.dataset, record.name): unit.source.relative(record.paths[0])
        for record in unit.records
    }


def _sources(collection: Collection, receipts: list[tuple[Unit, Receipt]]) -> Iterator[SourceEntry]:
    """Manifest rows: sources in the collection's order, pictures before volumes."""
    for source in collection.sources:
        for kind in ("2d", "3d"):
            mine = [r for u, r in receipts if u.source.dataset == source.dataset and kind in r.shards]
            if mine:
                yield source_entry(
                    f"{source.dataset}-{kind}", [(r.shards[kind], r.summary[kind]) for r in mine]
                )


def _held_out(
    rules: tuple[HeldOut, ...], hashing: list[tuple[Unit, Receipt]], excluded: list[Exclusion], keep: bool
) -> HeldOutEntry:
    if keep:
        return HeldOutEntry()
    return HeldOutEntry(
        rules=[{"dataset": rule.dataset, "splits": list(rule.splits)} for rule in rules],
        excluded=dict(sorted(Counter(row.reason for row in excluded).items())),
        checked=sum(len(receipt.hashes) for _, receipt in hashing),
        not_checked=sorted(key for _, receipt in hashing for key, _ in receipt.failures),
    )


def _finish(
    out: Path,
    manifest: Manifest,
    failures: list[Failure],
    scanned: set[str],
    excluded: list[Exclusion],
    receipts: list[tuple[Unit, Receipt]],
) -> None:
    """Write the lists, drop what belongs to no unit, and write the manifest last.

    `scanned`: keys of failures that the scan found, whose reasons quote the source's tables and folders.
    """
    kept = {shard.file for shard in manifest.shards}
    kept |= {Path(name).with_suffix(".idx").name for name in kept}
    names = {f"{unit.name}.json" for unit, _ in receipts}
    with explain_os_errors(out, 0):
        sweep(out)  # of workers that were killed
        for path in out.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in kept:
                path.unlink()
        for path in (out / UNITS).iterdir():
            if path.suffix == ".json" and path.name not in names:
                path.unlink()
        write_text(out / FAILURES, "".join(_line(row, row.key in scanned) for row in failures))
        write_text(out / EXCLUDED, "".join(_line(row, False) for row in excluded))
        manifest.save(out)


def _line(row: Failure | Exclusion, quotes: bool) -> str:
    """One line of a shared list: no path, none of its words, nothing that a scan `quotes`."""
    reason = scrub(_QUOTED.sub("<value>", row.reason) if quotes else row.reason, words_of(row.path))
    line = {"key": row.key, "dataset": row.dataset, "reason": reason}
    return json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n"
