"""What a folder of shards holds, from its metadata alone: counts, and distributions of sizes and intensities.

Reads indices and `key.json`, never a pixel: about 14,000 samples a second and core; a folder of millions is
sampled (`sample`), evenly over its shards and by key hash, so that the same samples are taken every time.
Distributions are kept as at most 4,000 samples of each source. Persons appear as numbers of salted keys only.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ShardError
from ..ingest.summary import values_of
from ..shards.folder import ShardFolder
from ..shards.format import KIND_MASK
from ..shards.index import Index
from ..shards.manifest import ShardEntry
from ..shards.parallel import run_each
from ..shards.reader import Shards

Progress = Callable[[int, int, str], None]

KEPT = 4000  # samples of a source whose quantities are kept
LISTED = 30  # values of a label that are listed
BINS = 40

INTENSITY = 50.0  # up to about here the axis of intensities is linear, beyond logarithmic (asinh)

# name -> (what it is, its axis: log, asinh or linear)
QUANTITIES: dict[str, tuple[str, str]] = {
    "side": ("longer side in the slice or picture, pixels", "log"),
    "slices": ("slices of a volume", "log"),
    "spacing": ("spacing in the slice or picture, mm", "log"),
    "slice_spacing": ("spacing across slices, mm", "log"),
    "low": ("5th percentile of intensity, stored units", "asinh"),
    "middle": ("median intensity, stored units", "asinh"),
    "high": ("95th percentile of intensity, stored units", "asinh"),
    "foreground": ("share of foreground", "linear"),
    "bytes": ("stored bytes of a sample", "log"),
    "ratio": ("raw bytes / stored bytes", "log"),
}
# axis -> (to the scale on which bins are equally wide, and back)
AXES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (lambda v: v, lambda v: v),
    "log": (lambda v: np.log10(v[v > 0]), lambda v: 10.0**v),
    "asinh": (lambda v: np.arcsinh(v / INTENSITY), lambda v: np.sinh(v) * INTENSITY),
}
COUNTED = {"modality": "modality", "organ": "organ", "licence": "licence", "split": "split"}


@dataclass(slots=True)
class Tally:
    """Counts and quantities of some samples of one source."""

    read: int = 0
    stored: int = 0  # bytes of the members of these samples
    raw: int = 0  # bytes of their images and label maps, decoded
    masks: int = 0
    counts: dict[str, Counter] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    labels: dict[str, Counter] = field(default_factory=dict)
    subjects: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    values: np.ndarray = field(default_factory=lambda: np.empty((0, len(QUANTITIES))))

    def merge(self, other: Tally) -> None:
        """Add the samples of another shard of the source."""
        for name in ("read", "stored", "raw", "masks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, counter in other.counts.items():
            self.counts[name].update(counter)
        for name, counter in other.labels.items():
            self.labels.setdefault(name, Counter()).update(counter)
        self.subjects = np.union1d(self.subjects, other.subjects)
        hashes = np.concatenate([self.hashes, other.hashes])
        keep = np.sort(np.argsort(hashes, kind="stable")[:KEPT])
        self.hashes, self.values = hashes[keep], np.concatenate([self.values, other.values])[keep]


def statistics(
    root: str | Path, *, sample: int | None = None, workers: int = 1, progress: Progress | None = None
) -> dict[str, Any]:
    """Describe a folder of shards, or a URL; plain JSON values.

    Args:
        sample: samples of a source that are read at most; None reads all.
        workers: processes; the result does not depend on it.
        progress: called with (samples read, all, "read metadata | shard").

    Raises:
        ShardError: no finished folder of shards, or metadata that cannot be read.
    """
    if sample is not None and sample < 1:
        raise ShardError(f"--sample {sample}: read at least 1 sample of each source, or leave it out for all")
    shards = Shards.open(root)
    jobs, owners = [], []
    for source in shards.manifest.sources:
        takes = _spread([entry.count for entry in source.shards], sample)
        jobs += list(zip(source.shards, takes, strict=True))
        owners += [source.id] * len(takes)
    tallies = {source.id: Tally() for source in shards.manifest.sources}
    parts: dict[int, Tally] = {}
    total, done = sum(take for _, take in jobs), 0
    for number, part in run_each(partial(tally_shard, shards.folder), jobs, workers=workers):
        if isinstance(part, ShardError):
            raise ShardError(f"{jobs[number][0].file}: {part}")
        parts[number] = part
        done += part.read
        if progress is not None:
            progress(done, total, f"read metadata | {jobs[number][0].file}")
    for number in sorted(parts):  # in manifest order, whatever the processes did first
        tallies[owners[number]].merge(parts.pop(number))
    edges = _edges([tally.values for tally in tallies.values()])
    sources = {
        source.id: {"samples": source.count, "ndim": source.ndim, "shards": len(source.shards),
                    "bytes": source.bytes, **_described(tallies[source.id], edges)}
        for source in shards.manifest.sources
    }  # fmt: skip
    return {
        "folder": str(shards.root),
        "name": shards.manifest.name,
        "manifest": shards.manifest.hash,
        "samples": shards.manifest.count,
        "read": done,
        "sample": sample,
        "bytes": sum(source.bytes for source in shards.manifest.sources),
        "quantities": {
            name: {"meaning": text, "edges": edges[name]} for name, (text, _) in QUANTITIES.items()
        },
        "sources": sources,
    }


def tally_shard(folder: ShardFolder, job: tuple[ShardEntry, int]) -> Tally:
    """Read the metadata of `take` samples of a shard, those with the smallest key hashes."""
    entry, take = job
    result = Tally()
    if not take:
        return result
    index = folder.index(entry)
    shard = folder.open(entry, index)
    hashes = np.asarray(index.samples["key_hash"])
    chosen = np.sort(np.argsort(hashes, kind="stable")[:take])
    sizes = _stored(index)
    rows, subjects = [], set()
    for ordinal in chosen.tolist():
        meta = shard.meta(ordinal)
        stored, raw = int(sizes[ordinal]), _raw(index, ordinal, meta)
        result.stored += stored
        result.raw += raw
        result.masks += meta["mask"] is not None
        for name, key in COUNTED.items():
            result.counts[name][str(meta[key] or "none")] += 1
        for label, value in (meta["labels"] or {}).items():
            result.labels.setdefault(label, Counter()).update(values_of(value))
        if meta["subject"]:
            digest = hashlib.blake2b(str(meta["subject"]).encode(), digest_size=8).digest()
            subjects.add(int.from_bytes(digest, "little"))
        rows.append(_quantities(meta, stored, raw))
    result.read = len(chosen)
    result.subjects = np.fromiter(subjects, np.uint64)
    keep = np.argsort(hashes[chosen], kind="stable")[:KEPT]
    result.hashes, result.values = hashes[chosen][keep].copy(), np.asarray(rows, np.float64)[keep]
    return result


def by(report: dict[str, Any], name: str) -> dict[str, int]:
    """Samples of all sources by modality, organ, licence or split, the most frequent first.

    Counts of a sampled source are scaled to its size.
    """
    total: Counter = Counter()
    for source in report["sources"].values():
        for value, count in source[name].items():
            total[value] += count * source["samples"] / max(1, source["read"])
    return {value: round(count) for value, count in total.most_common()}


def _spread(counts: Sequence[int], sample: int | None) -> list[int]:
    """How many samples of each shard to read, so that they are `sample` in all, in proportion."""
    total = sum(counts)
    if sample is None or sample >= total:
        return list(counts)
    ends = np.cumsum([0, *counts]) * sample // total
    return np.diff(ends).tolist()


def _stored(index: Index) -> np.ndarray:
    """Bytes of the members of each sample."""
    return np.bincount(index.members["sample"], weights=index.members["size"], minlength=len(index))


def _raw(index: Index, ordinal: int, meta: dict[str, Any]) -> int:
    """Bytes of the image and the label map, decoded; without the smaller levels."""
    image = math.prod(meta["shape"]) * np.dtype(meta["dtype"]).itemsize
    arrays = [index.array(row.array) for row in index.members_of(ordinal) if row.kind == KIND_MASK]
    return image + sum(math.prod(layout.shape) * layout.dtype.itemsize for layout in arrays)


def _quantities(meta: dict[str, Any], stored: int, raw: int) -> list[float]:
    """The row of QUANTITIES of one sample; NaN for what is unknown."""
    shape, spacing, stats = meta["shape"][1:], meta["spacing"], meta["stats"] or {}
    percentiles = stats.get("percentiles", {})
    low, middle, high = (float(np.mean(percentiles.get(p, math.nan))) for p in ("5", "50", "95"))
    volume = len(shape) == 3
    return [
        max(shape[-2:]),
        shape[0] if volume else math.nan,
        float(np.mean(spacing[-2:])) if spacing else math.nan,
        spacing[0] if spacing and volume else math.nan,
        low, middle, high,
        stats.get("foreground", {}).get("fraction", math.nan),
        stored, raw / max(1, stored),
    ]  # fmt: skip


def _edges(values: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Edges of the histograms, the same for all sources so that they can be compared."""
    merged = np.concatenate(values)
    edges = {}
    for name, column in _axes():
        there, back = AXES[QUANTITIES[name][1]]
        known = merged[:, column]
        known = there(known[np.isfinite(known).all(axis=1)])
        known = known[np.isfinite(known)]
        if not len(known):
            edges[name] = []
            continue
        low, high = float(known.min()), float(known.max())
        width = max((high - low) / BINS, 1e-3 * max(1.0, abs(high)))
        points = low + width * np.arange(-0.5, BINS + 1.5)
        edges[name] = [float(f"{v:.6g}") for v in back(points)]
    return edges


def _axes() -> Iterator[tuple[str, list[int]]]:
    """Quantities with the columns that their axis must hold: the percentiles of intensity share theirs."""
    names = list(QUANTITIES)
    shared = [names.index(name) for name in names if QUANTITIES[name][1] == "asinh"]
    for column, name in enumerate(names):
        yield name, shared if column in shared else [column]


def _described(tally: Tally, edges: dict[str, list[float]]) -> dict[str, Any]:
    """Plain JSON values of a source."""
    quantities = {}
    for column, name in enumerate(QUANTITIES):
        known = tally.values[:, column]
        known = known[np.isfinite(known)]
        if len(known):
            points = np.percentile(known, (0, 5, 25, 50, 75, 95, 100))
            names = ("min", "p5", "p25", "p50", "p75", "p95", "max")
            counts, _ = np.histogram(known, edges[name])
            described = {n: float(f"{v:.6g}") for n, v in zip(names, points, strict=True)}
            quantities[name] = described | {"known": len(known), "histogram": counts.tolist()}
    return {
        "read": tally.read,
        "subjects": len(tally.subjects),
        "masks": tally.masks,
        "stored": tally.stored,
        "raw": tally.raw,
        "ratio": float(f"{tally.raw / max(1, tally.stored):.4g}"),
        **{name: dict(counter.most_common()) for name, counter in tally.counts.items()},
        "labels": {name: _shortened(counter) for name, counter in sorted(tally.labels.items())},
        "quantities": quantities,
    }


def _shortened(counter: Counter) -> dict[str, int]:
    """The most frequent values; what is rarer is counted under "(N others)"."""
    listed = dict(counter.most_common(LISTED))
    others = len(counter) - len(listed)
    if others:
        listed[f"({others} others)"] = counter.total() - sum(listed.values())
    return listed
