"""`medloom runs [FOLDER ...]`: the pretraining runs below some folders, one line each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLE = """examples:
  medloom runs
  medloom runs runs /data/runs
  medloom runs runs --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom runs`."""
    parser.epilog = EXAMPLE
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", default=[Path("runs")],
                        help="searched with all that is below (default: runs)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    import json

    from ..pretrain.monitor.table import describe, find_runs
    from .console import print_table, say

    found = [describe(folder) for folder in find_runs(arguments.folders)]
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        say(f"no runs of `medloom pretrain` below {', '.join(map(str, arguments.folders))}")
        return 0
    print_table([_line(values) for values in found])
    return 0


def _line(values: dict[str, Any]) -> dict[str, object]:
    from .console import size
    from .watch_frame import duration

    def written(key: str, form: str) -> str | None:
        return None if values[key] is None else format(values[key], form)

    steps = f" / {values['steps']:,}" if values["steps"] else ""
    probe = None if values["probe"] is None else f"{values['probe']} {values['best_probe']:.3f}"
    return {
        "run": values["run"],
        "state": values["state"] + (" ALARM" if values["alarms"] and values["state"] != "finished" else ""),
        "method": values["method"], "encoder": values["encoder"],
        "step": f"{values['step']:,}{steps}",
        "left": None if values["seconds_left"] is None else duration(values["seconds_left"]),
        "loss": written("loss", ".4g"), "best probe": probe, "data wait": written("data_wait", ".1%"),
        "last row": None if values["row_age"] is None else f"{duration(values['row_age'])} ago",
        "size": size(values["bytes"]),
    }  # fmt: skip
