"""`medloom shards ...`: from a collection to shards, and all that is done with shards.

A table of sub-commands, each one short module; see groups.py.
"""

from __future__ import annotations

import argparse

from ..groups import add_commands

# name -> one line of help; the module has the name of the sub-command (import_ for import). In order of work.
COMMANDS: dict[str, str] = {
    "build": "read a collection and write shards; a killed build continues",
    "import": "read shards of webdataset, LitData or nnU-Net and write shards of medloom",
    "export": "write samples as plain NIfTI, PNG and JPEG files with a table",
    "check": "verify every member of every shard; exit status 1 on a fault",
    "repair": "mend what check finds: from the folder itself, a copy, the next build, or by dropping",
    "stats": "count and describe the samples from their metadata: tables, stats.json, pictures",
    "bench": "measure how fast they load here, what limits, and whether a step would wait",
    "show": "print the sources as a table and write a contact sheet (PNG)",
}

EXAMPLE = """example:
  medloom shards build realdata --root /data/realdata --out shards/realdata --workers 2
  medloom shards check shards/realdata
  medloom shards show shards/realdata --out realdata.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLE
    add_commands(parser, COMMANDS, __name__)
