"""`medloom shards show`: the sources as a table, and a contact sheet."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, help="picture to write (default: FOLDER/contact-sheet.png)")
    parser.add_argument("--per-group", type=int, default=8, help="pictures for each modality (default: 8)")


def run(arguments: argparse.Namespace) -> int:
    """Print the table of sources and write the contact sheet."""
    from ...data import open_shards
    from ...data.inspect.gallery import contact_sheet, table
    from ..console import print_table, say

    shards = open_shards(arguments.folder)
    print_table(table(shards))
    out = arguments.out or arguments.folder / "contact-sheet.png"
    say(f"picture: {contact_sheet(shards, out, per_group=arguments.per_group)}")
    return 0
