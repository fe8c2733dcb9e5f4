"""What a build would do, from file sizes, headers and receipts: nothing is decoded and nothing is written.

Stored bytes are estimated from ratios measured on a real collection of 19 datasets, by kind of file: the
middle is their common ratio, low and high the most extreme dataset, so the range is honest and wide. At most
SAMPLED headers a source are looked at, evenly spread; the kinds that they show stand for all its files.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..collection import Collection, Scan, scan
from ..curate.curation import NOT_CURATED, Curation
from ..errors import CollectionError
from ..layouts.base import Progress, Source
from ..privacy import key_of
from ..sample import Record
from .build import BY_RULE, HELD_OUT, held_out_sets, in_order
from .claim import check_identity, identity_of
from .headers import Header, header_of
from .units import HeldOutSets, Receipt, Unit, finished, measured, plan, receipt_path

SAMPLED = 64

Range = tuple[float, float, float]  # low, middle, high

# Of the source's bytes, where these are compressed; of the decoded ones else. (small, fast)
_OF_SOURCE: dict[str, tuple[Range, Range]] = {
    "jpeg": ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "png 8 bit": ((0.9, 1.2, 1.7), (1.3, 1.7, 2.2)),
    "png 16 bit": ((0.8, 1.1, 1.4), (1.2, 1.5, 2.0)),
    "nii.gz 8 bit": ((0.9, 1.0, 1.1), (1.0, 1.3, 1.6)),
    "nii.gz 16 bit": ((0.75, 0.8, 0.9), (0.95, 1.0, 1.2)),
    "nii.gz float": ((0.6, 0.7, 1.5), (0.75, 0.9, 2.1)),
    "unknown": ((0.4, 1.0, 2.0), (0.5, 1.2, 2.5)),
}
# Formats that the collection of the measurements did not have, by the nearest that it had.
_OF_SOURCE |= {f"mha/nrrd.gz {kind}": _OF_SOURCE[f"nii.gz {kind}"] for kind in ("8 bit", "16 bit", "float")}
_OF_DECODED: dict[str, tuple[Range, Range]] = {
    "nii 8 bit": ((0.2, 0.4, 0.8), (0.3, 0.5, 0.95)),
    "nii 16 bit": ((0.15, 0.45, 0.65), (0.2, 0.55, 0.8)),
    "nii float": ((0.05, 0.25, 0.8), (0.07, 0.3, 1.1)),
    "dicom volume": ((0.15, 0.4, 0.65), (0.2, 0.5, 0.8)),
    "dicom picture": ((0.25, 0.5, 0.8), (0.4, 0.65, 1.0)),
    "picture 8 bit": ((0.4, 0.5, 0.8), (0.6, 0.7, 1.0)),
    "picture 16 bit": ((0.35, 0.6, 0.9), (0.45, 0.8, 1.1)),
}
_OF_DECODED |= {f"mha/nrrd {kind}": _OF_DECODED[f"nii {kind}"] for kind in ("8 bit", "16 bit", "float")}
_OF_DECODED |= dict.fromkeys(("slide", "film"), _OF_DECODED["picture 8 bit"])
SAMPLE_BYTES = 2400  # metadata, tar headers and padding of one sample, as measured


@dataclass(slots=True)
class SourcePlan:
    """One source of the collection, as a build would treat it."""

    dataset: str
    licence: str = ""
    records: int = 0  # that will be stored, as far as is known before pixels are compared
    kinds: dict[str, int] = field(default_factory=dict)  # kind of file -> headers that show it
    dims: str = ""  # "2D", "3D", "2D, 3D"
    source_bytes: int = 0
    units: int = 0
    done: int = 0  # units with a receipt
    done_bytes: int = 0  # of the source
    stored: Range = (0.0, 0.0, 0.0)
    to_write: Range = (0.0, 0.0, 0.0)
    held_out: int = 0
    excluded: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # reason -> files
    fault: str = ""  # why the source, and with it the build, cannot be used


@dataclass(slots=True)
class DryRun:
    """The whole build."""

    sources: list[SourcePlan]
    rules: list[str]  # held-out rules with what they hold out
    hashed: int  # held-out images whose pixels are known already
    to_hash: int  # ... that will be decoded and compared
    stored: Range
    to_write: Range  # bytes still to be written
    free: int  # bytes free where the folder lies
    seconds: float | None  # for what is left; None: no rate is known
    profile: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def dry_run(
    collection: Collection,
    out: Path,
    *,
    shard_bytes: int,
    profile: str = "small",
    keep_held_out: bool = False,
    curation: Path | None = None,
    progress: Progress | None = None,
) -> DryRun:
    """Plan a build; the arguments are those of `build`.

    Raises:
        ShardError: the folder `out` belongs to something else, as `build` would say.
    """
    out = Path(out)
    curated = Curation.load(curation, collection.name, collection.salt) if curation else None
    known = check_identity(out, identity_of(collection, shard_bytes, profile, keep_held_out, curated))
    rows, found = _scanned(collection, progress)
    how = {"salt": collection.salt, "shard_bytes": shard_bytes, "profile": profile}
    hashing, held = _hashing(found, out if known and not keep_held_out else None, how)
    pairs = in_order(collection, found) if keep_held_out else found.records
    # Receipts depend on the held-out images' hashes: unless these are known, none can be believed.
    units = plan(pairs, extra=(held or HeldOutSets()).digest, **how)
    done = {unit.name for unit in units if known and held is not None and finished(out, unit, mend=False)}
    for unit in units:
        _count_unit(rows[unit.source.dataset], unit, unit.name in done)
        _count_left_out(rows[unit.source.dataset], unit, curated, collection.salt)
    samples: dict[str, list[tuple[Source, Record]]] = {}
    for source, record in pairs:
        samples.setdefault(source.dataset, []).append((source, record))
    for dataset, row in rows.items():
        _measure(row, samples.get(dataset, []), profile)
    return DryRun(
        sources=list(rows.values()),
        rules=[] if keep_held_out else _rules(collection, found),
        hashed=0 if held is None else len(found.held_out),
        to_hash=0 if keep_held_out or held is not None else len(found.held_out),
        stored=_total([row.stored for row in rows.values()]),
        to_write=_total([row.to_write for row in rows.values()]),
        free=_free(out),
        seconds=_seconds(out, [*units, *(hashing if held is None else ())], done),
        profile=profile,
    )


def _scanned(collection: Collection, progress: Progress | None) -> tuple[dict[str, SourcePlan], Scan]:
    """Scan source by source, so that one that cannot be used does not hide the others."""
    rows: dict[str, SourcePlan] = {}
    total = Scan()
    for source in collection.sources:
        row = rows[source.dataset] = SourcePlan(source.dataset)
        rules = tuple(rule for rule in collection.held_out if rule.dataset == source.dataset)
        try:
            alone = replace(collection, sources=(source,), held_out=rules)
            found = scan(alone, progress, may_be_empty=True)
        except CollectionError as error:
            row.fault = str(error)
            continue
        row.held_out, row.excluded = len(found.held_out), len(found.excluded)
        row.refused = dict(Counter(failure.reason for failure in found.failures).most_common())
        row.licence = ", ".join(sorted({record.licence for _, record in [*found.records, *found.held_out]}))
        for name in ("records", "failures", "excluded", "held_out"):
            getattr(total, name).extend(getattr(found, name))
    return rows, total


def _hashing(found: Scan, out: Path | None, how: dict[str, Any]) -> tuple[list[Unit], HeldOutSets | None]:
    """Units that hash held-out images and, when all are done (in `out`), the sets that they give."""
    if not found.held_out:
        return [], HeldOutSets()
    units = plan(found.held_out, prefix=HELD_OUT, **how)
    receipts: list[tuple[Unit, Receipt]] = []
    for unit in units:
        if out is not None and (receipt := finished(out, unit, mend=False)) is not None:
            receipts.append((unit, receipt))
    if len(receipts) < len(units):
        return units, None
    return units, held_out_sets(found, receipts, how["salt"])


def _count_unit(row: SourcePlan, unit: Unit, done: bool) -> None:
    size = sum(measured(unit.source, record)[0] for record in unit.records)
    row.records += len(unit.records)
    row.source_bytes += size
    row.units += 1
    row.done += done
    row.done_bytes += size if done else 0


def _count_left_out(row: SourcePlan, unit: Unit, curated: Curation | None, salt: bytes) -> None:
    """Records that the curation drops, or does not know; their bytes stay in the estimate."""
    if curated is None:
        return
    keys = [key_of(salt, record.dataset, record.name) for record in unit.records]
    decisions = curated.of(keys)
    dropped = sum(row.drops_all for row in decisions.values())
    row.excluded += dropped
    row.records -= dropped + len(keys) - len(decisions)
    if unknown := len(keys) - len(decisions):
        row.refused[NOT_CURATED] = row.refused.get(NOT_CURATED, 0) + unknown


def _measure(row: SourcePlan, records: Sequence[tuple[Source, Record]], profile: str) -> None:
    """Kinds, dimensions and stored bytes of a source, from some of its headers."""
    left = 1 - row.done_bytes / row.source_bytes if row.source_bytes else 0.0
    step = max(1, -(-len(records) // SAMPLED))
    ratios, sizes, dims = [], [], set()
    for source, record in records[::step]:
        header, size = header_of(record), measured(source, record)[0]
        kind = header.kind if header else "unknown"
        row.kinds[kind] = row.kinds.get(kind, 0) + 1
        dims |= {header.ndim} if header else set()
        ratios.append(tuple(size * part for part in _ratio(header, size, profile)))
        sizes.append(size)
    row.dims = ", ".join(f"{ndim}D" for ndim in sorted(dims))
    if sum(sizes):
        parts = [sum(values) / sum(sizes) * row.source_bytes for values in zip(*ratios, strict=True)]
        row.stored = tuple(part + SAMPLE_BYTES * row.records for part in parts)  # type: ignore[assignment]
    row.to_write = tuple(part * left for part in row.stored)  # type: ignore[assignment]


def _ratio(header: Header | None, size: int, profile: str) -> Range:
    """Stored bytes to source bytes."""
    which = profile == "fast"
    if header is None or header.kind not in _OF_DECODED or not size:
        return _OF_SOURCE[header.kind if header and header.kind in _OF_SOURCE else "unknown"][which]
    inflation = header.bytes / size
    low, middle, high = _OF_DECODED[header.kind][which]
    return low * inflation, middle * inflation, high * inflation


def _rules(collection: Collection, found: Scan) -> list[str]:
    lines = []
    for rule in collection.held_out:
        count = sum(rule.covers(record) for _, record in found.held_out)
        which = f"splits {', '.join(rule.splits)}" if rule.splits else "all of it"
        lines.append(f"{rule.dataset} ({which}): {count} images, {BY_RULE}")
    return lines


def _total(ranges: Sequence[Range]) -> Range:
    low, middle, high = (sum(values) for values in zip(*ranges, strict=True)) if ranges else (0.0, 0.0, 0.0)
    return low, middle, high


def _free(out: Path) -> int:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _seconds(out: Path, units: list[Unit], done: set[str]) -> float | None:
    """Time for the units that are left, at the rate at which those of this folder were finished."""
    times, left = [], 0
    for unit in units:
        size = sum(measured(unit.source, record)[0] for record in unit.records)
        if unit.name in done:
            times.append((receipt_path(out, unit).stat().st_mtime, size))
        else:
            left += size
    times.sort()
    # Between receipts, so that pauses of the build are outliers which the median leaves out.
    rates = [size / (b - a) for (a, _), (b, size) in itertools.pairwise(times) if b > a]
    return left / statistics.median(rates) if rates and left else None
