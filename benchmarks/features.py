"""What the cache of frozen features saves: the probes of a grid with the cache against encoding again.

    python -m benchmarks.features --root /data/realdata

One task (breast ultrasound, 493 pictures at 224), one encoder (ViT-S/16 with random weights: it costs what a
trained one does), the same probes and seeds in one process, in turn without the cache and with a filled
one. Reported are medians and ratios of the seconds until the features of all cases are there, and of whole
cells as the grid does them (fit, score, pictures, report). The scores must agree.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from medloom.finetune.config import load_config
from medloom.finetune.data import prepare
from medloom.finetune.evaluation import evaluate
from medloom.finetune.run import finetune, load_arm, read_run
from medloom.finetune.tasks import TASKS
from medloom.pretrain.weights import load_encoder, save_encoder

ENCODER = "random:timm:vit_small_patch16_224"
ARM = "pretrained"  # as it is called; the weights are those of ENCODER


def main() -> None:
    """Measure, print, and write JSON where it is asked for."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--root", required=True, help="folder of the real collection")
    parser.add_argument("--task", default="realdata-busi")
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--protocols", nargs="+", default=["logistic", "knn"])
    parser.add_argument("--rounds", type=int, default=3, help="seeds, each with and without the cache")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Interleaved rounds of every protocol."""
    encoder, _ = load_encoder(arguments.encoder)
    save_encoder(
        folder / "encoder", encoder, {"input": {"crop": [224, 224], "channels": encoder.in_channels}}
    )
    cells: dict[str, dict[str, list[float]]] = {}
    features: dict[str, list[float]] = {"encoded": [], "cached": []}
    gaps = []
    for protocol in arguments.protocols:
        _cell(arguments, folder, protocol, 0, cached=True)  # fills the cache, builds the shards
        found = cells.setdefault(protocol, {"encoded": [], "cached": []})
        for seed in range(arguments.rounds):
            scores = {}
            for way in ("encoded", "cached"):
                seconds, scores[way], run = _cell(arguments, folder, protocol, seed, cached=way == "cached")
                found[way].append(seconds)
                features[way].append(_reading(run))
            gaps += [abs(a - b) for a, b in zip(scores["encoded"], scores["cached"], strict=True)]
    return {
        "task": arguments.task, "encoder": arguments.encoder, "rounds": arguments.rounds,
        "threads": torch.get_num_threads(), "features": compared(features),
        "cells": {protocol: compared(found) for protocol, found in cells.items()},
        "largest_difference_of_a_score": max(gaps),
    }  # fmt: skip


def compared(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians of both ways in seconds, and their ratio."""
    encoded, cached = median(found["encoded"]), median(found["cached"])
    return {"encoded": round(encoded, 3), "cached": round(cached, 3), "ratio": round(encoded / cached, 1)}


def _cell(
    arguments: argparse.Namespace, folder: Path, protocol: str, seed: int, *, cached: bool
) -> tuple[float, list[float], Path]:
    """(seconds, scores, run folder) of one cell as the grid does it."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    items = [
        f"encoder={folder / 'encoder'}", f"root={arguments.root}", f"cache={folder / 'shards'}", f"out={run}",
        f"protocol={protocol}", f"arm={ARM}", f"seed={seed}", "device=cpu",
    ]  # fmt: skip
    config = load_config(arguments.task, [*items, *([f"features={folder / 'features'}"] if cached else [])])
    begin = time.perf_counter()
    finetune(config)
    out = evaluate(run)
    seconds = time.perf_counter() - begin
    summary = json.loads((out / "summary.json").read_text())
    return seconds, [row["mean"] for row in summary["arms"][ARM]], run


def _reading(run: Path) -> float:
    """Seconds until the features of all the run's cases are there."""
    config, plan, split = read_run(run)
    data = prepare(config.task, root=config.root or ".", cache=config.cache)
    task: Any = TASKS[config.task.kind](config, data, plan, split)
    network, _ = load_arm(task, run / ARM)
    cases = [case for part in task.cases.values() for case in part]
    begin = time.perf_counter()
    task.features(network, cases, torch.device("cpu"))
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
