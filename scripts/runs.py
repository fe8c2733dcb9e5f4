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
    from .console import say, show

    found = [describe(follower) for follower in find_runs(arguments.folders)]
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        say(f"no runs of `medloom pretrain` below {', '.join(map(str, arguments.folders))}")
        return 0
    show(_table(found, arguments.folders))
    return 0


def _table(found: list[dict[str, Any]], roots: list[Path]) -> Any:
    """A line a run; a narrow terminal cuts the encoder and folds the name, and keeps the numbers whole."""
    from rich.table import Table
    from rich.text import Text

    from .console import duration, size
    from .watch_frame import COLOURS

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("encoder", no_wrap=True, overflow="ellipsis", min_width=6)
    for head in ("step", "left", "loss", "best probe", "data wait", "row age", "size"):
        table.add_column(head, justify="right", no_wrap=head != "data wait")
    for values in found:
        alarm = " ALARM" if values["alarms"] and values["state"] != "finished" else ""
        colour = "red" if alarm else COLOURS.get(values["state"], "white")
        steps = f"/{values['steps']:,}" if values["steps"] else ""
        table.add_row(
            Text(_name(values["run"], roots)), Text(values["state"] + alarm, style=colour), values["method"],
            Text(values["encoder"]), f"{values['step']:,}{steps}",
            "" if values["seconds_left"] is None else duration(values["seconds_left"], short=True),
            "" if values["loss"] is None else f"{values['loss']:.4g}",
            "" if values["probe"] is None else f"{values['probe']} {values['best_probe']:.3f}",
            "" if values["data_wait"] is None else f"{100 * values['data_wait']:.1f} %",
            "" if values["row_age"] is None else duration(values["row_age"], short=True),
            size(values["bytes"]),
        )  # fmt: skip
    return table


def _name(folder: str, roots: list[Path]) -> str:
    """Without the folder that was searched, where there is only one."""
    path = Path(folder)
    return str(path.relative_to(roots[0])) if len(roots) == 1 and path != roots[0] else folder
