"""`medloom weights ...`: encoders that were released, ours and others'.

A table of sub-commands, each one short module; see groups.py.
"""

from __future__ import annotations

import argparse

from ..groups import add_commands

# name -> one line of help; the module has the name of the sub-command. In order of work.
COMMANDS: dict[str, str] = {
    "list": "released encoders: what they are, their size and licence, and whether they are here",
    "info": "all about one encoder: input, training data and licences, what was held out, scores",
    "pull": "fetch an encoder into the cache, or into a folder to take along",
    "convert": "another form (artefact, timm, nnU-Net, ONNX), other channels, or a 2D encoder made 3D",
    "verify": "an artefact: hash, record, reference features, card and licences; 1 where one is wrong",
    "push": "release a run on the Hugging Face hub, through a gate that loads it in a clean process",
}

EXAMPLE = """example:
  medloom weights list
  medloom weights pull hf-hub:ORG/NAME --to encoders/name
  medloom weights info encoders/name"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands."""
    parser.epilog = EXAMPLE
    add_commands(parser, COMMANDS, __name__)
