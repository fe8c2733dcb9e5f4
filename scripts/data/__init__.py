"""`medloom data ...`: from public datasets to a clean collection.

A table of sub-commands, each one short module; see groups.py.
"""

from __future__ import annotations

import argparse

from ..groups import add_commands

# name -> one line of help; the module has the name of the sub-command. In order of work.
COMMANDS: dict[str, str] = {
    "fetch": "download, verify and unpack a public dataset, and write its collection",
    "curate": "find copies, near copies, held-out relatives and faults: curation.json and contact sheets",
    "agreement": "measure how far annotators agree, and find annotations that do not fit: a page and JSON",
}

EXAMPLE = """example:
  medloom data fetch msd-task09-spleen --to datasets
  medloom shards build datasets/msd-task09-spleen/collection.yaml --out shards/spleen"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLE
    add_commands(parser, COMMANDS, __name__)
