"""`medloom shards build | check | show`: from a collection to shards, and a look at them."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  medloom shards build realdata --root /data/realdata --out shards/realdata --workers 2
  medloom shards check shards/realdata
  medloom shards show shards/realdata --out realdata.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `build`, `check` and `show`."""
    parser.epilog = EXAMPLE
    commands = parser.add_subparsers(dest="action", metavar="build|check|show", required=True)

    build = commands.add_parser("build", help="read a collection and write shards; a killed build continues")
    build.add_argument("collection", help="YAML of the collection (a path, or the name of a shipped one)")
    build.add_argument("--out", type=Path, required=True, help="folder for the shards")
    build.add_argument(
        "--root", type=Path, help="folder that holds the datasets (overrides `root` in the YAML)"
    )
    build.add_argument("--workers", type=int, default=2, help="processes; the bytes do not depend on it")
    build.add_argument("--shard-mb", type=int, default=256, help="source megabytes planned per shard")
    build.set_defaults(run=run_build)

    check = commands.add_parser("check", help="verify every member of every shard; exit status 1 on a fault")
    check.add_argument("folder", type=Path, help="folder of shards")
    check.set_defaults(run=run_check)

    show = commands.add_parser("show", help="print the sources as a table and write a contact sheet (PNG)")
    show.add_argument("folder", type=Path, help="folder of shards")
    show.add_argument("--out", type=Path, help="picture to write (default: FOLDER/contact-sheet.png)")
    show.add_argument("--per-group", type=int, default=8, help="pictures for each modality (default: 8)")
    show.set_defaults(run=run_show)


def run_build(arguments: argparse.Namespace) -> int:
    """Build, then say what was written, refused and held out."""
    from ..data.build import build
    from ..data.collection import Collection
    from ..data.config import find_config
    from .console import progress_bar, say, size

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


def run_check(arguments: argparse.Namespace) -> int:
    """Verify checksums, structure and counts; returns 1 when a fault was found."""
    from ..data.shards.check import check
    from .console import print_table, progress_bar, say

    with progress_bar() as progress:
        faults = check(arguments.folder, progress=progress)
    print_table([{"shard": f.shard, "member": f.member or "", "reason": f.reason} for f in faults])
    say(
        f"{arguments.folder}: {len(faults)} faults"
        if faults
        else f"{arguments.folder}: every member is intact"
    )
    if faults:
        say("mend: delete the named shards and build again, or restore them from a copy")
    return 1 if faults else 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print the table of sources and write the contact sheet."""
    from ..data import open_shards
    from ..data.gallery import contact_sheet, table
    from .console import print_table, say

    shards = open_shards(arguments.folder)
    print_table(table(shards))
    out = arguments.out or arguments.folder / "contact-sheet.png"
    say(f"picture: {contact_sheet(shards, out, per_group=arguments.per_group)}")
    return 0
