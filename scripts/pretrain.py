"""`medloom pretrain CONFIG key=value ...`: the same command under plain Python, torchrun and srun."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.errors import ConfigError
from .console import STOPPED

if TYPE_CHECKING:
    from ..pretrain.fault_tolerance.preempt import StopSignal

EXAMPLE = """example:
  medloom pretrain tiny-mae-2d data.shards=shards/realdata out=runs/mae-2d
  medloom pretrain tiny-mae-2d data.shards=shards/realdata out=runs/mae-2d resume=true
  medloom pretrain tiny-mae-2d --profile data.shards=shards/realdata out=runs/look trainer.steps=20
  torchrun --nproc-per-node 8 -m medloom.scripts.cli pretrain base-mae-2d data.shards=/data/shards out=b"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom pretrain`."""
    parser.epilog = EXAMPLE
    parser.add_argument("config", nargs="?", help="YAML of the run (a path, or the name of a shipped one)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. trainer.steps=1000 out=runs/a"
    )
    parser.add_argument(
        "--replay", type=Path, metavar="RUN/bad/step-N.json", help="repeat a bad step on one process instead"
    )
    parser.add_argument(
        "--profile", action="store_true",
        help="time 5 steps and trace 5 (or trainer.profile_steps): a table, and RUN/profile; the run goes on",
    )  # fmt: skip
    parser.add_argument("--tracker", help="wandb (default), tensorboard, mlflow or none; docs/tracking.md")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Pretrain, or repeat a bad step."""
    from ..pretrain.fault_tolerance.preempt import StopSignal

    if arguments.replay is not None:
        from .replay import replay_step

        # The first word is the configuration, unless a step is repeated: its run has one.
        first = [] if arguments.config is None else [arguments.config]
        return replay_step(arguments.replay, [*first, *arguments.overrides])
    if arguments.config is None:
        raise ConfigError("name the configuration of the run, e.g. medloom pretrain tiny-mae-2d")
    if arguments.profile:
        arguments.overrides.insert(0, "trainer.profile_steps=5")
    if arguments.tracker is not None:
        arguments.overrides.append(f"tracking.tracker={arguments.tracker}")
    with StopSignal() as stop:  # before the seconds that the imports take
        return train(arguments, stop)


def train(arguments: argparse.Namespace, stop: StopSignal) -> int:
    """Pretrain as this rank and say where the encoder is; returns the exit status."""
    from ..finetune.report import write_report
    from ..pretrain.cluster.detect import is_main_process
    from ..pretrain.config import load_config
    from ..pretrain.ranks import any_rank
    from ..pretrain.run import pretrain
    from ..pretrain.tracking.sweep import own_folder
    from .console import progress_bar, say

    config = load_config(arguments.config, arguments.overrides)
    config.out = str(own_folder(config.folder))
    if is_main_process():
        with progress_bar() as progress:
            folder = pretrain(config, progress=progress, stop=stop)
        if any_rank(not (folder / "encoder.json").exists()):
            say(f"stopped before the last step; continue with the same command and resume=true ({folder})")
            return STOPPED
        say(f"run:    {folder}")
        page = write_report(folder / "report.html", evaluations=[], pretrain_runs=[folder], title=config.name)
        say(f"report: {page}")
        say(f"next: medloom finetune TASK --encoder {folder}")
        return 0
    pretrain(config, stop=stop)
    # All ranks leave with one status, after rank 0 has asked for the requeue: a launcher ends the others when
    # one has failed, and counts a host as finished when its ranks leave with 0.
    return STOPPED if any_rank(False) else 0
