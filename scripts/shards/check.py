"""`medloom shards check`: every member of every shard against its checksum."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of shards")


def run(arguments: argparse.Namespace) -> int:
    """Verify checksums, structure and counts; returns 1 when a fault was found."""
    from ...data.shards.check import check
    from ..console import print_table, progress_bar, say

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
