"""`medloom tune TASK --encoder RUN`: search the training's numbers on validation, train, score test."""

from __future__ import annotations

import argparse
from pathlib import Path

from .console import STOPPED

EXAMPLE = """examples:
  medloom tune realdata-busi --encoder runs/mae-2d --root /data/realdata --out runs/busi-tuned --trials 20
  medloom tune my-task.yaml --encoder runs/mae-3d --out runs/tuned --knobs optim.encoder_lr steps=900"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom tune`."""
    parser.epilog = EXAMPLE
    parser.add_argument("task", help="YAML record of the task (a path, or the name of a shipped one)")
    parser.add_argument("--encoder", required=True, help="as for `medloom finetune`")
    parser.add_argument("--out", required=True, help="folder of the search; the same command continues it")
    parser.add_argument("--trials", type=int, default=20, help="trials of each arm (default: 20)")
    parser.add_argument("--trial-steps", type=int, default=0, help="steps of a trial (default: steps / 3)")
    parser.add_argument("--knobs", default="", help="keys to search, with commas (default: all)")
    parser.add_argument("--root", help="folder that holds the task's dataset (default: as the record says)")
    parser.add_argument("--protocol", help="full, sawtooth, unfreeze or lora")
    parser.add_argument("--no-baseline", action="store_true", help="neither tune nor train the baseline")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=900 fraction=0.1")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Search, train, evaluate; print what was found and the table of scores."""
    import json

    from ..finetune.config import load_config
    from ..finetune.evaluation import evaluate
    from ..finetune.tuning import RESULT, Budget, tune
    from .console import print_table, progress_bar, say
    from .evaluate import summary_rows

    named = {key: getattr(arguments, key) for key in ("encoder", "root", "protocol", "out")}
    dotlist = [f"{key}={value}" for key, value in named.items() if value is not None]
    if arguments.no_baseline:
        dotlist.append("baseline=false")
    config = load_config(arguments.task, [*dotlist, *arguments.overrides])
    knobs = tuple(key.strip() for key in arguments.knobs.split(",") if key.strip())
    with progress_bar() as progress:
        folder = tune(config, Budget(arguments.trials, arguments.trial_steps, knobs), progress)
        if folder is None:
            say(f"stopped before the last step; the same command continues ({arguments.out})")
            return STOPPED
        scores = evaluate(folder, progress=progress)
    found = json.loads((Path(arguments.out) / RESULT).read_text())
    print_table([
        {"arm": arm, "number": key, "found": f"{value:.4g}",
         "importance": f"{search['importance'][key]:.2f}" if key in search["importance"] else ""}
        for arm, search in found["arms"].items() for key, value in search["best"]["params"].items()
    ])  # fmt: skip
    print_table(summary_rows(scores))
    say(f"run:    {folder}")
    say(f"report: {scores / 'report.html'}")
    return 0
