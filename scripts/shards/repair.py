"""`medloom shards repair`: mend what `check` finds. Prints the plan; --apply does it."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  medloom shards repair shards/realdata                                  the plan, nothing is changed
  medloom shards repair shards/realdata --apply                          what the folder itself can mend
  medloom shards repair shards/realdata --from s3://bucket/realdata --apply
  medloom shards repair shards/realdata --rebuildable --apply            then build: makes just these again
  medloom shards repair shards/realdata --drop --apply                   go on without what is lost"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--from", dest="source", metavar="PLACE", help="folder or URL of the same shards")
    last = parser.add_mutually_exclusive_group()
    last.add_argument(
        "--rebuildable", action="store_true",
        help="without a copy: remove the receipts of damaged shards, so that the next build makes them again",
    )  # fmt: skip
    last.add_argument(
        "--drop", action="store_true",
        help="without a copy: take lost samples out of shards and manifest, and list them in dropped.jsonl",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="do it; without, the plan is printed")
    parser.add_argument("--workers", type=int, default=1, help="processes that check (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Plan, print, and with --apply do; returns 1 while faults remain."""
    from ...data.shards.repair import apply, plan
    from ..console import print_table, progress_bar, say

    folder = arguments.folder
    with progress_bar() as progress:
        made = plan(
            folder, arguments.source, rebuildable=arguments.rebuildable, drop=arguments.drop,
            workers=arguments.workers, progress=progress,
        )  # fmt: skip
    if not made.steps:
        say(f"{folder}: nothing to repair")
        return 0
    print_table([{"file": s.file, "wrong": s.wrong, "step": s.do, "how": s.how} for s in made.steps])
    if not arguments.apply:
        able = len(made.steps) - len(made.of("leave"))
        say(
            f"{folder}: {able} of {len(made.steps)} faults can be mended so; nothing was changed: add --apply"
        )
        return 1
    with progress_bar() as progress:
        remain = apply(made, progress)
    print_table([{"remains": step.file, "because": reason} for step, reason in remain])
    say(f"{folder}: {len(made.steps) - len(remain)} of {len(made.steps)} faults mended")
    return 1 if remain else 0
