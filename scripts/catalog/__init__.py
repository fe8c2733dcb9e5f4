"""`medloom catalog ...`: facts about 1,314 public datasets: find, compare, keep apart, correct.

A table of sub-commands, each one short module; see groups.py.
"""

from __future__ import annotations

import argparse

from ..groups import add_commands

# name -> one line of help; the module has the name of the sub-command. In order of work.
COMMANDS: dict[str, str] = {
    "search": "find datasets by words, modality, organ, task, licence, access, size",
    "show": "all facts of one dataset, and its route: challenge, metrics, baselines, commands here",
    "related": "datasets that share or may share cases with one, with the path of relations",
    "clean-for": "what may be pretrained on without touching a held-out task",
    "licence": "effective terms of a mixture of datasets, and whether weights may be shared",
    "page": "the whole catalogue as one HTML file: facets, search, relations as graphs; no server",
    "stats": "count by modality, organ, category, year, licence, access: tables and pictures",
    "validate": "check the tables, or your own records; exit status 1 on a fault",
    "report-error": "print a patch that corrects a record, for `git apply` or a pull request",
}

EXAMPLE = """example:
  medloom catalog search "liver ct" --task segmentation --licence commercial --access open
  medloom catalog show msd-task03-liver
  medloom catalog clean-for msd-task03-liver --format csv > may-pretrain-on.csv
  medloom catalog licence msd-task03-liver lits chaos

Rows marked ~ or ~~ hold facts that were recalled and not re-read; check them before you rely on them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLE
    add_commands(parser, COMMANDS, __name__)
