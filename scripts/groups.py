"""Commands with sub-commands (`medloom shards build`): a folder, a table in its `__init__`, a module each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from keyword import iskeyword


def add_commands(parser: argparse.ArgumentParser, commands: Mapping[str, str], package: str) -> None:
    """Declare the sub-commands of a group.

    Args:
        commands: name -> one line of help, in order of work.
        package: whose modules they are: `some-name` is module some_name, `import` is import_; each has
            `add_arguments(parser)` and `run(arguments) -> status`, and imports what is heavy inside `run`.
    """
    children = parser.add_subparsers(dest="action", metavar="|".join(commands), required=True)
    for name, line in commands.items():
        child = children.add_parser(
            name, help=line, description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module = importlib.import_module(f".{name.replace('-', '_')}{'_' * iskeyword(name)}", package)
        module.add_arguments(child)
        child.set_defaults(run=module.run)
