"""`medloom shards build`: a collection becomes a folder of shards; a killed build continues."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...data.ingest.dry_run import DryRun


SHOWN = 20  # refused files; their paths are printed for who builds, and written nowhere


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("collection", help="YAML of the collection (a path, or the name of a shipped one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--root", type=Path, help="folder that holds the datasets (overrides `root` in the YAML)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes; the bytes do not depend on it (0: this process)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="build on this Ray cluster, or `local`; --out must be on a shared disk",
    )
    parser.add_argument(
        "--memory-gb", type=float, help="memory that all workers may use (default: 80%% of what is free)"
    )
    parser.add_argument("--shard-mb", type=int, default=256, help="source megabytes planned per shard")
    parser.add_argument(
        "--profile", default="small", choices=("small", "fast"), help="small files, or fast to decode"
    )
    parser.add_argument(
        "--curation", type=Path, metavar="FILE", help="follow this curation.json (`medloom data curate`)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument(
        "--all-refused", action="store_true", help="print the path of every refused file, not of the first 20"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Build, then say what was written, refused and held out."""
    from ...data.collection import Collection
    from ...data.config import find_config
    from ...data.errors import ConfigError
    from ...data.ingest.build import build
    from ...data.ingest.needs import SHARE, free_memory
    from ..console import progress_bar, say, size

    if arguments.json and not arguments.dry_run:
        raise ConfigError("--json belongs to --dry-run; a build's own JSON is manifest.json")
    collection = Collection.load(find_config("collections", arguments.collection), root=arguments.root)
    how: dict[str, Any] = {"shard_bytes": arguments.shard_mb << 20, "profile": arguments.profile}
    how["curation"] = arguments.curation
    if arguments.dry_run:
        return _dry_run(collection, arguments, how)
    memory = int(arguments.memory_gb * 1e9) if arguments.memory_gb else int(SHARE * free_memory())
    if arguments.ray and not arguments.memory_gb:
        memory = None
    with progress_bar() as progress:
        result = build(
            collection, arguments.out, workers=arguments.workers, ray=arguments.ray, memory=memory,
            progress=progress, **how,
        )  # fmt: skip
    manifest = result.manifest
    entries = [shard for source in manifest.sources for shard in source.shards]
    count = sum(source.count for source in manifest.sources)
    stored = size(sum(shard.bytes for shard in entries))
    say(
        f"{arguments.out}: {count} samples of {len(manifest.sources)} sources, {len(entries)} files, {stored}"
    )
    if result.excluded:
        say(
            f"held out: {len(result.excluded)} samples excluded, listed in {arguments.out / 'excluded.jsonl'}"
        )
    if result.failures:
        say(f"refused: {len(result.failures)} files, with reasons in {arguments.out / 'failures.jsonl'}")
        for row in result.failures[: None if arguments.all_refused else SHOWN]:
            say(f"  {row.dataset}: {row.path}: {row.reason}")
        if len(result.failures) > SHOWN and not arguments.all_refused:
            say(f"  and {len(result.failures) - SHOWN} more: run the command again with --all-refused")
    say(f"next: medloom shards show {arguments.out}")
    return 0


def _dry_run(collection: Any, arguments: argparse.Namespace, how: dict[str, Any]) -> int:
    """Print the plan; returns 1 when a source cannot be used."""
    import json

    from ...data.ingest.dry_run import dry_run
    from ..console import progress_bar

    with progress_bar() as progress:
        plan = dry_run(collection, arguments.out, progress=progress, **how)
    if arguments.json:
        print(json.dumps(plan.to_dict(), indent=1, ensure_ascii=False))
    else:
        _show(plan, arguments.out)
    return 1 if any(source.fault for source in plan.sources) else 0


def _show(plan: DryRun, out: Path) -> None:
    from ..console import print_table, say, size

    rows = [
        {
            "source": s.dataset,
            "images": s.records,
            "": s.dims,
            "kinds of file": ", ".join(s.kinds),
            "bytes": size(s.source_bytes),
            "units": s.units,
            "done": s.done,
            "stored, about": size(s.stored[1]),
            "range": _range(s.stored),
            "held out": s.held_out or None,
            "excluded": s.excluded or None,
            "refused": sum(s.refused.values()) or None,
            "licence": s.licence,
        }
        for s in plan.sources
    ]
    print_table(rows)
    for s in plan.sources:
        if s.fault:
            say(f"cannot be used: {s.fault}")
        for reason, count in s.refused.items():
            say(f"refused: {s.dataset}: {count} files: {reason}")
    for rule in plan.rules:
        say(f"held out: {rule}")
    if plan.to_hash:
        say(
            f"held out: pixels equal to one of {plan.to_hash} held-out images, in any source: will be checked"
        )
    elif plan.hashed:
        say(f"held out: pixels equal to one of {plan.hashed} held-out images, which are hashed already")
    say(
        f"stored in all: about {_text(plan.stored)}; by ratios measured for each kind of file, {plan.profile}"
    )
    enough = "enough" if plan.to_write[2] < plan.free else "perhaps not enough"
    if plan.to_write[0] > plan.free:
        enough = "NOT ENOUGH"
    say(f"to be written: about {_text(plan.to_write)}; free in {out}: {size(plan.free)}, {enough}")
    if plan.seconds is not None:
        say(f"time left: about {plan.seconds / 60:.0f} minutes, at the rate of the units that are done")


def _range(values: tuple[float, float, float]) -> str:
    from ..console import size

    low, _, high = (size(value) for value in values)
    return "" if low == high else f"{low} - {high}"


def _text(values: tuple[float, float, float]) -> str:
    from ..console import size

    return f"{size(values[1])}{f' ({_range(values)})' if _range(values) else ''}"
