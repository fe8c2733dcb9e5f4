"""`medloom methods`: the objectives, what they are good for, and which encoders they run with."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom methods`."""
    parser.add_argument("name", nargs="?", help="one method: all about it, refusals and recipes included")
    parser.add_argument("--markdown", action="store_true", help="the tables of docs/methods.md")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    from ..data.errors import ConfigError, nearest
    from ..pretrain.encoders import ENCODERS
    from ..pretrain.methods import cross_table, markdown
    from ..pretrain.objectives import OBJECTIVES
    from .console import print_table, progress_bar, say

    name = arguments.name
    if name is not None and name not in OBJECTIVES:
        raise ConfigError(f"methods: unknown method {name!r}{nearest(name, set(OBJECTIVES))}")
    with progress_bar() as progress:
        progress(0, 1, "build a network of each family")
        rows = cross_table()
    if arguments.markdown:
        print(markdown(rows))
        return 0
    if name is None:
        print_table([
            {"method": r.name, "what it is": r.facts.title, "paper": r.facts.paper,
             "cost of a step": r.facts.cost, "good for": r.facts.good_for}
            for r in rows
        ])  # fmt: skip
        families = [f for f in ENCODERS if any(f in r.runs or f in r.refused for r in rows)]
        print_table([{"method": r.name, **{f: r.runs.get(f, "-") for f in families}} for r in rows])
        say("`medloom methods NAME` says why a pair is refused, and which recipes there are")
        return 0
    row = next(r for r in rows if r.name == name)
    facts = row.facts
    say(f"{row.name}: {facts.title} ({facts.paper})")
    for word, text in (("predicts", facts.predicts), ("good for", facts.good_for), ("cost", facts.cost)):
        say(f"  {word}: {text}")
    say("  a step costs that many plain forward and backward passes of the encoder on one view")
    print_table([
        *({"encoder": family, "runs": axes, "why not": ""} for family, axes in row.runs.items()),
        *({"encoder": family, "runs": "-", "why not": why} for family, why in row.refused.items()),
    ])  # fmt: skip
    say(f"recipes: {', '.join(row.recipes) or 'none'}")
    return 0
