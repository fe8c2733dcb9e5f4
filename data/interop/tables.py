"""The tables and texts beside exported files: metadata.csv and .jsonl, LICENCES.txt, collection.yaml.

The CSV is what layout `table` reads, so that an export can be built again; the JSONL holds the same samples
with exact types and all of `key.json` but the statistics, which are measured again.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import replacing
from ..config import to_yaml
from ..shards.manifest import SourceEntry

CSV, JSONL = "metadata.csv", "metadata.jsonl"
SEPARATOR = "|"  # of several labels in a cell

_COLUMNS = (
    "file", "mask", "axes", "key", "subject", "study", "split", "modality", "organ", "licence", "dataset",
    "ndim", "shape", "dtype", "spacing", "content_hash",
)  # fmt: skip
_OWN = {"stats", "mask", "format"}  # of key.json: measured again, replaced by the file, not of the image


class Tables:
    """Context manager that writes one pair of tables a dataset, or one pair in all with `flat`."""

    def __init__(self, out: Path, sources: Sequence[SourceEntry], *, flat: bool) -> None:
        self._out, self._flat = out, flat
        self.labels: dict[str, list[str]] = {}  # dataset -> names of its labels
        for source in sources:
            names = {*self.labels.get(source.dataset, ()), *source.labels}
            self.labels[source.dataset] = sorted(names)
        self.classes: dict[str, dict[int, str]] = {}  # dataset -> names of mask values
        self._open: dict[str, tuple[Any, Any]] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Tables:
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, meta: Mapping[str, Any], file: str, mask: str | None) -> None:
        """Append a sample: its key.json and the files, relative to OUT."""
        dataset = meta["dataset"]
        if dataset not in self._open:
            self._open[dataset] = self._begin(dataset)
        table, lines = self._open[dataset]
        inside = "" if self._flat else f"{dataset}/"
        files = {"file": file.removeprefix(inside), "mask": mask.removeprefix(inside) if mask else None}
        values = {**meta, **files, "axes": "CHW" if file.endswith(".npy") else None}
        values |= {name: " ".join(map(str, meta[name] or ())) for name in ("shape", "spacing")}
        cells = {name: "" if values[name] is None else values[name] for name in _COLUMNS}
        cells |= {f"label.{name}": _cell(meta["labels"].get(name)) for name in self.labels[dataset]}
        table.writerow(cells)
        kept = {name: value for name, value in meta.items() if name not in _OWN} | files
        if meta["mask"]:
            kept["mask_classes"] = meta["mask"]["classes"]
            # A value that was never named is named after itself again.
            names = {int(v): name for v, name in meta["mask"]["classes"].items() if name != v}
            self.classes.setdefault(dataset, {}).update(names)
        lines.write(json.dumps(kept, sort_keys=True, ensure_ascii=False) + "\n")

    def _begin(self, dataset: str) -> tuple[Any, Any]:
        folder = self._out if self._flat else self._out / dataset
        folder.mkdir(parents=True, exist_ok=True)
        streams = []
        for name in (CSV, JSONL):
            temporary = self._stack.enter_context(replacing(folder / name))
            stream = temporary.open("w", newline="", encoding="utf-8")
            streams.append(self._stack.enter_context(stream))
        columns = [*_COLUMNS, *(f"label.{name}" for name in self.labels[dataset])]
        table = csv.DictWriter(streams[0], columns, lineterminator="\n")
        table.writeheader()
        return table, streams[1]


def _cell(label: Any) -> Any:
    """A label in one cell: several joined, a lone separator for none of them, empty for not known."""
    if isinstance(label, list):
        return SEPARATOR.join(map(str, label)) or SEPARATOR
    return "" if label is None else label


def licences(sources: Sequence[SourceEntry]) -> str:
    """Sources with their licences, one a line."""
    lines = ["Sources of these files and the licences that their shards state. Read each before you share."]
    for source in sources:
        lines.append(
            f"{source.dataset} ({source.ndim}D, {source.count} images in the shards): {source.licence}"
        )
    return "\n".join(lines) + "\n"


def collection_yaml(name: str, sources: Sequence[SourceEntry], tables: Tables) -> str:
    """A collection that reads the exported files of the datasets again."""
    entries = []
    for dataset, labels in tables.labels.items():
        found = {source.licence for source in sources if source.dataset == dataset}
        others = [label for label in labels if label != "class"]
        options: dict[str, Any] = {
            "file": CSV, "path": "file", "mask": "mask", "axes": "axes", "subject": "subject",
            "study": "study", "split": "split", "modality": "modality", "organ": "organ",
            "values": {f"label.{label}": label for label in others},
        }  # fmt: skip
        if "class" in labels:
            options["label"] = "label.class"
        kinds: dict[str, Any] = {}
        for source in sources:
            if source.dataset == dataset:
                kinds |= source.label_kinds
        several = {name for name, kind in kinds.items() if kind["kind"] == "multi-label"}
        entries.append(
            {
                "dataset": dataset,
                "layout": "table",
                "root": dataset,
                "licence": ", ".join(sorted(found)),
                "mask_classes": dict(sorted(tables.classes.get(dataset, {}).items())),
                "label_kinds": {
                    name: kind | ({"separator": SEPARATOR} if name in several else {})
                    for name, kind in sorted(kinds.items())
                },
                "options": options,
            }
        )
    return (
        "# Written by `medloom shards export`: build these files again with `medloom shards build`.\n"
        + to_yaml({"name": name, "root": ".", "sources": entries})
    )
