"""`medloom diagnose`: what the curves of a pretraining run mean, and what usually mends them."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  medloom diagnose runs/mae-2d

exit status: 1 when an alarm stands, so that a script can stop a run that has collapsed; else 0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom diagnose`."""
    parser.epilog = EXAMPLE
    parser.add_argument("folder", type=Path, metavar="RUN", help="a pretraining run, finished or not")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the findings, the gravest first."""
    from ..pretrain.diagnose import ALARM, diagnose
    from .console import print_table, say

    findings = diagnose(arguments.folder)
    rows = [
        {
            "": finding.level,
            "curve": finding.about,
            "what it says": finding.says,
            "what mends it": finding.mend,
        }
        for finding in findings
    ]
    print_table(rows, title=str(arguments.folder))
    alarms = sum(finding.level == ALARM for finding in findings)
    say(f"{alarms} alarm{'' if alarms == 1 else 's'}; docs/diagnostics.md explains the curves")
    return int(alarms > 0)
