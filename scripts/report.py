"""`medloom report`: one self-contained HTML page from pretraining runs and evaluations."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom report`."""
    parser.epilog = (
        "example:\n  medloom report --run runs/mae-2d --evaluation runs/busi/evaluation --out report.html"
    )
    parser.add_argument(
        "--run", dest="runs", type=Path, action="append", default=[], help="a pretraining run folder"
    )
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], help="a folder of `medloom evaluate`"
    )
    parser.add_argument("--title", default="medloom report", help="heading of the page")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="page to write (default: report.html)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the page."""
    from ..data.errors import ConfigError
    from ..finetune.report import write_report
    from .console import say

    if not arguments.runs and not arguments.evaluation:
        raise ConfigError("nothing to report: name at least one --run or --evaluation folder")
    page = write_report(
        arguments.out, evaluations=arguments.evaluation, pretrain_runs=arguments.runs, title=arguments.title
    )
    say(f"report: {page}")
    return 0
