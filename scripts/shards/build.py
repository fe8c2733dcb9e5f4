"""`medloom shards build`: a collection becomes a folder of shards; a killed build continues."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("collection", help="YAML of the collection (a path, or the name of a shipped one)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--root", type=Path, help="folder that holds the datasets (overrides `root` in the YAML)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; the bytes do not depend on it")
    parser.add_argument("--shard-mb", type=int, default=256, help="source megabytes planned per shard")


def run(arguments: argparse.Namespace) -> int:
    """Build, then say what was written, refused and held out."""
    from ...data.build import build
    from ...data.collection import Collection
    from ...data.config import find_config
    from ..console import progress_bar, say, size

    collection = Collection.load(find_config("collections", arguments.collection), root=arguments.root)
    with progress_bar() as progress:
        result = build(
            collection, arguments.out, workers=arguments.workers,
            shard_bytes=arguments.shard_mb << 20, progress=progress,
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
    say(f"next: medloom shards show {arguments.out}")
    return 0
