"""Curate a collection: look at every image, decide, write `curation.json` and contact sheets.

    OUT/curation.json    every record with its findings; salted keys, no names, no paths
    OUT/sheets/RULE.png  what each rule found (sheets.py); shows pixels, so it is for you alone
    OUT/work/            hashes, thumbnails and numbers by unit of work; a killed run continues from there

The same images, settings and versions give the same bytes of `curation.json`, with any number of workers and
after any number of restarts.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic import sweep
from ..catalog.load import load as load_catalog
from ..collection import Collection, Failure, Scan, scan
from ..ingest.build import executor, in_order, work_through
from ..ingest.claim import claimed
from ..ingest.units import UNITS, HeldOutSets, Receipt, Unit, finished, plan, receipt_path
from ..layouts.base import Source
from ..privacy import content_key, key_of, salt_fingerprint
from ..sample import Record
from ..shards.writer import explain_os_errors
from . import compare, curation, relations
from .curation import DROP, FILE, FLAG, FORMAT
from .decide import decide
from .findings import Finding, Settings
from .measure import VERSION, complete, one_thread
from .table import Table, load

log = logging.getLogger(__name__)

WORK, SHEETS = "work", "sheets"
UNIT_BYTES = 64 << 20  # of source files in a unit: about a minute's work

Progress = Callable[[int, int, str], None]
Pair = tuple[Source, Record]


@dataclass(slots=True)
class Result:
    """What a curation found, with readable paths for the local user (they are not in the file)."""

    path: Path
    table: Table
    findings: list[Finding]  # about images that were looked at
    unseen: list[tuple[Pair, str, Mapping[str, Any]]]  # record, rule, numbers: dropped before they were
    failures: list[Failure]
    settings: Settings
    leaks: dict[str, dict[str, int]]  # dataset -> "train and test" -> images that show the same

    def action(self, finding: Finding) -> str:
        """What becomes of an image by a finding; held-out ones are never dropped."""
        if finding.image is not None and self.table.held[finding.record]:
            return FLAG
        return self.settings.actions[finding.rule]


def curate(
    collection: Collection,
    out: Path,
    *,
    settings: Settings | None = None,
    workers: int = 0,
    memory: int | None = None,
    clean_for: Sequence[str] = (),
    ids: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Curate, or finish curating, a collection into the folder `out`.

    Args:
        settings: thresholds, and which rules drop and which only flag.
        workers: processes that look at images; 0 works in this one. The result does not depend on it.
        memory: bytes that they may use together; None: no bound.
        clean_for: tasks of the catalogue whose data and relatives are to be left out.
        ids: `source=id` for sources that the catalogue knows under another name.
        progress: called with (done, all, "stage | detail").

    Raises:
        ShardError: `out` belongs to another collection, another curation works in it, or the disk is full.
        CollectionError: the collection cannot be used as a whole.
        ConfigError: an unknown task, source or id.
    """
    out, settings = Path(out), settings or Settings()
    catalog = load_catalog()
    known = relations.ids_of(collection, catalog, ids)
    relatives = relations.related(collection, catalog, known, clean_for)
    found = scan(collection, progress)
    pairs, unseen = _split(collection, found, relatives)
    identity = {
        "curation": FORMAT,
        "name": collection.name,
        "salt_fingerprint": salt_fingerprint(collection.salt),
    }
    how = {"salt": collection.salt, "shard_bytes": UNIT_BYTES, "extra": f"curate {VERSION}"}
    units = [replace(unit, measures=True) for unit in plan(pairs, **how)]
    with claimed(out / WORK, identity):
        with executor(out / WORK, workers=workers, ray=None, memory=memory) as run_all:
            receipts = _measured(units, out / WORK, collection.salt, run_all, progress)
        table = load(out / WORK, units, {id(record) for _, record in found.held_out})
        with one_thread():
            findings = decide(table, settings, progress or (lambda *_: None))
        failures = _failures(found, units, receipts, collection.salt)
        result = Result(out / FILE, table, findings, unseen, failures, settings, _leaks(table, findings))
        head = _head(collection, result, known, relatives, clean_for)
        rows = _rows(collection, result, receipts)
        with explain_os_errors(out, 0):
            curation.write(out / FILE, head, rows)
    return result


def _split(
    collection: Collection, found: Scan, relatives: Mapping[str, Mapping[str, str]]
) -> tuple[list[Pair], list[tuple[Pair, str, Mapping[str, Any]]]]:
    """Records to look at, and those that are dropped unseen."""
    held, subjects = {id(record) for _, record in found.held_out}, relations.held_subjects(found)
    pairs, unseen = [], []
    for source, record in in_order(collection, found):
        if id(record) in held:
            pairs.append((source, record))
        elif source.dataset in relatives:
            unseen.append(((source, record), "relation", relatives[source.dataset]))
        elif (record.dataset, record.subject) in subjects:
            unseen.append(((source, record), "subject", {}))
        else:
            pairs.append((source, record))
    return pairs, unseen


def _measured(
    units: list[Unit], out: Path, salt: bytes, run_all: Any, progress: Progress | None
) -> dict[str, Receipt]:
    """Receipts of all units by name; only units that are not finished are worked on."""
    receipts: dict[str, Receipt] = {}
    for unit in units:
        receipt = finished(out, unit) if complete(out, unit.name) else None
        if receipt is None:
            receipt_path(out, unit).unlink(missing_ok=True)  # else a worker would take it as done
        else:
            receipts[unit.name] = receipt
    todo = [unit for unit in units if unit.name not in receipts]
    for receipt in work_through(units, todo, "look at images", out, salt, HeldOutSets(), run_all, progress):
        receipts[receipt.unit] = receipt
    names = {unit.name for unit in units}
    sweep(out / UNITS)
    for path in (out / UNITS).iterdir():
        if path.name.split(".")[0] not in names:
            path.unlink()
    return receipts


def _failures(found: Scan, units: list[Unit], receipts: Mapping[str, Receipt], salt: bytes) -> list[Failure]:
    rows = list(found.failures)
    for unit in units:
        paths = {key_of(salt, r.dataset, r.name): unit.source.relative(r.paths[0]) for r in unit.records}
        rows += [Failure(unit.source.dataset, k, paths[k], why) for k, why in receipts[unit.name].failures]
    return rows


def _leaks(table: Table, findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """Images that show the same and stand in different splits of one dataset."""
    found: dict[str, Counter[str]] = {}
    for finding in findings:
        if finding.image is None or finding.of is None:
            continue
        one, other = table.record(finding.image), table.record(finding.of)
        if one.dataset == other.dataset and one.split and other.split and one.split != other.split:
            words = " and ".join(sorted((one.split, other.split)))
            found.setdefault(one.dataset, Counter())[words] += 1
    return {dataset: dict(sorted(counts.items())) for dataset, counts in sorted(found.items())}


def _head(
    collection: Collection,
    result: Result,
    ids: Mapping[str, str],
    relatives: Mapping[str, Mapping[str, str]],
    clean_for: Sequence[str],
) -> dict[str, Any]:
    """All of the file but its rows."""
    import importlib.metadata as metadata

    counts = Counter((finding.rule, result.action(finding)) for finding in result.findings)
    counts.update((rule, result.settings.actions[rule]) for _, rule, _ in result.unseen)
    return {
        "format": FORMAT,
        "collection": collection.name,
        "salt_fingerprint": salt_fingerprint(collection.salt),
        "versions": {
            "measures": VERSION,
            "comparison": compare.VERSION,
            **{name: metadata.version(name) for name in ("medloom", "numpy", "scipy", "pillow")},
        },
        "settings": {
            "thresholds": asdict(result.settings.thresholds),
            "actions": dict(result.settings.actions),
            "clean_for": sorted(clean_for),
            "held_out": [{"dataset": r.dataset, "splits": list(r.splits)} for r in collection.held_out],
        },
        "catalogue": {"ids": dict(ids), "related": {name: dict(why) for name, why in relatives.items()}},
        "counts": {f"{rule} ({action})": count for (rule, action), count in counts.items()},
        "leaks": result.leaks,
    }


def _rows(
    collection: Collection, result: Result, receipts: Mapping[str, Receipt]
) -> Iterator[dict[str, Any]]:
    """A row a record: those looked at in the collection's order, then those dropped unseen."""
    salt, table = collection.salt, result.table
    refused = {key: why for receipt in receipts.values() for key, why in receipt.failures}
    keys = [key_of(salt, record.dataset, record.name) for _, record in table.records]
    starts = table.rows["record"].searchsorted(range(len(keys) + 1))
    mine: dict[int, list[Finding]] = {}
    for finding in result.findings:
        mine.setdefault(finding.record, []).append(finding)
    for number, key in enumerate(keys):
        images = table.rows[starts[number] : starts[number + 1]]
        contents = [content_key(salt, content.decode()) for content in images["content"].tolist()]
        findings = [_written(result, finding, keys) for finding in mine.get(number, [])]
        row: dict[str, Any] = {"key": key, "content": contents}
        if key in refused:
            row |= {"decision": "refused", "reason": refused[key]}
        else:
            row["decision"] = _decision(findings, len(contents), bool(table.held[number]))
        yield row | ({"findings": findings} if findings else {})
    for (_, record), rule, numbers in result.unseen:
        finding = {"rule": rule, "action": result.settings.actions[rule], **numbers}
        decision = "drop" if finding["action"] == DROP else "not looked at"
        key = key_of(salt, record.dataset, record.name)
        yield {"key": key, "content": [], "decision": decision, "findings": [finding]}


def _written(result: Result, finding: Finding, keys: Sequence[str]) -> dict[str, Any]:
    table = result.table
    assert finding.image is not None
    found = {
        "rule": finding.rule,
        "action": result.action(finding),
        "image": int(table.rows["image"][finding.image]),
        **finding.numbers,
    }
    if finding.of is not None:
        place = table.rows[finding.of]
        found["of"] = {"key": keys[int(place["record"])], "image": int(place["image"])}
    return found


def _decision(findings: Sequence[Mapping[str, Any]], images: int, held: bool) -> str:
    """In a word: held_out | drop | part (some of its images are dropped) | keep."""
    if held:
        return "held_out"
    dropped = {finding["image"] for finding in findings if finding["action"] == DROP}
    return "keep" if not dropped else "drop" if len(dropped) == images else "part"
