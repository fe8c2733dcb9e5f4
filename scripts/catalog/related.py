"""`medloom catalog related`: every dataset that shares or may share cases with one, and by which path."""

from __future__ import annotations

import argparse

from .output import add_format, add_own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("id", help="dataset id")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the relatives."""
    from ...data.catalog.graph import SIGNS
    from ...data.catalog.plain import plain_relative
    from ..console import print_table, say
    from .output import load, write_csv, write_json

    catalog = load(arguments)
    found = catalog.related(arguments.id)
    if arguments.format == "json":
        write_json([plain_relative(relative) for relative in found])
        return 0
    rows = [
        {"dataset": relative.id, "cases in common": relative.level.value, "basis": relative.basis.value,
         "path": relative.steps}
        for relative in found
    ]  # fmt: skip
    if arguments.format == "csv":
        write_csv(rows)
        return 0
    print_table(rows)
    if not rows:
        say(f"{catalog[arguments.id].id}: no relation is recorded; that is no proof of none")
        return 0
    certain = sum(relative.level == "certain" for relative in found)
    say(f"{certain} share cases by the relations recorded, {len(found) - certain} may (left open)")
    say(SIGNS)
    return 0
