"""What a shard holds, in counts, and the row of a source that its shards add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..annotations.kinds import LabelKind
from ..shards.manifest import ShardEntry, SourceEntry

LISTED_VALUES = 100  # labels with more distinct values are counted, not listed

Part = tuple[ShardEntry, dict[str, Any]]  # a shard and the counts of its samples


class Summary:
    """Counts of one shard's samples, for the manifest."""

    def __init__(self, label_kinds: Mapping[str, LabelKind] | None = None) -> None:
        self.label_kinds = {name: kind.to_dict() for name, kind in sorted((label_kinds or {}).items())}
        self.counts = {name: Counter() for name in ("modalities", "organs", "licences", "splits")}
        self.labels: dict[str, Counter] = {}
        self.masks = 0

    def add(self, meta: dict[str, Any]) -> None:
        """Count one sample."""
        for name, key in (("modalities", "modality"), ("organs", "organ"), ("licences", "licence")):
            self.counts[name][meta[key]] += 1
        self.counts["splits"][meta["split"] or "none"] += 1
        for label, value in meta["labels"].items():
            self.labels.setdefault(label, Counter()).update(values_of(value))
        self.masks += meta["mask"] is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{name: dict(counter) for name, counter in self.counts.items()},
            "labels": {name: shortened(counter) for name, counter in self.labels.items()},
            "masks": self.masks,
            "label_kinds": self.label_kinds,
        }


def values_of(label: Any) -> list[str]:
    """The values that a label counts under: each of several; none of None."""
    if isinstance(label, list):
        return [str(value) for value in label] or ["(none)"]
    return [] if label is None else [str(label)]


def shortened(counter: Counter) -> dict[str, int]:
    """Counts of each value, or {"*": total} for a label with too many values to list."""
    if len(counter) > LISTED_VALUES or "*" in counter:
        return {"*": sum(counter.values())}
    return dict(counter)


def source_entry(
    source: str,
    parts: list[Part],
    licence: str = "",
    label_kinds: dict[str, dict[str, Any]] | None = None,
) -> SourceEntry:
    """The row of a source from its shards; the last two are for shards that do not tell theirs."""
    dataset, _, kind = source.rpartition("-")
    summaries = [summary for _, summary in parts]
    labels = sorted({name for summary in summaries for name in summary["labels"]})
    return SourceEntry(
        id=source,
        dataset=dataset,
        ndim=int(kind[0]),
        count=sum(entry.count for entry, _ in parts),
        licence=", ".join(sorted(map(str, _total(summaries, "licences")))) or licence,
        shards=tuple(entry for entry, _ in parts),
        modalities=dict(_total(summaries, "modalities")),
        organs=dict(_total(summaries, "organs")),
        splits=dict(_total(summaries, "splits")),
        labels={name: shortened(_total([s["labels"] for s in summaries], name)) for name in labels},
        masks=sum(summary["masks"] for summary in summaries),
        label_kinds=next((s["label_kinds"] for s in summaries if s.get("label_kinds")), label_kinds or {}),
    )


def _total(summaries: list[dict[str, Any]], name: str) -> Counter:
    total: Counter = Counter()
    for summary in summaries:
        total.update(summary.get(name, {}))
    return total
