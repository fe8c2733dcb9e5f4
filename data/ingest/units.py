"""Units of work of a build: planned by a pure function, done once, remembered by a receipt.

A unit is a run of consecutive records of one source, about one shard's worth of source bytes. It writes at
most one shard of pictures and one of volumes, then its receipt `units/NAME.json`. A unit whose receipt still
matches its inputs is skipped, so a killed build repeats at most the units that were under way. Everything a
unit writes is a function of its inputs: any number of workers, any number of restarts, the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..annotations.readings import mask_paths
from ..atomic import write_json
from ..curate.curation import Row
from ..errors import ShardError
from ..interop import archive
from ..layouts.base import Source
from ..privacy import salt_fingerprint
from ..readers.itk import data_files
from ..sample import Given, Record
from ..shards.format import FORMAT_VERSION
from ..shards.index import index_path, rebuild
from ..shards.manifest import ShardEntry
from ..shards.writer import explain_os_errors
from .preprocess import STATS_VERSION

UNITS = "units"
RECORDS_PER_UNIT = 10_000  # keeps a unit of tiny pictures to some minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Consecutive records of one source; `hashes_only` units read held-out images and store no pixels.

    `measures` units store no pixels either, but what curation looks at (curate/measure.py).
    """

    name: str
    source: Source
    records: tuple[Record, ...]
    hashes_only: bool = False
    measures: bool = False
    curated: Mapping[str, Row] | None = None  # decisions by key of the record; None: no curation is used
    profile: str = "small"  # see shards/codec.py
    inputs: str = ""


@dataclass(frozen=True, slots=True)
class HeldOutSets:
    """What no stored sample may match: salted subject keys and content hashes of held-out images."""

    subjects: frozenset[tuple[str, str]] = frozenset()  # (dataset, subject key)
    contents: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """Identity of both sets; part of every unit's inputs."""
        text = json.dumps([sorted(self.subjects), sorted(self.contents)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Receipt:
    """What a unit did. Holds keys and counts, no names."""

    unit: str
    inputs: str
    shards: dict[str, ShardEntry] = field(default_factory=dict)  # "2d" | "3d"
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)  # "2d" | "3d" -> counts
    failures: list[tuple[str, str]] = field(default_factory=list)  # (key, scrubbed reason)
    excluded: list[tuple[str, str]] = field(default_factory=list)  # (key, reason)
    hashes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the receipt, atomically."""
        with explain_os_errors(path, 0):
            path.parent.mkdir(exist_ok=True)
            shards = {kind: vars_of(entry) for kind, entry in self.shards.items()}
            write_json(path, {name: getattr(self, name) for name in self.__slots__} | {"shards": shards})

    @classmethod
    def load(cls, path: Path) -> Receipt | None:
        """Read a receipt; None when there is none that can be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data["shards"] = {kind: ShardEntry(**entry) for kind, entry in data["shards"].items()}
            for name in ("failures", "excluded"):
                data[name] = [(key, reason) for key, reason in data[name]]
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def vars_of(entry: ShardEntry) -> dict[str, Any]:
    """Plain JSON values of a shard entry."""
    return {"file": entry.file, "count": entry.count, "bytes": entry.bytes, "sha256": entry.sha256}


def receipt_path(out: Path, unit: Unit) -> Path:
    """`OUT/units/NAME.json`."""
    return out / UNITS / f"{unit.name}.json"


def plan(
    pairs: Iterable[tuple[Source, Record]],
    *,
    shard_bytes: int,
    salt: bytes,
    extra: str = "",
    prefix: str = "",
    profile: str = "small",
) -> list[Unit]:
    """Cut records, in their order, into units of about `shard_bytes` source bytes. Pure but for `stat`.

    Args:
        pairs: records grouped by source, as `scan` gives them.
        extra: what else the units depend on (digest of the held-out sets).
        prefix: "held-out." makes units that only hash.
    """
    units: list[Unit] = []
    group: list[Record] = []
    state: list[str] = []
    size, current, number = 0, None, 0

    def close() -> None:
        nonlocal group, state, size, number
        if current is not None and group:
            name = f"{prefix}{current.dataset}-{number:05d}"
            # What is only hashed is the same in every profile.
            inputs = _inputs(current, state, salt, extra if prefix else f"{extra} {profile}")
            units.append(
                Unit(
                    name=name, source=current, records=tuple(group), hashes_only=bool(prefix),
                    profile=profile, inputs=inputs,
                )
            )  # fmt: skip
            number += 1
        group, state, size = [], [], 0

    for source, record in pairs:
        length, text = measured(source, record)
        if current is None or source.dataset != current.dataset:
            close()
            current, number = source, 0
        elif group and (size + length > shard_bytes or len(group) >= RECORDS_PER_UNIT):
            close()
        group.append(record)
        state.append(text)
        size += length
    close()
    return units


def measured(source: Source, record: Record) -> tuple[int, str]:
    """Bytes of a record's files, and a text that changes when the record or a file does."""
    total, files = 0, []
    for path in (*record.paths, *data_files(record.paths), *mask_paths(record)):
        try:
            length, changed = archive.stat(path)
        except OSError:
            continue
        total += length
        files.append((source.relative(path), length, changed))
    known = (record.name, record.subject, record.study, record.split, record.licence)
    said = (
        [(reading.annotator, _listed(reading.labels)) for reading in record.readings],
        [(s.kind, s.label, s.points, s.annotator, s.group) for s in record.shapes],
    )
    if record.given is not None:
        files.append(_given(source, record.given))
    labels = _listed(record.labels)
    return total, repr((known, str(record.modality), str(record.organ), labels, said, files))


def _listed(labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    return sorted((str(name), repr(value)) for name, value in labels.items())


def _given(source: Source, given: Given) -> tuple[Any, ...]:
    """What the source says of a file, and the state of the file that says it."""
    said = astuple(replace(given, properties=None))
    if given.properties is None:
        return said
    try:
        return (*said, source.relative(given.properties), *archive.stat(given.properties))
    except OSError:
        return (*said, source.relative(given.properties))


def _inputs(source: Source, state: list[str], salt: bytes, extra: str) -> str:
    """Salted hash of everything a unit's output depends on; says nothing about names to others."""
    options = (
        source.dataset, source.mask_values, sorted(source.mask_classes.items()), source.fourth_axis,
        sorted(source.label_kinds.items()), source.masks_from, source.consensus,
        source.burned_in,
    )  # fmt: skip
    digest = hashlib.blake2b(key=salt[:64], digest_size=16)
    for part in (FORMAT_VERSION, STATS_VERSION, salt_fingerprint(salt), extra, options, *state):
        digest.update(repr(part).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def finished(out: Path, unit: Unit, *, mend: bool = True) -> Receipt | None:
    """The receipt of a unit that needs no work, else None. `mend`: make a lost index again."""
    receipt = Receipt.load(receipt_path(out, unit))
    if receipt is None or receipt.inputs != unit.inputs:
        return None
    for entry in receipt.shards.values():
        tar = out / entry.file
        if not tar.is_file() or tar.stat().st_size != entry.bytes:
            return None
        if mend and not index_path(tar).is_file():
            try:
                rebuild(tar, sha256=entry.sha256)
            except ShardError:
                return None
    return receipt
