"""`medloom shards stats`: what a folder holds, as tables, JSON and pictures; no pixel is read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", help="folder of shards, or its URL")
    parser.add_argument(
        "--out", type=Path, help="folder for stats.json and the pictures (default: FOLDER/stats)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="read at most N samples of each source")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Print the tables, write stats.json and the pictures."""
    from ...data.atomic import write_json
    from ...data.errors import ConfigError
    from ...data.remote.stores import is_url
    from ...data.inspect.statistics import statistics
    from ...data.inspect.statistics_pictures import draw
    from ..console import print_table, progress_bar, say

    if arguments.out is None and is_url(arguments.folder):
        raise ConfigError("--out is missing: name a folder of this machine for stats.json and the pictures")
    out = arguments.out or Path(arguments.folder) / "stats"
    with progress_bar() as progress:
        report = statistics(
            arguments.folder, sample=arguments.sample, workers=arguments.workers, progress=progress
        )
    for title, rows in tables(report):
        print_table(rows, title=title)
        say()
    if report["read"] < report["samples"]:
        say(f"read: {report['read']:,} of {report['samples']:,} samples, by key hash; counts are scaled")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "stats.json", report)
    pictures = draw(report, out)
    say(f"written: {out / 'stats.json'}, {', '.join(path.name for path in pictures)}")
    return 0


def tables(report: dict[str, Any]) -> list[tuple[str, list[dict[str, object]]]]:
    """(title, rows): sources, then samples by modality, organ, licence and split, then labels."""
    from ...data.inspect.statistics import by
    from ..console import size

    rows: list[dict[str, object]] = []
    for name, source in report["sources"].items():
        quantities = source["quantities"]

        def middle(quantity: str, quantities: dict[str, Any] = quantities) -> float | None:
            value = quantities.get(quantity, {}).get("p50")
            return None if value is None else float(f"{value:.3g}")

        rows.append({
            "source": name, "samples": source["samples"], "subjects": source["subjects"],
            "masks": source["masks"], "stored": size(source["bytes"]), "ratio": source["ratio"],
            "side px": middle("side"), "slices": middle("slices"), "mm": middle("spacing"),
            "mm across": middle("slice_spacing"), "intensity": middle("middle"),
            "foreground": middle("foreground"),
        })  # fmt: skip
    found: list[tuple[str, list[dict[str, object]]]] = [("sources (medians of each)", rows)]
    for name in ("modality", "organ", "licence", "split"):
        counts = by(report, name)
        total = max(1, sum(counts.values()))
        listed: list[dict[str, object]] = [
            {name: value, "samples": count, "share": f"{count / total:.1%}"}
            for value, count in counts.items()
        ]
        found.append((f"samples by {name}", listed))
    labels: list[dict[str, object]] = [
        {"source": name, "label": label, "values": ", ".join(f"{v}: {n}" for v, n in list(values.items())[:8])
         + (", ..." if len(values) > 8 else "")}
        for name, source in report["sources"].items() for label, values in source["labels"].items()
    ]  # fmt: skip
    return [*found, ("labels", labels)] if labels else found
