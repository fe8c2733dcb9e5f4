"""`medloom finetune TASK --encoder RUN`: fine-tune on a held-out task, with the baseline beside it."""

from __future__ import annotations

import argparse

from .console import STOPPED

EXAMPLE = """example:
  medloom finetune realdata-busi --root /data/realdata --encoder runs/mae-2d --out runs/busi
  medloom finetune realdata-hippocampus --root /data/realdata --encoder runs/mae-3d --protocol full steps=600
  medloom evaluate runs/busi"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom finetune`."""
    parser.epilog = EXAMPLE
    parser.add_argument("task", help="YAML record of the task (a path, or the name of a shipped one)")
    parser.add_argument(
        "--encoder",
        required=True,
        help="run folder, encoder folder, .safetensors, .ckpt, timm:NAME, monai:NAME@FILE, hf:ORG/NAME",
    )
    parser.add_argument("--root", help="folder that holds the task's dataset (default: as the record says)")
    parser.add_argument(
        "--protocol",
        help="full, sawtooth, unfreeze or lora; a probe of frozen features: knn, logistic, linear, "
        "attentive, frozen (see docs/protocols.md)",
    )
    parser.add_argument("--out", help="run folder to create (continued when it exists and is the same run)")
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not train the same network from random weights"
    )
    parser.add_argument("--tracker", help="show the run in wandb, tensorboard or mlflow (default: none)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. steps=500 fraction=0.1 seed=1"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune and say how to score it."""
    from ..finetune.config import load_config
    from ..finetune.run import finetune, finished
    from ..pretrain.tracking.sweep import own_folder
    from .console import progress_bar, say

    named = {
        "encoder": arguments.encoder,
        "root": arguments.root,
        "protocol": arguments.protocol,
        "out": arguments.out,
        "tracking.tracker": arguments.tracker,
    }
    dotlist = [f"{key}={value}" for key, value in named.items() if value is not None]
    if arguments.no_baseline:
        dotlist.append("baseline=false")
    config = load_config(arguments.task, [*dotlist, *arguments.overrides])
    config.out = str(own_folder(config.folder))
    with progress_bar() as progress:
        folder = finetune(config, progress=progress)
    if not finished(folder, config):
        say(f"stopped before the last step; the same command continues ({folder})")
        return STOPPED
    say(f"run: {folder}")
    say(f"next: medloom evaluate {folder}")
    return 0
