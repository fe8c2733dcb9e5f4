"""`medloom evaluate RUN`: test-split scores with intervals, a per-case table and a report."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom evaluate`."""
    parser.epilog = "example:\n  medloom evaluate runs/busi --pretrain-run runs/mae-2d"
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of `medloom finetune`")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="default: test")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/evaluation)")
    parser.add_argument(
        "--pretrain-run", type=Path, action="append", default=[], help="pretraining run to show in the report"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every arm of the run and print the table."""
    from ..finetune.evaluation import evaluate
    from .console import print_table, progress_bar, say

    with progress_bar() as progress:
        folder = evaluate(
            arguments.run_folder, split=arguments.split, out=arguments.out, progress=progress,
            pretrain_runs=arguments.pretrain_run,
        )  # fmt: skip
    print_table(summary_rows(folder))
    say(f"cases:  {folder / 'cases.csv'}")
    say(f"report: {folder / 'report.html'}")
    return 0


def summary_rows(folder: Path) -> list[dict[str, object]]:
    """Rows `task, arm, metric, structure, mean, 95 % interval, n` of an evaluation folder's summary.json."""
    import json

    summary = json.loads((folder / "summary.json").read_text())
    return [
        {
            "task": summary["task"],
            "arm": arm,
            "metric": row["metric"],
            "structure": row.get("structure") or "",
            "mean": f"{row['mean']:.3f}",
            "95 % interval": f"{row['low']:.3f} to {row['high']:.3f}",
            "n": row["n"],
        }
        for arm, rows in summary["arms"].items()
        for row in rows
    ]
