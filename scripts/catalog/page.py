"""`medloom catalog page`: the catalogue as one HTML file that opens from disk."""

from __future__ import annotations

import argparse
from pathlib import Path

from .output import add_own


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for index.html")
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from ...data.pages.catalog import write_catalog_page
    from ..console import say, size
    from .output import load

    catalog = load(arguments)
    path = write_catalog_page(catalog, arguments.out)
    say(f"{path}: {len(catalog):,} datasets, {size(path.stat().st_size)}; open it in a browser")
    return 0
