"""`medloom weights list`: the registry as a table."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights list`."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from ...pretrain.hub.registry import registry
    from ..console import print_table, say, size

    releases = registry()
    rows = [
        {
            "name": release.name,
            "network": f"{release.architecture} {release.ndim}D",
            "parameters": f"{release.parameters / 1e6:.3g} M" if release.parameters else "",
            "size": size(release.bytes) if release.bytes else "",
            "licence": release.licence,
            "files": release.where,
            "here": "yes" if release.here() else "no",
            "what it is": release.title,
        }
        for release in releases.values()
    ]
    if not rows:
        say(
            "no encoder is released yet; load one by hf-hub:ORG/NAME, or add a registry of yours "
            "(MEDLOOM_WEIGHTS)"
        )
    print_table(rows)
    return 0
