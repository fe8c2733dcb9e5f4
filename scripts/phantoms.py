"""`medloom phantoms`: write the built-in collection (synthetic, never patient data) as real image files."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom phantoms`."""
    parser.add_argument("--out", type=Path, default=Path("shards/phantoms-source"), help="folder to write")
    parser.add_argument("--subjects", type=int, default=24, help="subjects a dataset (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate the phantoms and say what to do next."""
    from ..data.phantoms.phantoms import generate
    from .console import progress_bar, say

    with progress_bar() as progress:
        collection = generate(
            arguments.out, seed=arguments.seed, subjects=arguments.subjects, progress=progress
        )
    say(f"{collection}")
    say(f"next: medloom shards build {collection} --out shards/phantoms")
    return 0
