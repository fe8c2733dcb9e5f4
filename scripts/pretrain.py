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
    import os

    from ..finetune.report import write_report
    from ..pretrain.config import load_config
    from ..pretrain.run import pretrain
    from .console import progress_bar, say

    config = load_config(arguments.config, arguments.overrides)
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        with progress_bar() as progress:
            folder = pretrain(config, progress=progress)
        if not (folder / "encoder.json").exists():
            say(f"stopped before the last step; continue with the same command and resume=true ({folder})")
            return STOPPED
        say(f"run:    {folder}")
        page = write_report(folder / "report.html", evaluations=[], pretrain_runs=[folder], title=config.name)
        say(f"report: {page}")
        say(f"next: medloom finetune TASK --encoder {folder}")
    else:
        pretrain(config)
    return 0
