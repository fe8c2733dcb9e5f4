"""`medloom weights list`: the registry as a table; with --zoo, the encoders of others."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom weights list`."""
    parser.add_argument(
        "--zoo", action="store_true", help="encoders of others, loaded and compared like ours"
    )
    parser.add_argument("--markdown", action="store_true", help="with --zoo: the table of docs/zoo.md")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    if arguments.zoo:
        return _zoo(arguments.markdown)
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


def _zoo(markdown: bool) -> int:
    from ...pretrain.zoo import table
    from ..console import print_table, say

    rows = table.rows()
    if markdown:
        print(table.markdown(rows))
        return 0
    print_table([{key: row[key] for key in ("name", "what it is", "licence", "checked")} for row in rows])
    say(
        "checked: against the class of its authors, by names only, or not; no hub was asked. "
        "`medloom weights info NAME` shows all of one"
    )
    return 0
