"""`medloom catalog stats`: counts by facet, as tables, JSON or CSV, and as pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from .output import add_format, add_own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures (PNG); none without")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the counts and draw them."""
    from ...data.catalog.pictures import draw
    from ...data.catalog.statistics import statistics
    from ..console import print_table, say
    from .output import load, write_csv, write_json

    report = statistics(load(arguments))
    if arguments.format == "json":
        write_json(report)
    elif arguments.format == "csv":
        write_csv([
            {"facet": facet, "value": value, "datasets": count}
            for facet, counts in report["by"].items() for value, count in counts.items()
        ])  # fmt: skip
    else:
        say(f"{report['datasets']:,} datasets; one with two modalities counts in both")
        for facet, counts in report["by"].items():
            say()
            print_table([{facet: value, "datasets": count} for value, count in counts.items()])
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        pictures = draw(report, arguments.out)
        if arguments.format == "table":
            say(f"pictures: {', '.join(str(path) for path in pictures)}")
    return 0
