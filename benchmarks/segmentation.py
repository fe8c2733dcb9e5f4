"""Is our baseline weak? The scratch arm of `medloom finetune` against MONAI's networks, on the hippocampus.

    nice python -m benchmarks.segmentation --real COLLECTION

A gain over a weak baseline is no gain. Everyone sees the same training cases, steps, batch and patch, chooses
its weights on the same validation cases at the same steps, predicts by MONAI's kind of sliding window, and is
scored by the same Dice on the same test cases. `dynunet` and `segresnet` are trained as in MONAI's tutorials
(modules/dynunet_pipeline; 3d_segmentation/brats_segmentation_3d): their losses, optimisers, rates, schedules
and augmentation. Two things are kinder to them: mirror images only along the axis that the labels allow, and
`-adamw` trains the same networks with AdamW at 2e-3, a rate for short runs. The filters of DynUNet are halved
(16 to 128), because all of this is to run on two cores. A finished run is a file in `--work`; a second call
goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import jobs

TASK = "realdata-hippocampus"
PATCH = [40, 56, 40]  # of the tutorial for this task, and what the planner finds
ENCODERS: dict[str, dict[str, Any]] = {
    "vit3d": {"name": "vit3d", "size": "tiny", "depth": 6, "patch_size": [8, 8, 8]},
    "resenc": {"name": "resenc", "features": [16, 32, 64, 128], "blocks": [1, 2, 2, 2],
               "strides": [1, 2, 2, 2], "kernels": [3, 3, 3, 3]},
}  # fmt: skip
PEERS = ("dynunet", "dynunet-adamw", "segresnet", "segresnet-adamw")
VALIDATIONS = 3  # over a run, the same for all

Predict = Callable[[Sequence[Any]], Iterator[np.ndarray]]  # cases -> a label map each


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table."""
    options = parsed(arguments)
    if options.child:
        print(json.dumps(measured(options)))
        return
    folder = options.work / f"segmentation-{options.steps}x{options.batch}"
    chosen = [name for name in options.only.split(",") if name] or contenders()
    if not options.report:
        from . import scoring

        scoring.open_task(TASK, options.real, options.work / "tasks")  # built before children run
        todo = [jobs.Job(folder / f"{name}@{seed}.json", passed_on(options, name, seed))
                for seed in range(options.seeds) for name in chosen]  # fmt: skip
        jobs.run("benchmarks.segmentation", todo, at_once=options.at_once, threads=1,
                 limit=options.limit, retry=options.retry)  # fmt: skip
    print(report(folder, chosen, options))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    real = os.environ.get("MEDLOOM_REALDATA")
    parser.add_argument("--real", type=Path, default=real, required=not real, help="the real collection")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark"), help="where results are kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, a thread each")
    parser.add_argument("--limit", type=float, default=3600, help="CPU seconds of a run")
    parser.add_argument("--only", default="", help=f"of {', '.join(contenders())}; separated by commas")
    parser.add_argument("--retry", action="store_true", help="run failures again")
    parser.add_argument("--report", action="store_true", help="only write the table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def contenders() -> list[str]:
    """Names; `+KEY=VALUE` behind one of ours changes its configuration."""
    return [*(f"medloom-{name}" for name in ENCODERS), *PEERS]


def passed_on(options: argparse.Namespace, name: str, seed: int) -> tuple[str, ...]:
    """Arguments of a child."""
    given = {"child": name, "seed": seed, "steps": options.steps, "batch": options.batch,
             "work": options.work, "real": options.real}  # fmt: skip
    return tuple(word for key, value in given.items() for word in (f"--{key}", str(value)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Train one contender and score it on the test cases."""
    import torch

    from .segmentation_peers import trained

    torch.set_num_threads(1)
    logging.getLogger("medloom").setLevel(logging.WARNING)
    name, *extra = options.child.split("+")
    task = opened(options, extra)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        if name in PEERS:
            network, predictions, step = trained(name, task, options.steps, options.seed)
        else:
            network, predictions, step = ours(ENCODERS[name.removeprefix("medloom-")], task, Path(scratch))
        training = time.process_time() - began
        dice = scores(task, predictions(task.cases["test"]))
    parameters = sum(p.numel() for p in network.parameters())
    return {"contender": options.child, "seed": options.seed, "steps": options.steps, "dice": dice,
            "parameters": parameters, "chosen_step": step, "cpu_seconds": training,
            "cells": {"dice": {"score": float(np.mean(list(dice.values())))}}}  # fmt: skip


def opened(options: argparse.Namespace, extra: Sequence[str]) -> Any:
    """The task with its data, split and plan, as `medloom finetune` opens it."""
    from medloom.finetune.config import load_config
    from medloom.finetune.data import prepare
    from medloom.finetune.planner import make_plan
    from medloom.finetune.splits import make_split
    from medloom.finetune.tasks import TASKS
    from medloom.finetune.tasks.segmentation import foreground_statistics
    from medloom.pretrain.encoders import build_encoder

    config = load_config(TASK, [
        "encoder=none", f"root={options.real}", f"steps={options.steps}", f"batch_size={options.batch}",
        f"patch={PATCH}", f"validations={VALIDATIONS}", "device=cpu", "workers=0", f"seed={options.seed}",
        *extra,
    ])  # fmt: skip
    data = prepare(config.task, root=options.real, cache=options.work / "tasks")
    split = make_split(data.items(), config.task.split, data.rank)
    train = [case for case in data.cases if split[case.key] == "train"]
    plan = make_plan(config.task, config, [case.meta for case in train], build_encoder(ENCODERS["vit3d"]),
                     foreground=foreground_statistics(data, train))  # fmt: skip
    return TASKS["segmentation"](config, data, plan, split)


def ours(section: dict[str, Any], task: Any, folder: Path) -> tuple[Any, Predict, int]:
    """What the scratch arm of `medloom finetune` does: network, how it predicts, the step that was kept."""
    import torch
    from medloom.finetune.protocols import PROTOCOLS, Session
    from medloom.pretrain.encoders import build_encoder

    protocol, device = PROTOCOLS["full"], torch.device("cpu")
    torch.manual_seed(task.config.seed)
    network = protocol.network(task, build_encoder(section))
    outcome = protocol.fit(network, Session(task, "scratch", folder, device))
    return network, lambda cases: task.predictions(network, cases, device), outcome.step


def scores(task: Any, predictions: Iterator[np.ndarray]) -> dict[str, float]:
    """Key of each test case -> Dice, mean of the structures."""
    from medloom.finetune.metrics import segmentation_case

    names = dict(enumerate(task.structures, start=1))
    found: dict[str, float] = {}
    for case, prediction in zip(task.cases["test"], predictions, strict=True):
        rows = segmentation_case(prediction, task.data.mask(case), case.spacing, names, 1.0, metrics=["dice"])
        found[case.key] = float(np.nanmean([row.value for row in rows]))
    return found


def report(folder: Path, chosen: Sequence[str], options: argparse.Namespace) -> str:
    """Write results/DATE-segmentation.{md,json} and return the text."""
    runs = {name: [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}@*.json"))]
            for name in chosen}  # fmt: skip
    good = {name: [run for run in each if "dice" in run] for name, each in runs.items()}
    lines = [
        "# Our baseline from random weights against MONAI's networks", "",
        f"`python -m benchmarks.segmentation --real COLLECTION --steps {options.steps} --batch "
        f"{options.batch}`: hippocampus, 108 training, 16 validation, 30 test volumes, patch "
        f"{'×'.join(map(str, PATCH))}, one thread a run, {platform.machine()}. Mean Dice of both structures "
        "over the test cases, 95 % intervals over cases. How each was trained: benchmarks/segmentation.py.",
        "", "| network | Dice | seeds | against the best peer, case by case | million parameters | CPU s |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    means = {name: by_case(each) for name, each in good.items() if each}
    peers = [name for name in means if name in PEERS]
    best = max(peers, key=lambda name: np.mean(list(means[name].values())), default=None)
    for name, each in good.items():
        if each:
            lines.append(row(name, each, means, best))
    lines += ["", *(f"- {name} failed: {run['error']}" for name, each in runs.items() for run in each
                    if "error" in run)]  # fmt: skip
    text = "\n".join(lines).rstrip() + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{datetime.date.today().isoformat()}-segmentation"
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(json.dumps(runs))
    return text + f"\nwritten to {stem}.md"


def by_case(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Dice of each case, mean of the seeds."""
    return {case: float(np.mean([run["dice"][case] for run in runs])) for case in runs[0]["dice"]}


def row(
    name: str, runs: Sequence[dict[str, Any]], means: dict[str, dict[str, float]], best: str | None
) -> str:
    """One row of the table."""
    from medloom.finetune.statistics import bootstrap_mean, paired_difference

    mine = means[name]
    found = bootstrap_mean(np.array(list(mine.values()))[:, None], list(mine))
    versus = "" if name != best else "is it"
    if best and name != best:
        gap = paired_difference(
            np.array(list(mine.values())), np.array([means[best][c] for c in mine]), list(mine)
        )
        versus = f"{gap.difference:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    seeds = " ".join(f"{np.mean(list(run['dice'].values())):.3f}" for run in runs)
    cost = f"{runs[0]['parameters'] / 1e6:.2f} | {np.mean([run['cpu_seconds'] for run in runs]):.0f} |"
    return f"| {name} | {found.mean:.3f} ({found.low:.3f}–{found.high:.3f}) | {seeds} | {versus} | {cost}"


if __name__ == "__main__":
    main()
