"""`medloom weights verify DIR`: is an artefact whole, and does it still give its features?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...pretrain.release.verify import Check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights verify`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of an artefact")
    parser.add_argument(
        "--run", dest="run_folder", type=Path, metavar="RUN",
        help="pretraining run that it came from: its probe scores are computed again, if its shards are here",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print every check; returns 1 when one failed."""
    from ...pretrain.release.verify import verify
    from ..console import say

    verdict = verify(arguments.folder, arguments.run_folder)
    show(verdict.checks)
    failed = len(verdict.failed)
    say(f"{arguments.folder}: {f'{failed} of {len(verdict.checks)} checks failed' if failed else 'sound'}")
    return 1 if failed else 0


def show(checks: Sequence[Check]) -> None:
    """The checks as a table."""
    from ..console import print_table

    print_table([{"check": c.name, "result": c.result, "what was found": c.detail} for c in checks])
