"""`medloom catalog clean-for`: what may be pretrained on without touching a held-out task."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .output import add_format, add_own

if TYPE_CHECKING:
    from ...data.catalog.clean import CleanFor

EPILOG = """TASK is a dataset id (msd-task03-liver) or a task record (realdata-derm), which stands for the
datasets it lists under `related`. Excluded are the task itself and every relative, certain or possible."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("task", metavar="TASK", help="dataset id or task record")
    parser.add_argument("--list", action="store_true", help="list the clean datasets in the table too")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the answer."""
    from ...data.catalog.plain import plain, plain_relative
    from .output import load, write_csv, write_json

    found = load(arguments).clean_for(arguments.task)
    doubtful = {dataset.id for dataset in found.unknown}
    if arguments.format == "csv":
        write_csv(
            [plain(dataset) | {"same_cases_unknown": dataset.id in doubtful} for dataset in found.clean]
        )
    elif arguments.format == "json":
        write_json({
            "task": found.task, "targets": list(found.targets),
            "clean": [dataset.id for dataset in found.clean],
            "excluded": [plain_relative(relative) for relative in found.excluded],
            "unknown": sorted(doubtful), "not_known": list(found.limits),
        })  # fmt: skip
    else:
        _print(found, everything=arguments.list)
    return 0


def _print(found: CleanFor, *, everything: bool) -> None:
    from ...data.catalog.graph import SIGNS
    from ..console import print_table, say
    from .output import legend, short

    say(f"held out: {', '.join(found.targets)}")
    rows = [
        {"excluded": relative.id, "cases in common": relative.level.value, "basis": relative.basis.value,
         "path": relative.steps}
        for relative in found.excluded
    ]  # fmt: skip
    print_table(rows)
    if rows:
        say(SIGNS)
    say()
    if everything:
        print_table([short(dataset) for dataset in found.clean], title="no recorded relation")
        say(legend(found.clean))
        say()
    else:
        say(f"{len(found.clean):,} datasets have no recorded relation to it (--list, --format csv)")
    if found.unknown:
        print_table(
            [short(dataset) for dataset in found.unknown[:20]],
            title="of these, alike enough that the same cases are thinkable: compare by content",
        )
        if len(found.unknown) > 20:
            say(f"... and {len(found.unknown) - 20:,} more (--format json)")
        say(legend(found.unknown[:20]))
        say()
    say("cannot be known from the tables:")
    for sentence in found.limits:
        say(f"  - {sentence}")
