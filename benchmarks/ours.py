"""medloom's own runs for the learning and the methods benchmark: `pretrain` with a recipe, as users do."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from medloom.data.errors import ConfigError
from medloom.pretrain.config import PretrainConfig, load_config
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder


def recipe_of(method: str, ndim: int, folder: Path | None) -> str | Path:
    """The tiny recipe of a method: a file of `folder`, else the shipped one."""
    name = f"tiny-{method}-{ndim}d"
    if folder is not None and (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    return name


def configured(recipe: str | Path, *, shards: Path, seed: int, steps: int, out: Path) -> PretrainConfig:
    """The recipe with the benchmark's shards, seed and length; loading happens in the measured process.

    Only what costs time beside training is switched off: probes, and all panels and checkpoints but the last.
    """
    return load_config(
        recipe,
        [
            f"data.shards={shards}", "data.workers=0", f"seed={seed}", f"out={out}",
            f"trainer.steps={steps}", "trainer.accelerator=cpu", "trainer.checkpoint_every_steps=1000000",
            "trainer.checkpoint_every_minutes=10000", "probe.every_steps=0", "panels.every_steps=0",
            "tracking.wandb=disabled",
        ],
    )  # fmt: skip


def train(recipe: str | Path, *, shards: Path, seed: int, steps: int, out: Path) -> Encoder:
    """Run the recipe from the beginning and read the encoder that it left."""
    logging.getLogger("medloom").setLevel(logging.WARNING)
    shutil.rmtree(out, ignore_errors=True)
    folder = pretrain(configured(recipe, shards=shards, seed=seed, steps=steps, out=out))
    encoder, _ = load_encoder(folder)
    return encoder


def shipped(ndim: int, folder: Path | None) -> list[str]:
    """Methods that have a tiny recipe, in the order of `medloom methods`."""
    from medloom.pretrain.objectives import OBJECTIVES

    found = []
    for method in OBJECTIVES:
        try:
            load_config(recipe_of(method, ndim, folder), [])
        except ConfigError as error:
            if "no such file" not in str(error):
                raise
            continue
        found.append(method)
    return found
