"""`manifest.json`: what a folder of shards holds. The reader, the stream and the report start from it.

A *source* is one dataset in one dimensionality ("derm_ham10000-2d"), the unit that is mixed and weighted.
Shards are numbered in manifest order, all shards of all sources in a row; `SampleRef.shard` is that number.

The file carries the hash of its own content, which `medloom shards check` verifies. JSON for a person to read
costs 180 bytes a shard: 10 million samples in 20,000 shards load in 40 ms, their hash takes 90 ms.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic import write_json
from ..errors import ShardError
from .format import FORMAT_VERSION, READABLE_FORMATS

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tar: file name inside the folder, samples, bytes, SHA-256."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """One dataset in one dimensionality, with counts of samples by modality, organ, split and label."""

    id: str
    dataset: str
    ndim: int
    count: int
    licence: str
    shards: tuple[ShardEntry, ...]
    modalities: dict[str, int] = field(default_factory=dict)
    organs: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    masks: int = 0
    label_kinds: dict[str, dict[str, Any]] = field(default_factory=dict)  # see annotations/kinds.py

    @property
    def bytes(self) -> int:
        """Bytes of all shards of the source."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Which records were kept out of the shards, and why."""

    rules: list[dict[str, Any]] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)  # reason -> samples or records
    checked: int = 0  # held-out images whose content hash was compared
    not_checked: list[str] = field(default_factory=list)  # keys and rules that could not be compared


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole folder. Equal builds give equal manifests."""

    name: str
    sources: tuple[SourceEntry, ...]
    build: dict[str, Any] = field(default_factory=dict)
    salt_fingerprint: str = ""
    held_out: HeldOut = field(default_factory=HeldOut)
    failures: int = 0
    format: int = FORMAT_VERSION

    @property
    def count(self) -> int:
        """Samples in all sources."""
        return sum(source.count for source in self.sources)

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """All shards, in the order that `SampleRef.shard` counts."""
        return tuple(shard for source in self.sources for shard in source.shards)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with totals for the human reader."""
        shards = self.shards
        totals = {"samples": self.count, "shards": len(shards), "bytes": sum(s.bytes for s in shards)}
        values = {name: getattr(self, name) for name in self.__slots__}
        sources = [_plain(source) | {"shards": [_plain(s) for s in source.shards]} for source in self.sources]
        return values | {"sources": sources, "held_out": _plain(self.held_out), "totals": totals}

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON: the identity of the data a run was trained on."""
        return _hash(self.to_dict())

    def save(self, folder: Path) -> Path:
        """Write `manifest.json` into `folder`, atomically, with the hash of its content."""
        path = Path(folder) / MANIFEST
        values = self.to_dict()
        write_json(path, values | {"hash": _hash(values)})
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read `manifest.json` of a folder of shards.

        Raises:
            ShardError: no manifest, not JSON, or another format version.
        """
        path = Path(folder) / MANIFEST
        try:
            text = path.read_bytes()
        except FileNotFoundError as error:
            hint = (
                "the build has not finished: run it again" if (path.parent / "units").is_dir() else "build it"
            )
            raise ShardError(
                f"{path.parent} is not a finished folder of shards ({MANIFEST} is missing); {hint}"
            ) from error
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: bytes, path: Path | str) -> Manifest:
        """The manifest in these bytes of `manifest.json`; `path` is its name in messages.

        Raises:
            ShardError: not JSON, or another format version.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ShardError(f"{path}: not readable as JSON ({error}); run the build again") from error
        version = data.get("format") if isinstance(data, dict) else None
        if version not in READABLE_FORMATS:
            known = " and ".join(map(str, READABLE_FORMATS))
            raise ShardError(f"{path}: format {version!r}, this medloom reads {known}; build it again")
        try:
            return _from_dict(data)
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardError(
                f"{path}: not a manifest of format {FORMAT_VERSION} ({error}); build it again"
            ) from error


def sealed(folder: str | Path) -> bool:
    """Whether `manifest.json` is as it was written; True when it was written before it carried its hash.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    text = (Path(folder) / MANIFEST).read_text(encoding="utf-8")
    data = json.loads(text)
    written = data.pop("hash", None)
    # The line end is no part of the content, but a file without it was cut.
    return text.endswith("}\n") and (written is None or _hash(data) == written)


def _hash(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(entry: Any) -> dict[str, Any]:
    """Fields of a dataclass; unlike `dataclasses.asdict` it copies nothing, which is ten times faster."""
    return {name: getattr(entry, name) for name in entry.__slots__}


def _from_dict(data: dict[str, Any]) -> Manifest:
    fields = {name: value for name, value in data.items() if name not in ("totals", "hash")}
    sources = tuple(
        SourceEntry(**(source | {"shards": tuple(ShardEntry(**shard) for shard in source["shards"])}))
        for source in fields.pop("sources")
    )
    held_out = HeldOut(**fields.pop("held_out"))
    return Manifest(sources=sources, held_out=held_out, **fields)
