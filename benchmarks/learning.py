"""What a few minutes of one core teach: medloom's tiny recipes beside lightly's and stable-pretraining's.

    python -m benchmarks.learning --shards SHARDS --real COLLECTION

Every contender gets the same CPU time (`--budget` seconds of one thread, views, loading and optimiser
included), the same transformer with the same number of weights, the same pictures and three seeds. How many
steps fit is measured in each run by two short trials, and the schedules are laid out over them. medloom's
runs are `pretrain` with a shipped recipe and read their shards while they train; the rivals get the same
pictures decoded beforehand, for nothing. Scoring is one code for all (scoring.py) and not on the clock.

A finished run is a file in `--work`: an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import jobs
from .rivals import RIVALS

MODEL = "vit_tiny_patch16_224"  # of timm; what is changed in it, rivals.Size says
SHORTEST = 20  # steps that the rivals' schedules are laid out for, at least
SIDE = 64  # pixels of a global view, and of the pictures that are scored


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the tables."""
    parser = parser_of(__doc__, seeds=3, only="contenders, separated by commas")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measured(options)))
        return
    chosen = contenders(options)
    folder = options.work / f"learning-{options.budget:g}s"
    taken_over(options, folder, chosen)
    if not options.report:
        prepare(options)
        if options.calibrate:
            names = [name for name in chosen if name != "random"]
            calibrate("benchmarks.learning", names, lambda name: passed_on(options, name, 0), options)
            return
        todo = [
            jobs.Job(folder / f"{name.replace('/', '+')}@{seed}.json", passed_on(options, name, seed))
            for seed in range(options.seeds)
            for name in chosen
        ]
        jobs.run("benchmarks.learning", todo, at_once=options.at_once, threads=1,
                 limit=4 * options.budget + 300, retry=options.retry)  # fmt: skip
    from .learning_report import report

    print(report(folder, chosen, options))


def parser_of(description: str | None, *, seeds: int, only: str) -> argparse.ArgumentParser:
    """What this benchmark and methods.py both ask.

    Args:
        seeds: default of `--seeds`.
        only: help of `--only`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True, help="shards of the real collection")
    parser.add_argument("--real", type=Path, required=True, help="the real collection itself, for the tasks")
    parser.add_argument("--work", type=Path, default=Path("bench-learning"), help="finished runs and caches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=120.0, help="CPU seconds of a pretraining run")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--at-once", type=int, default=2, help="runs side by side, each on a core of its own")
    parser.add_argument("--only", default="", help=only)
    parser.add_argument("--recipes", type=Path, help="folder of tiny-*.yaml to take before the shipped ones")
    parser.add_argument("--retry", action="store_true", help="run failed ones again")
    parser.add_argument("--report", action="store_true", help="write the tables of what is there")
    parser.add_argument("--calibrate", action="store_true", help="only measure the cost of a step of each; "
                        "do this on a quiet machine, the runs themselves may then share it")  # fmt: skip
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def contenders(options: argparse.Namespace) -> list[str]:
    """All, or those of `--only`."""
    from medloom.pretrain.config import load_config

    from .ours import recipe_of, shipped

    own = []
    for method in shipped(2, options.recipes):
        recipe = load_config(recipe_of(method, 2, options.recipes), [])
        labelled = recipe.data.labels or recipe.data.masks
        if recipe.encoder.get("model") == MODEL and not labelled:  # the common network, and no labels
            own.append(f"medloom/{method}")
    others = [name for name in RIVALS if not name.startswith("timm/")]
    known = ["random", *own, *others]
    wanted = [name for name in options.only.split(",") if name]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise SystemExit(f"--only: no contender {', '.join(unknown)}; known: {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted]


def passed_on(options: argparse.Namespace, name: str, seed: int) -> tuple[str, ...]:
    """Arguments of a child."""
    given = {"child": name, "seed": seed, "budget": options.budget, "work": options.work,
             "shards": options.shards, "real": options.real}  # fmt: skip
    if options.recipes:
        given["recipes"] = options.recipes
    return tuple(word for key, value in given.items() for word in (f"--{key}", str(value)))


def prepare(options: argparse.Namespace) -> None:
    """Task shards and decoded pictures, once, before children run side by side."""
    from . import scoring

    pictures(options.shards, options.work)
    for name in (*scoring.CLASSES, *scoring.MASKS):
        scoring.open_task(name, options.real, options.work / "tasks")


def calibrate(
    module: str, names: Sequence[str], given: Callable[[str], tuple[str, ...]], options: argparse.Namespace
) -> None:
    """Find the steps of every contender that has none yet, by children of `module`."""
    folder = options.work / f"steps-{options.budget:g}s"
    todo = [jobs.Job(folder / "done" / f"{name.replace('/', '+')}.json", (*given(name), "--calibrate"))
            for name in names]  # fmt: skip
    jobs.run(module, todo, at_once=options.at_once, threads=1, limit=600, retry=options.retry)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Train one contender and score it; with `--calibrate` only find its steps."""
    import torch

    torch.set_num_threads(1)
    if options.calibrate:
        with tempfile.TemporaryDirectory() as folder:
            found = jobs.steps_for(
                options.budget, trial(options, Path(folder)), calibration(options, options.child)
            )
        return {"steps": found[0], "seconds_a_step": found[1]}
    if options.child == "random":
        encoder, facts = untrained(options.seed), {"steps": 0, "cpu_seconds": 0.0}
    elif options.child.startswith("medloom/"):
        encoder, facts = trained_by_medloom(options)
    else:
        encoder, facts = trained_by_rival(options)
    from . import scoring

    normalise = scoring.ours if options.child.split("/")[0] in ("medloom", "random") else scoring.imagenet
    cells = scoring.score(encoder, normalise, options.real, options.work / "tasks", SIDE)
    facts["parameters"] = sum(p.numel() for p in encoder.parameters())
    return {"contender": options.child, "seed": options.seed, **facts, "cells": cells}


def untrained(seed: int) -> Any:
    """The common transformer with random weights, in medloom's wrapper."""
    import torch
    from medloom.pretrain.encoders import build_encoder

    from .rivals import Size

    size = Size()
    torch.manual_seed(seed)
    return build_encoder(
        {
            "name": "vit", "model": MODEL, "img_size": size.picture, "patch_size": size.patch,
            "embed_dim": size.dim, "depth": size.depth, "num_heads": size.heads, "in_channels": 3,
        }
    )  # fmt: skip


def trial(options: argparse.Namespace, folder: Path) -> Callable[[int], Any]:
    """Training of a contender for n steps; medloom writes its run below `folder`."""
    if not options.child.startswith("medloom/"):
        return rival_run(options)
    from .ours import recipe_of, train

    recipe = recipe_of(options.child.partition("/")[2], 2, options.recipes)
    return lambda steps: train(
        recipe, shards=options.shards, seed=options.seed, steps=steps, out=folder / "run"
    )


def rival_run(options: argparse.Namespace) -> Callable[[int], tuple[Any, list[float]]]:
    """A rival's own loop on decoded pictures: steps -> the method and its losses."""
    import torch

    from .rivals import Size, rival
    from .rivals.training import train

    kind, shown = rival(options.child), pictures(options.shards, options.work)

    def run(steps: int) -> tuple[Any, list[float]]:
        torch.manual_seed(options.seed)
        method = kind(Size(), max(steps, SHORTEST))
        return method, train(method, shown, steps=steps, seed=options.seed)

    return run


def trained_by_medloom(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """`pretrain` with the method's tiny recipe, for as many steps as the budget holds."""
    with tempfile.TemporaryDirectory() as folder:
        run = trial(options, Path(folder))
        steps, each = jobs.steps_for(options.budget, run, calibration(options, options.child))
        began = time.process_time()
        encoder = run(steps)
        spent = time.process_time() - began
        written = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    loss = float(json.loads(written[-1])["loss"])
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at the end of {steps} steps")
    settings = f"recipe tiny-{options.child.partition('/')[2]}-2d"
    return encoder, {"steps": steps, "cpu_seconds": spent, "seconds_a_step": each,
                     "loss": loss, "settings": settings}  # fmt: skip


def trained_by_rival(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The rival's own loop, and its network in medloom's wrapper."""
    from .rivals import rival

    run = rival_run(options)
    steps, each = jobs.steps_for(options.budget, run, calibration(options, options.child))
    began = time.process_time()
    method, losses = run(steps)
    spent = time.process_time() - began
    encoder = untrained(0)
    encoder.model = method.released()
    kind = rival(options.child)
    return encoder, {"steps": steps, "cpu_seconds": spent, "seconds_a_step": each,
                     "loss": losses[-1], "settings": kind.settings, "batch": kind.batch}  # fmt: skip


def calibration(options: argparse.Namespace, name: str) -> Path:
    """Where the number of steps of a contender is kept, for its other seeds."""
    folder = options.work / f"steps-{options.budget:g}s"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace('/', '+')}.json"


def taken_over(options: argparse.Namespace, folder: Path, names: Sequence[str]) -> None:
    """Use runs that benchmarks/methods.py made with the same budget: they are the same runs."""
    for name in names:
        for seed in range(options.seeds):
            target = folder / f"{name.replace('/', '+')}@{seed}.json"
            found = sorted(
                options.work.glob(f"methods-{options.budget:g}s-*/{name.partition('/')[2]}-2d@{seed}.json")
            )
            if found and not target.is_file() and name.startswith("medloom/"):
                folder.mkdir(parents=True, exist_ok=True)
                jobs.write(target, json.loads(found[0].read_text()))


def pictures(shards: Path, work: Path) -> list[np.ndarray]:
    """Every 2D picture of the shards, uint8 [H, W, 3], the shorter side 96 pixels; kept in `work`."""
    path = work / "pictures.npz"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        made = decoded(shards)
        shapes = np.array([picture.shape for picture in made])
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, pixels=np.concatenate([picture.ravel() for picture in made]), shapes=shapes)
        path.with_suffix(".tmp").replace(path)
    stored = np.load(path)
    ends = np.cumsum(stored["shapes"].prod(axis=1))
    parts = np.split(stored["pixels"], ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, stored["shapes"], strict=True)]


def decoded(shards: Path, shorter: int = SIDE * 3 // 2) -> list[np.ndarray]:
    """Decode and shrink the pictures of all 2D sources; deeper ones than 8 bits through medloom's window."""
    from medloom.data.normalise import grey, intensity
    from medloom.data.shards.reader import Shards

    opened, found = Shards.open(shards), []
    for source in opened.manifest.sources:
        for ref in opened.refs(source.id) if source.ndim == 2 else ():
            meta = opened.meta(ref)
            height, width = (int(n) for n in meta["shape"][1:])
            scale = shorter / min(height, width)
            size = (max(shorter, round(height * scale)), max(shorter, round(width * scale)))
            image = opened.read_resized(ref, (0, 0, height, width), size)
            if image.dtype != np.uint8:
                numbers = intensity(meta)
                low, high = (np.asarray(n, np.float32).reshape(-1, 1, 1) for n in (numbers.low, numbers.high))
                share = (image.astype(np.float32) - low) / np.maximum(high - low, 1e-6)
                image = (np.clip(share, 0, 1) * 255).astype(np.uint8)
            if grey(meta) or len(image) != 3:
                image = np.repeat(image[:1], 3, axis=0)
            found.append(np.ascontiguousarray(image.transpose(1, 2, 0)))
    return found


if __name__ == "__main__":
    main()
