"""`medloom shards export`: samples as plain NIfTI, PNG and JPEG files with a table."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the files; continued when it has some"
    )
    parser.add_argument(
        "--sources", nargs="+", default=[], metavar="ID", help="sources or datasets (default: all)"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="only the samples whose keys FILE lists, one a line"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N samples of each source")
    parser.add_argument(
        "--layout",
        choices=("plain", "nnunet"),
        default="plain",
        help="nnunet: imagesTr, labelsTr, dataset.json",
    )
    parser.add_argument("--workers", type=int, default=2, help="threads (default: 2)")


def run(arguments: argparse.Namespace) -> int:
    """Export, then say where; returns 1 when a sample could not be read."""
    from ...data.errors import ShardError
    from ...data.interop.export import export
    from ..console import progress_bar, say

    keys: list[str] = []
    if arguments.keys is not None:
        try:
            keys = arguments.keys.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ShardError(f"{arguments.keys}: cannot be read as a list of keys ({error})") from error
        if not keys:
            raise ShardError(f"{arguments.keys}: lists no key; write one a line")
    with progress_bar() as progress:
        result = export(
            arguments.folder, arguments.out, sources=arguments.sources, keys=keys, limit=arguments.limit,
            layout=arguments.layout, workers=arguments.workers, progress=progress,
        )  # fmt: skip
    done = result.samples - len(result.failures)
    say(f"{arguments.out}: {done} samples, {result.written} new files, licences in LICENCES.txt")
    for source, reason in result.failures:
        say(f"not exported: {source}: {reason}")
    if result.failures:
        say("mend: medloom shards check names the damaged shards; build them again, then export again")
    elif arguments.layout == "plain":
        say(f"next: medloom shards build {arguments.out / 'collection.yaml'} --out NEW builds them again")
    return 1 if result.failures else 0
