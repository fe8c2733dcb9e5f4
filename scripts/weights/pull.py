"""`medloom weights pull`: an encoder into the hub's cache, or as plain files into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights pull`."""
    parser.add_argument("name", help="a name of `medloom weights list`, or hf-hub:ORG/NAME[@REVISION]")
    parser.add_argument(
        "--to", type=Path, metavar="DIR",
        help="also copy the files into this new folder, to take to a machine without a network",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Fetch, and say how to use it."""
    from ...data.errors import ConfigError
    from ...pretrain.hub.pull import pull
    from ...pretrain.zoo.record import split_name
    from ..console import say, size

    other = split_name(arguments.name)
    if other is not None:
        if other[1] is not None:
            raise ConfigError(
                f"{arguments.name}: names a file that is here: leave out @{other[1]} to fetch it"
            )
        return _of_zoo(other[0], arguments.to)
    pulled = pull(arguments.name, arguments.to)
    name = str(pulled.folder) if arguments.to is not None else pulled.pinned
    say(f"{pulled.pinned}: {size(pulled.bytes)} in {pulled.folder}")
    say(f'load_encoder("{name}")')
    return 0


def _of_zoo(name: str, to: Path | None) -> int:
    """Fetch the file of an encoder of others."""
    from ...pretrain.zoo.download import pulled
    from ..console import say

    path = pulled(name, to)
    say(f"{name}: {path}" if path is not None else f"{name}: in timm's cache")
    say(f'load_encoder("{f"zoo:{name}@{path}" if to is not None else name}")')
    return 0
