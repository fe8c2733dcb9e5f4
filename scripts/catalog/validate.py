"""`medloom catalog validate`: check the packaged tables and the user's own records."""

from __future__ import annotations

import argparse
from pathlib import Path

from .output import add_own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("tables", nargs="?", type=Path, help="folder of tables (default: the packaged ones)")
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print every fault; 1 when there is one."""
    from ...data.catalog.parsing import TABLES
    from ...data.catalog.validate import faults
    from ..console import say
    from .output import load

    found = faults(arguments.tables or TABLES)
    for fault in found:
        say(fault)
    catalog = load(arguments)  # raises at a fault of an own record
    own = sum(dataset.origin != "built-in" for dataset in catalog)
    say(
        f"{len(found)} faults; {len(catalog) - own:,} datasets, {own} own ones, "
        f"{len(catalog.overlaps)} relations, {len(catalog.msd)} Decathlon tasks, "
        f"{len(catalog.medmnist)} MedMNIST sets"
    )
    return 1 if found else 0
