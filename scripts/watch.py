"""`medloom watch RUN`: a pretraining run in the terminal, while it goes on here or on another machine."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

EXAMPLE = """examples:
  medloom watch runs/mae-2d
  medloom watch runs/mae-2d --once

Ctrl-C leaves the run alone; the screen stays until the run is over.
exit status: 1 when the run failed, is lost or stands still, or an alarm stands; else 0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom watch`."""
    parser.epilog = EXAMPLE
    parser.add_argument("folder", type=Path, metavar="RUN", help="run folder of `medloom pretrain`")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks (default: 2)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw until the run is over, or once where the output is no terminal."""
    from ..pretrain.monitor.status import OVER, Follower
    from .console import show
    from .watch_frame import frame, screen

    follower = Follower(arguments.folder)
    status = follower.look()
    if arguments.once or not sys.stdout.isatty():
        show(frame(arguments.folder, status))
        return int(status.wrong)
    try:
        with screen() as draw:
            draw(frame(arguments.folder, status))
            while status.state not in OVER:
                time.sleep(max(0.1, arguments.every))
                status = follower.look()
                draw(frame(arguments.folder, status))
    except KeyboardInterrupt:
        return 0
    return int(status.wrong)
