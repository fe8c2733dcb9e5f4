"""The `medloom` command: a table of sub-commands, each one short module that is imported only when named.

`medloom --help` answers in a few hundredths of a second because nothing heavy is imported before the
command is known. A MedloomError prints as one line and exits with 2; anything else keeps its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# name -> (module in this package, one line of help). The order is the order of work.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "check this machine: versions, GPU, disk, shards against ranks and workers, W&B"),
    "phantoms": ("phantoms", "generate the built-in collection of synthetic phantoms"),
    "catalog": ("catalog", "facts about 1,314 public datasets: search, relations, licences, routes"),
    "data": ("data", "from public datasets to a clean collection: fetch, and more"),
    "shards": ("shards", "build, check and show shards"),
    "gallery": ("gallery", "shards as a page to look through: modality x organ, slices, label maps"),
    "methods": ("methods", "pretraining methods: what each is good for, and with which encoders it runs"),
    "plan": ("plan", "predict time, memory, links, loader, storage and cost on 1 to 512 GPUs"),
    "pretrain": ("pretrain", "pretrain an encoder from shards"),
    "launch": ("launch", "a pretraining job for SLURM, torchrun, submitit, Kubernetes or SkyPilot"),
    "watch": ("watch", "a pretraining run in the terminal: progress, rates, probes, checkpoint, time left"),
    "runs": ("runs", "the pretraining runs below a folder: state, step, loss, best probe, size"),
    "diagnose": ("diagnose", "what a run's curves mean, and what usually mends them; 1 when an alarm stands"),
    "finetune": ("finetune", "fine-tune an encoder on a held-out task, beside the from-scratch baseline"),
    "curve": ("curve", "label efficiency: an encoder and its baselines at growing numbers of labels"),
    "tune": ("tune", "search a task's rates and augmentation on validation, then train and score once"),
    "evaluate": ("evaluate", "score a fine-tuned run on its test split: per-case table and report"),
    "predict": ("predict", "new images through a fine-tuned run: NIfTI, DICOM SEG or PNG label maps, CSV"),
    "benchmark": ("benchmark", "encoders x tasks x protocols x seeds as one grid, with a leaderboard"),
    "weights": ("weights", "released encoders: list, describe, fetch, convert, publish, verify"),
    "embed": ("embed", "features of a folder of images or of shards, as a table and a 2D map"),
    "export": ("export", "a fine-tuned network as ONNX or as a MONAI bundle, checked against torch"),
    "report": ("report", "put pretraining runs and evaluations on one HTML page"),
    "demo": ("demo", "the whole way on the built-in phantoms, in minutes on two CPU cores"),
}


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; with `only`, just that command's arguments (and imports) are loaded."""
    parser = argparse.ArgumentParser(
        prog="medloom",
        description="Self-supervised pretraining for medical images: collection, shards, encoder, report.",
        epilog="`medloom COMMAND --help` explains a command. Start with `medloom demo`.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="log debug messages")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, line) in COMMANDS.items():
        child = commands.add_parser(
            name, help=line, description=line[0].upper() + line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if name == only:
            importlib.import_module(f".{module}", __package__).add_arguments(child)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse `argv`; `key=value` words may stand anywhere, which argparse alone allows only before options."""
    arguments, rest = parser.parse_known_args(argv)
    strange = [word for word in rest if word.startswith("-") or "=" not in word]
    if rest and (strange or not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(strange or rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 (done), 1 (found faults), 2 (to be mended), 3 (stopped), 4 (rank lost)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    only = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser(only)
    arguments = parse(parser, argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"medloom {version('medloom')}")
        return 0
    if arguments.command is None:
        parser.print_help()
        return 0
    from ..data.errors import MedloomError
    from .console import complain, setup_logging

    # Read by OpenMP when torch is imported: threads that wait sleep instead of spinning. On a machine that is
    # shared, or has more processes than cores, steps of small networks are up to ten times faster.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    setup_logging(verbose=arguments.verbose)
    try:
        return int(arguments.run(arguments) or 0)
    except MedloomError as error:
        complain(error)
        return error.status
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to continue")
        return 130


if __name__ == "__main__":
    sys.exit(main())
