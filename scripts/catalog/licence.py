"""`medloom catalog licence`: effective terms of a mixture of datasets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .output import add_format, add_own

if TYPE_CHECKING:
    from ...data.catalog.records import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = "Facts for planning, not legal advice: read the terms on each dataset's own page."
    parser.add_argument("ids", nargs="+", metavar="ID", help="dataset ids")
    add_format(parser)
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the terms of each and of all."""
    from ...data.catalog.licences import mixture, terms
    from ...data.catalog.origins import origins
    from ...data.catalog.plain import plain_terms
    from .output import load, write_csv, write_json

    catalog = load(arguments)
    datasets = [catalog[name] for name in dict.fromkeys(arguments.ids)]
    whole = mixture(datasets)
    stricter = origins(catalog, datasets)
    rows = [
        {"dataset": d.id, "licence": d.licence or "unknown", **plain_terms(terms(d.licence)),
         "basis": d.basis.value, "notes": d.notes if "licence" in d.notes.lower() else ""}
        for d in datasets
    ]  # fmt: skip
    if arguments.format == "csv":
        write_csv(rows)
    elif arguments.format == "json":
        write_json({
            "datasets": rows, "effective": plain_terms(whole.terms), "decided_by": whole.decided_by,
            "unknown": whole.unknown, "conflicts": whole.conflicts, "stricter_origins": stricter,
            "weights": whole.weights,
        })  # fmt: skip
    else:
        _print(datasets, rows, whole, stricter)
    return 0


def _print(datasets: list[Dataset], rows: list[dict], whole, stricter: list[str]) -> None:
    from ...data.catalog.licences import terms
    from ..console import print_table, say
    from .output import legend

    print_table([
        {"dataset": f"{d.id} {d.mark}".strip(), "licence": d.licence or "unknown",
         "restricts to": terms(d.licence).words, "notes on the licence": row["notes"]}
        for d, row in zip(datasets, rows, strict=True)
    ])  # fmt: skip
    say()
    say(f"together: {whole.terms.words}")
    for word, ids in whole.decided_by.items():
        if word != "attribution":
            say(f"  {word} because of {', '.join(ids)}")
    if whole.unknown:
        say(f"  terms not wholly known: {', '.join(whole.unknown)}")
    if named := whole.decided_by.get("attribution"):
        say(f"  to be named: {', '.join(named)}")
    for sentence in whole.conflicts:
        say(f"  conflict: {sentence}")
    for sentence in stricter:
        say(f"  the same cases elsewhere: {sentence}")
    say(f"may weights trained on it be shared: {whole.weights}")
    if marks := legend(datasets):
        say(marks)
    say("facts for planning, not legal advice")
