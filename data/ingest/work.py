"""Do one unit of a build: read its records, refuse or exclude some, write its shards and its receipt.

A file that cannot be used is listed with its reason and never ends a build; a fault of the machine (disk
full, disk gone, memory) ends it at once, leaves nothing half-written, and running again takes up from there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..curate.curation import NOT_CURATED, Row
from ..errors import ShardError
from ..interop import archive
from ..privacy import key_of, subject_key
from ..readers import each
from ..readers.source import OUT_OF_SPACE
from ..sample import Record
from ..shards.codec import single_threaded
from ..shards.format import Member, members_of
from ..shards.index import index_path
from ..shards.writer import ShardWriter
from .ingest import content_hash, reason_of, samples_of, scrub, secrets_of
from .spool import Spool
from .summary import Summary
from .units import HeldOutSets, Receipt, Unit, receipt_path

log = logging.getLogger(__name__)

Tick = Callable[[int], None]

SUBJECT_HELD_OUT = "subject is held out"
CONTENT_HELD_OUT = "pixels equal a held-out image"

_UNKNOWN = Row(drop=NOT_CURATED)


def run_unit(
    out: Path,
    unit: Unit,
    salt: bytes,
    held_out: HeldOutSets,
    tick: Tick | None = None,
    crashed: Mapping[int, str] | None = None,
) -> Receipt:
    """Do one unit: write its shards and its receipt.

    Args:
        tick: called with the number of each record before it is read; what it raises stops the unit, which
            leaves nothing behind.
        crashed: records (number -> reason) that are refused unread because they end the process.

    Raises:
        ShardError: the disk is full or unwritable, or source files have disappeared meanwhile.
    """
    single_threaded()
    known = Receipt.load(receipt_path(out, unit))
    if known is not None and known.inputs != unit.inputs:
        receipt_path(out, unit).unlink(missing_ok=True)
    receipt = Receipt(unit.name, unit.inputs)
    todo = _usable(unit, salt, receipt, tick, crashed or {})
    if unit.hashes_only:
        for record in todo:
            _hash(unit, record, salt, receipt)
        receipt.hashes.sort()
    elif unit.measures:
        from ..curate.measure import write_measures

        def refuse(record: Record, error: Exception) -> None:
            _refuse(unit, record, salt, receipt, error)

        write_measures(out, unit, todo, refuse)
    else:
        _write_shards(out, unit, todo, salt, held_out, receipt)
    receipt.save(receipt_path(out, unit))
    return receipt


def try_records(unit: Unit, numbers: range, salt: bytes, crashed: Mapping[int, str], tick: Tick) -> None:
    """Read and encode some records of a unit and keep nothing: does the process live through it?"""
    single_threaded()
    for number in numbers:
        if number in crashed:
            continue
        tick(number)
        if unit.hashes_only:
            _hash(unit, unit.records[number], salt, Receipt(unit.name, unit.inputs))
        elif unit.measures:
            from ..curate.measure import measures_of

            with contextlib.suppress(Exception):  # only a crash counts here
                list(measures_of(unit.source, unit.records[number]))
        else:
            for _ in _encoded(
                unit, unit.records[number], salt, HeldOutSets(), Receipt(unit.name, unit.inputs)
            ):
                pass


def _usable(
    unit: Unit, salt: bytes, receipt: Receipt, tick: Tick | None, crashed: Mapping[int, str]
) -> Iterator[Record]:
    """Records that are to be read; those that crash the reader are listed as refused."""
    for number, record in enumerate(unit.records):
        if tick:
            tick(number)
        if number in crashed:
            _list_failure(unit, record, salt, receipt, crashed[number])
        else:
            yield record


def _hash(unit: Unit, record: Record, salt: bytes, receipt: Receipt) -> None:
    try:
        images = each(record.paths, fourth_axis=unit.source.fourth_axis, given=record.given)
        receipt.hashes.extend([content_hash(image.array) for image in images])
    except Exception as error:
        _refuse(unit, record, salt, receipt, error)


def _write_shards(
    out: Path, unit: Unit, records: Iterator[Record], salt: bytes, held_out: HeldOutSets, receipt: Receipt
) -> None:
    writers: dict[str, ShardWriter] = {}
    summaries: dict[str, Summary] = {}
    complete: list[Path] = []
    try:
        for record in records:
            for meta, members in _encoded(unit, record, salt, held_out, receipt):
                kind = f"{meta['ndim']}d"
                if kind not in writers:
                    writers[kind] = ShardWriter(out / _shard_name(unit, kind)).__enter__()
                    summaries[kind] = Summary(unit.source.label_kinds)
                writers[kind].put(members)
                summaries[kind].add(meta)
        for kind, writer in list(writers.items()):
            del writers[kind]
            writer.__exit__(None, None, None)
            complete.append(writer.path)
            receipt.shards[kind] = writer.entry
            receipt.summary[kind] = summaries[kind].to_dict()
    except BaseException as error:
        for writer in writers.values():
            writer.__exit__(type(error), error, error.__traceback__)
        for path in complete:
            path.unlink(missing_ok=True)
            index_path(path).unlink(missing_ok=True)
        raise


def _shard_name(unit: Unit, kind: str) -> str:
    dataset, _, number = unit.name.rpartition("-")
    return f"{dataset}-{kind}-{number}.tar"


def _encoded(
    unit: Unit, record: Record, salt: bytes, held_out: HeldOutSets, receipt: Receipt
) -> Iterator[tuple[dict[str, Any], list[Member]]]:
    """Metadata and encoded members of a record's samples; none when it is excluded or refused."""
    key = key_of(salt, record.dataset, record.name)
    if (record.dataset, subject_key(salt, record.dataset, record.subject)) in held_out.subjects:
        receipt.excluded.append((key, SUBJECT_HELD_OUT))
        return
    row = None if unit.curated is None else unit.curated.get(key, _UNKNOWN)
    if row is not None and row.drop:
        (receipt.excluded if row is not _UNKNOWN else receipt.failures).append((key, row.drop))
        return
    excluded: list[tuple[str, str]] = []
    with Spool() as spool:
        try:
            count = 0
            for number, sample in enumerate(samples_of(unit.source, record, salt)):
                count += 1
                if row is not None:
                    row.check(number, sample.meta["content_hash"], salt)
                if sample.meta["content_hash"] in held_out.contents:
                    excluded.append((sample.key, CONTENT_HELD_OUT))
                elif row is not None and number in row.images:
                    excluded.append((sample.key, row.images[number]))
                else:
                    spool.put(sample.meta, list(members_of(sample, unit.profile)))
            if row is not None:
                row.check_count(count)
        except Exception as error:
            _refuse(unit, record, salt, receipt, error)
            return
        receipt.excluded += excluded
        yield from spool


def _refuse(unit: Unit, record: Record, salt: bytes, receipt: Receipt, error: Exception) -> None:
    """List a record that cannot be used; a fault of the machine, not of the file, stops the build instead."""
    where = unit.source.relative(record.paths[0])
    if isinstance(error, MemoryError):
        raise ShardError(
            f"{where}: not enough memory to decode it; build with a smaller --memory-gb or fewer --workers"
        ) from error
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        raise ShardError(f"{where}: no space to unpack it ({error.strerror})") from error
    for path in record.paths:
        if not archive.exists(path):
            raise ShardError(
                f"{path}: disappeared during the build; is its disk still mounted? then run the command again"
            ) from error
    _list_failure(unit, record, salt, receipt, reason_of(error))


def _list_failure(unit: Unit, record: Record, salt: bytes, receipt: Receipt, reason: str) -> None:
    key, reason = key_of(salt, record.dataset, record.name), scrub(reason, secrets_of(unit.source, record))
    log.warning("%s refused: %s", key, reason)
    receipt.failures.append((key, reason))
