"""`medloom curve TASK --encoder RUN`: label efficiency, several draws of each number of labels."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import STOPPED

EXAMPLE = """example:
  medloom curve realdata-busi --encoder runs/mae-2d --protocol logistic --out runs/busi-curve
  medloom curve realdata-derm --encoder runs/mae-2d --sizes 1,5,10 --draws 10 --out runs/derm steps=300"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom curve`."""
    parser.epilog = EXAMPLE
    parser.add_argument("task", help="YAML record of the task (a path, or the name of a shipped one)")
    parser.add_argument("--encoder", required=True, help="as for `medloom finetune`")
    parser.add_argument("--root", help="folder that holds the task's dataset (default: as the record says)")
    parser.add_argument("--protocol", help="as for `medloom finetune`")
    parser.add_argument(
        "--sizes", default="1%,5%,10%,25%,50%,100%",
        help="shares of the training subjects (10%%) or subjects a class (5); default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--draws", type=int, default=5, help="subsets of each size (default: 5)")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of all runs (continued when it exists)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=500")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, then write the report."""
    from ..finetune.curves import curves, parse_size, run_curve
    from ..finetune.report import write_report
    from ..finetune.report_inputs import read_inputs
    from .console import print_table, progress_bar, say

    sizes = [parse_size(text) for text in arguments.sizes.split(",")]
    named = {"encoder": arguments.encoder, "root": arguments.root, "protocol": arguments.protocol}
    dotlist = [f"{key}={value}" for key, value in named.items() if value is not None]
    with progress_bar() as progress:
        folders = run_curve(
            arguments.task, [*dotlist, *arguments.overrides], arguments.out,
            sizes=sizes, draws=arguments.draws, progress=progress,
        )  # fmt: skip
    if folders is None:
        say(f"stopped before the last run; the same command continues ({arguments.out})")
        return STOPPED
    found = curves(read_inputs(folders, []).evaluations)
    print_table([
        {
            "labels": point.size.name, "subjects": f"{point.subjects:.0f}", "arm": point.arm,
            curve.metric: f"{point.value.mean:.3f}",
            "95 % interval": f"{point.value.low:.3f} to {point.value.high:.3f}", "runs": point.runs,
        }
        for curve in found for point in curve.points
    ])  # fmt: skip
    page = write_report(arguments.out / "report.html", evaluations=folders, title="label efficiency")
    say(f"report: {page}")
    return 0
