"""`medloom gallery`: a folder of shards as a page to look through, opened from disk."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  medloom gallery shards/realdata --out gallery
  medloom gallery shards/realdata --out gallery --per-cell 30 --slices 80 --size-mb 300"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("folder", help="folder of shards, or its URL")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and its pictures")
    parser.add_argument(
        "--per-cell", type=int, default=12, metavar="N",
        help="samples of each modality and organ, at most (default: 12)",
    )  # fmt: skip
    parser.add_argument(
        "--slices", type=int, default=40, metavar="N", help="slices of a volume in each plane (default: 40)"
    )
    parser.add_argument(
        "--size-mb",
        type=float,
        default=64,
        metavar="MB",
        help="the whole folder, at most (default: 64)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the gallery and say where it is."""
    from ..data import open_shards
    from ..data.pages.frames import Look
    from ..data.pages.gallery import write_gallery
    from .console import progress_bar, say, size

    shards = open_shards(arguments.folder)
    with progress_bar() as progress:
        made = write_gallery(
            shards, arguments.out, per_cell=arguments.per_cell, size_mb=arguments.size_mb,
            look=Look(slices=arguments.slices), progress=progress,
        )  # fmt: skip
    say(f"{made.path}: {made.shown} samples of {made.cells} kinds (modality, organ), {size(made.bytes)}")
    if made.left_out:
        say(f"left out for want of room: {made.left_out} samples; --size-mb gives more")
    say("open it in a browser; it needs no server")
    return 0
