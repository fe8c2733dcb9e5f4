"""`medloom catalog report-error`: print a patch that corrects a record."""

from __future__ import annotations

import argparse

from .output import add_own

EPILOG = """example:
  medloom catalog report-error sliver07 licence=CC-BY-4.0 \\
    --evidence https://zenodo.org/records/2597908 > fix.patch
  git apply --check fix.patch      # in a checkout of medloom; then git apply, and open a pull request
  medloom catalog report-error sliver07 --relation shares-cases:lits --evidence https://...

Columns are those of `medloom catalog show ID --format csv`; a list is written ct;mri, an empty value
is unknown."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("id", help="dataset id")
    parser.add_argument("overrides", nargs="*", metavar="COLUMN=VALUE", help="what it should say")
    parser.add_argument("--relation", metavar="RELATION:ID", help="a relation that is missing")
    parser.add_argument("--evidence", metavar="URL", required=True, help="where it can be read")
    add_own(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the patch."""
    from ...data.catalog.corrections import correct, relate
    from ...data.errors import ConfigError
    from .output import load, write

    catalog = load(arguments)
    dataset = catalog[arguments.id]
    changes = dict(_split(item) for item in arguments.overrides)
    if bool(changes) == bool(arguments.relation):
        raise ConfigError(f"{dataset.id}: give COLUMN=VALUE, or --relation RELATION:ID (one of the two)")
    if arguments.relation:
        relation, _, other = arguments.relation.partition(":")
        known = {item.id for item in catalog if item.origin == "built-in"}
        write(relate(dataset.id, relation, other, arguments.evidence, known=known))
    else:
        write(correct(dataset, changes, arguments.evidence))
    return 0


def _split(item: str) -> tuple[str, str]:
    """(column, value) of COLUMN=VALUE, the value as it is written.

    Raises:
        ConfigError: no `=`.
    """
    from ...data.errors import ConfigError

    column, sign, value = item.partition("=")
    if not sign:
        raise ConfigError(f"expected COLUMN=VALUE, found {item!r}; write e.g. licence=CC-BY-4.0")
    return column.strip(), value.strip()
