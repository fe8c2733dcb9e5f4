"""`medloom pretrain CONFIG key=value ...`: the same command under plain Python, torchrun and srun."""

from __future__ import annotations

import argparse

from .console import STOPPED

EXAMPLE = """example:
  medloom pretrain tiny-mae-2d data.shards=shards/realdata out=runs/mae-2d
  medloom pretrain tiny-mae-2d data.shards=shards/realdata out=runs/mae-2d resume=true
  torchrun --nproc-per-node 8 -m medloom.scripts.cli pretrain base-mae-2d data.shards=/data/shards out=b"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom pretrain`."""
    parser.epilog = EXAMPLE
    parser.add_argument("config", help="YAML of the run (a path, or the name of a shipped one)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. trainer.steps=1000 out=runs/a"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Pretrain and say where the encoder is."""
    from ..finetune.report import write_report
    from ..pretrain.cluster.detect import is_main_process
    from ..pretrain.config import load_config
    from ..pretrain.ranks import any_rank
    from ..pretrain.run import pretrain
    from .console import progress_bar, say

    config = load_config(arguments.config, arguments.overrides)
    if is_main_process():
        with progress_bar() as progress:
            folder = pretrain(config, progress=progress)
        if any_rank(not (folder / "encoder.json").exists()):
            say(f"stopped before the last step; continue with the same command and resume=true ({folder})")
            return STOPPED
        say(f"run:    {folder}")
        page = write_report(folder / "report.html", evaluations=[], pretrain_runs=[folder], title=config.name)
        say(f"report: {page}")
        say(f"next: medloom finetune TASK --encoder {folder}")
        return 0
    pretrain(config)
    # All ranks leave with one status, after rank 0 has asked for the requeue: a launcher ends the others when
    # one has failed, and counts a host as finished when its ranks leave with 0.
    return STOPPED if any_rank(False) else 0
