"""All methods under one compute budget, in 2D and 3D: frozen probes, fine-tuning on a tenth of the labels.

    python -m benchmarks.methods --shards SHARDS --real COLLECTION

Every method that has a tiny recipe is trained for the same CPU time on one thread (steps are found by two
short trials, schedules laid out over them), then scored on data that it never saw: kNN, linear and dense
probe (scoring.py, scoring_volumes.py), and full fine-tuning with 10 % of the training subjects' labels (2D:
breast ultrasound, macro AUC; 3D: hippocampus, mean Dice). `random` is the transformer of MAE's recipe with
random weights; its fine-tuning is training from scratch with the rates for that, and `untrained` the same
network under the protocol of pretrained ones, so that a gain is not the protocol's. Supervised pretraining
reads labels of the pretraining pictures. A finished run is a file in `--work`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import jobs
from .learning import calibrate, calibration, parser_of, prepare

WITHOUT = ("random", "untrained")  # no pretraining
TUNED = {2: ("realdata-busi", "auc"), 3: ("realdata-hippocampus", "dice")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the tables."""
    parser = parser_of(__doc__, seeds=1, only="METHOD or METHOD-2d or METHOD-3d, separated by commas")
    parser.add_argument("--tune", type=int, default=60, help="steps of fine-tuning; 0: none")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measured(options)))
        return
    folder = options.work / f"methods-{options.budget:g}s-{options.tune}"
    chosen = names(options)
    if not options.report:
        prepare(options)
        open_volumes(options)
        if options.calibrate:
            trained = [name for name in chosen if name[:-3] not in WITHOUT]
            calibrate("benchmarks.methods", trained, lambda name: passed_on(options, name, 0), options)
            return
        todo = [jobs.Job(folder / f"{name}@{seed}.json", passed_on(options, name, seed))
                for seed in range(options.seeds) for name in chosen]  # fmt: skip
        jobs.run("benchmarks.methods", todo, at_once=options.at_once, threads=1,
                 limit=6 * options.budget + 1800, retry=options.retry)  # fmt: skip
    print(report(folder, chosen, options))


def names(options: argparse.Namespace) -> list[str]:
    """`METHOD-2d`, `METHOD-3d` of every recipe, and of random weights."""
    from .ours import shipped

    known = [f"{name}-{ndim}d" for ndim in (2, 3) for name in (*WITHOUT, *shipped(ndim, options.recipes))]
    wanted = [word for word in options.only.split(",") if word]
    return [name for name in known if not wanted or name in wanted or name[:-3] in wanted]


def passed_on(options: argparse.Namespace, name: str, seed: int) -> tuple[str, ...]:
    """Arguments of a child."""
    given = {"child": name, "seed": seed, "budget": options.budget, "work": options.work,
             "shards": options.shards, "real": options.real, "tune": options.tune}  # fmt: skip
    if options.recipes:
        given["recipes"] = options.recipes
    return tuple(word for key, value in given.items() for word in (f"--{key}", str(value)))


def open_volumes(options: argparse.Namespace) -> None:
    """Build the 3D task's shards before children run side by side."""
    from . import scoring, scoring_volumes

    scoring.open_task(scoring_volumes.TASK, options.real, options.work / "tasks")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, probe and fine-tune one method."""
    import torch
    from medloom.pretrain.weights import load_encoder

    from . import scoring, scoring_volumes

    torch.set_num_threads(1)
    logging.getLogger("medloom").setLevel(logging.WARNING)
    method, ndim = options.child[:-3], int(options.child[-2])
    with tempfile.TemporaryDirectory() as scratch:
        run, facts = pretrained(method, ndim, Path(scratch), options)
        if options.calibrate:
            return facts
        encoder, _ = load_encoder(run)
        began = time.process_time()
        tasks = options.work / "tasks"
        if ndim == 2:
            cells = scoring.score(encoder, scoring.ours, options.real, tasks)
        else:
            cells = scoring_volumes.score(encoder, options.real, tasks)
        if options.tune:
            cells[tuned_cell(ndim)] = tuned(method, ndim, run, Path(scratch) / "tune", options)
    parameters = sum(p.numel() for p in encoder.parameters())
    return {"method": options.child, "seed": options.seed, "parameters": parameters, **facts, "cells": cells,
            "scoring_seconds": time.process_time() - began}  # fmt: skip


def pretrained(
    method: str, ndim: int, folder: Path, options: argparse.Namespace
) -> tuple[Path, dict[str, Any]]:
    """The run folder (for random weights: an encoder as it is built) and what the run took.

    With `--calibrate` nothing but the steps and what each of them costs.
    """
    from .ours import recipe_of, train

    given: dict[str, Any] = {"shards": options.shards, "seed": options.seed, "out": folder / "run"}
    if method in WITHOUT:
        from medloom.pretrain.run import build
        from medloom.pretrain.weights import save_encoder

        from .ours import configured

        config = configured(recipe_of("mae", ndim, options.recipes), steps=1, **given)
        save_encoder(given["out"], build(config)[0], {})
        return given["out"], {"steps": 0, "cpu_seconds": 0.0}
    recipe = recipe_of(method, ndim, options.recipes)
    memory = calibration(options, f"medloom/{method}" if ndim == 2 else f"{method}-3d")
    steps, each = jobs.steps_for(options.budget, lambda n: train(recipe, steps=n, **given), memory)
    if options.calibrate:
        return given["out"], {"steps": steps, "seconds_a_step": each}
    began = time.process_time()
    train(recipe, steps=steps, **given)
    spent = time.process_time() - began
    rows = (given["out"] / "metrics.jsonl").read_text().splitlines()
    loss = float(json.loads(rows[-1])["loss"])
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at the end of {steps} steps")
    return given["out"], {
        "steps": steps,
        "cpu_seconds": spent,
        "seconds_a_step": each,
        "loss": loss,
        "settings": f"recipe {Path(recipe).stem}",
    }


def tuned_cell(ndim: int) -> str:
    """Name of the fine-tuning cell."""
    task, metric = TUNED[ndim]
    return f"{task.removeprefix('realdata-')} 10 % fine-tune ({metric})"


def tuned(method: str, ndim: int, run: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Full fine-tuning on a tenth of the training subjects: score on test with its interval."""
    from medloom.finetune.config import load_config
    from medloom.finetune.evaluation import evaluate
    from medloom.finetune.run import finetune
    from medloom.finetune.scoring import MEAN

    task, metric = TUNED[ndim]
    scratch = method == "random"
    config = load_config(
        task,
        [
            f"encoder={run}", f"root={options.real}", f"cache={options.work / 'tasks'}", f"out={out}",
            "fraction=0.1", f"steps={options.tune}", "validations=3", f"baseline={str(scratch).lower()}",
            "device=cpu", "workers=0", f"seed={options.seed}",
            *(["image_size=64", "batch_size=16"] if ndim == 2 else ["patch=[32,32,32]", "batch_size=2"]),
        ],
    )  # fmt: skip
    summary = json.loads((evaluate(finetune(config)) / "summary.json").read_text())
    arm = "scratch" if scratch else "pretrained"
    rows = summary["arms"][arm]
    found = next(row for row in rows if row["metric"] == metric and row["structure"] in ("", MEAN))
    return {"metric": metric, "score": found["mean"], "interval": [found["low"], found["high"]]}


def report(folder: Path, chosen: Sequence[str], options: argparse.Namespace) -> str:
    """Write results/DATE-methods.{md,json} and return the text."""
    from . import scoring, scoring_volumes
    from .learning_report import failures, read

    runs = read(folder, chosen)
    cells = {2: scoring.CELLS, 3: scoring_volumes.CELLS}
    lines = [
        "# Methods under one compute budget", "",
        f"`python -m benchmarks.methods --shards SHARDS --real COLLECTION --budget {options.budget:g} --tune "
        f"{options.tune} --seeds {options.seeds}`: {options.budget:g} CPU seconds of one thread a run, "
        f"{platform.machine()}. Mean over the seeds with 95 % intervals over test subjects; kNN and linear: "
        "balanced accuracy, dense: Dice. `random`: the transformer of MAE's recipe with random weights; its "
        "fine-tuning is training from scratch, that of `untrained` the protocol of pretrained encoders. "
        "Convolutional methods train another network: see parameters. Rank: mean over the cells.",
    ]  # fmt: skip
    for ndim in (2, 3):
        own = {name: each for name, each in runs.items() if name.endswith(f"-{ndim}d")}
        if own:
            wanted = [*cells[ndim], *([tuned_cell(ndim)] if options.tune else [])]
            lines += ["", f"## {ndim}D", "", *table(own, wanted)]
    lines += ["", *failures(runs)]
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"{datetime.date.today().isoformat()}-methods"
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".json").write_text(json.dumps(runs))
    return text + f"\nwritten to {stem}.md"


def table(runs: dict[str, list[dict[str, Any]]], cells: Sequence[str]) -> list[str]:
    """One row a method."""
    from .learning_report import good

    rows = ["| method | " + " | ".join(cells) + " | rank | steps | CPU s | million parameters |",
            "|---|" + "---|" * (len(cells) + 4)]  # fmt: skip
    ranks = mean_ranks(runs, cells)
    for name, each in runs.items():
        ran = good(each)
        if not ran:
            rows.append(f"| {name[:-3]} |" + " failed |" * len(cells) + " | | | |")
            continue
        shown = [shown_cell(each, cell) for cell in cells]
        steps, seconds = np.mean([r["steps"] for r in ran]), np.mean([r["cpu_seconds"] for r in ran])
        rows.append(f"| {name[:-3]} | {' | '.join(shown)} | {ranks[name]:.1f} | {steps:.0f} | "
                    f"{seconds:.0f} | {ran[0]['parameters'] / 1e6:.1f} |")  # fmt: skip
    return rows


def mean_ranks(runs: dict[str, list[dict[str, Any]]], cells: Sequence[str]) -> dict[str, float]:
    """Method -> its rank among those that ran, ties shared, averaged over the cells: 1 is best."""
    from scipy.stats import rankdata

    from .learning_report import good

    ran = {name: good(each) for name, each in runs.items() if good(each)}
    scores = [[np.mean([r["cells"][cell]["score"] for r in each]) for cell in cells] for each in ran.values()]
    return dict(zip(ran, rankdata(-np.array(scores), axis=0).mean(axis=1), strict=True))


def shown_cell(runs: Sequence[dict[str, Any]], cell: str) -> str:
    """Mean (low–high) of a cell; of fine-tuning the mean of the seeds' own intervals."""
    from medloom.finetune.statistics import bootstrap_metric

    from .learning_report import DRAWS, good, material, score_of

    cells = [run["cells"][cell] for run in good(runs) if cell in run["cells"]]
    if not cells:
        return "–"
    if "interval" in cells[0]:
        mean = np.mean([c["score"] for c in cells])
        low, high = np.mean([c["interval"] for c in cells], axis=0)
        return f"{mean:.3f} ({low:.2f}–{high:.2f})"
    truth, score, groups = material(runs, cell)
    found = bootstrap_metric(score_of, truth, score, groups, n=DRAWS)
    return f"{found.mean:.3f} ({found.low:.2f}–{found.high:.2f})"


if __name__ == "__main__":
    main()
