"""`medloom shards check`: every member of every shard against its checksum."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--fast",
        action="store_true",
        help="indices, sizes and records only: seconds, blind to flipped pixels",
    )
    how.add_argument(
        "--quarantine", type=Path, metavar="FILE",
        help="check just the samples that a run could not read (quarantine.jsonl of its folder)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the faults as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify checksums, structure and counts; returns 1 when a fault was found."""
    from ...data.shards.check import check
    from ...data.shards.suspects import check_samples, listed
    from ..console import print_table, progress_bar, say

    folder = arguments.folder
    with progress_bar() as progress:
        if arguments.quarantine:
            samples = listed(arguments.quarantine)
            faults = check_samples(folder, samples, progress)
        else:
            faults = check(folder, progress, workers=arguments.workers, fast=arguments.fast)
    print_table([{"shard": f.shard, "member": f.member, "reason": f.reason} for f in faults])
    if arguments.json:
        from dataclasses import asdict

        from ...data.atomic import write_json

        write_json(arguments.json, {"folder": str(folder), "faults": [asdict(fault) for fault in faults]})
    if arguments.quarantine:
        bad = len({(f.shard, f.member.partition(".")[0]) for f in faults})
        say(f"{folder}: {bad} of {len(samples)} listed samples are damaged")
        if not faults:
            say(f"all can be read: delete {arguments.quarantine} to have them back in the run")
    else:
        sound = "indices, sizes and records are sound" if arguments.fast else "every member is intact"
        say(f"{folder}: {len(faults)} faults" if faults else f"{folder}: {sound}")
    if faults:
        say(f"mend: medloom shards repair {folder}")
    return 1 if faults else 0
