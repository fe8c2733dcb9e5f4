"""`medloom benchmark`: a grid of encoders, tasks, protocols and seeds, and its leaderboard."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import STOPPED

if TYPE_CHECKING:
    from ..finetune.benchmark.config import BenchmarkConfig
    from ..finetune.benchmark.grid import Cell

EXAMPLE = """examples:
  medloom benchmark --encoder runs/mae-2d --encoder timm=timm:resnet18.a1_in1k --task realdata-busi \\
    --protocol logistic --protocol full --root /data/realdata --out runs/board --jobs 2
  medloom benchmark board.yaml options.steps=300
  medloom benchmark --out runs/board                        # goes on with what is not done, then the page
  medloom benchmark --out runs/board --slurm 16 > grid.sbatch"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom benchmark`."""
    parser.epilog = EXAMPLE
    parser.add_argument("config", nargs="?", help="YAML of the benchmark (default: what --out holds)")
    parser.add_argument(
        "--encoder", action="append", metavar="[NAME=]SOURCE",
        help="what `medloom finetune --encoder` takes; give it several times",
    )  # fmt: skip
    for flag, name in (("--task", "task record"), ("--protocol", "protocol of `medloom finetune`")):
        parser.add_argument(flag, action="append", help=f"a {name}; give it several times")
    parser.add_argument("--seed", action="append", type=int, help="give it several times (default: 0)")
    parser.add_argument("--fraction", action="append", type=float, help="share of the labels (default: 1.0)")
    parser.add_argument("--root", help="folder that holds the tasks' datasets")
    parser.add_argument("--out", help="folder of the benchmark (default: runs/benchmark)")
    parser.add_argument("--no-baseline", action="store_true", help="neither random features nor from scratch")
    parser.add_argument("--jobs", type=int, default=1, help="processes on this machine (default: 1)")
    parser.add_argument("--ray", metavar="ADDRESS", help="on this Ray cluster, or `local`")
    parser.add_argument("--array", metavar="K/N", help="do share K (from 0) of N, for a job array; no page")
    parser.add_argument("--slurm", type=int, metavar="N", help="print the sbatch script of N shares, and end")
    parser.add_argument("--retry", action="store_true", help="do failed cells again")
    parser.add_argument("--page", action="store_true", help="write the page from what is done, and end")
    parser.add_argument("--tracker", help="show the page's scores in wandb, tensorboard or mlflow")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and their state, and end")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. options.steps=300")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do what is not done of the grid, then write the page."""
    from ..data.errors import ConfigError
    from ..finetune.benchmark.cell import state
    from ..finetune.benchmark.config import record_folder
    from ..finetune.benchmark.grid import grid, share
    from ..finetune.benchmark.slurm import sbatch
    from .console import print_table, say

    config = _config(arguments)
    cells = grid(config)
    if arguments.dry_run:
        print_table([{"cell": c.name, "state": state(c.folder(config.folder))} for c in cells])
        return 0
    record_folder(config)
    if arguments.jobs < 1 or (arguments.slurm is not None and arguments.slurm < 1):
        raise ConfigError("--jobs and --slurm: give at least 1")
    if arguments.slurm:
        print(sbatch(config, parts=arguments.slurm, jobs=arguments.jobs), end="")
        return 0
    if not arguments.page:
        mine = share(cells, *_part(arguments.array)) if arguments.array else cells
        wanted = ("open", "failed") if arguments.retry else ("open",)
        todo = [cell for cell in mine if state(cell.folder(config.folder)) in wanted]
        say(f"{len(cells)} cells, {len(todo)} to do here, {len(mine) - len(todo)} done or failed before")
        outcomes = _work(config, todo, arguments)
        counts = Counter(outcomes.values())
        if outcomes:
            say(", ".join(f"{count} {name}" for name, count in counts.items()))
        if counts["stopped"]:
            say(f"the same command continues ({config.out})")
            return STOPPED
        if arguments.array:
            return 0
    return _page(config, arguments.tracker)


def _config(arguments: argparse.Namespace) -> BenchmarkConfig:
    from ..finetune.benchmark.config import load_benchmark
    from ..finetune.benchmark.grid import encoders_of

    path, items = arguments.config, list(arguments.overrides)
    if path is not None and "=" in path and not Path(path).is_file():
        path, items = None, [path, *items]
    values: dict[str, Any] = {
        "encoders": encoders_of(arguments.encoder) if arguments.encoder else None, "tasks": arguments.task,
        "protocols": arguments.protocol, "seeds": arguments.seed, "fractions": arguments.fraction,
        "root": arguments.root, "out": arguments.out, "baselines": [] if arguments.no_baseline else None,
    }  # fmt: skip
    return load_benchmark(path, {key: value for key, value in values.items() if value is not None}, items)


def _part(text: str) -> tuple[int, int]:
    from ..data.errors import ConfigError

    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit()):
        raise ConfigError(f"--array {text}: expected K/N, e.g. 0/16")
    return int(number), int(of)


def _work(config: BenchmarkConfig, cells: list[Cell], arguments: argparse.Namespace) -> dict[str, Any]:
    from ..finetune.benchmark.cluster import run_on_ray
    from ..finetune.benchmark.pool import run_cells
    from .console import progress_bar

    if not cells:
        return {}
    with progress_bar() as tell:
        if arguments.ray:
            return dict(run_on_ray(config, cells, arguments.ray, jobs=arguments.jobs, tell=tell))
        return dict(run_cells(config, cells, jobs=arguments.jobs, tell=tell))


def _page(config: BenchmarkConfig, tracker: str | None) -> int:
    from ..finetune.benchmark.page import score_rows, summary_rows, write_page
    from ..finetune.mirror import mirror_benchmark
    from ..pretrain.tracking import TrackingConfig
    from .console import print_table, say

    tracking = TrackingConfig(tracker=tracker or "none")
    tracking.check()
    tracking.require()
    page, results = write_page(config)
    if tracker:
        done = [found.cell for entry in results.entries.values() for found in entry.results]
        places = [cell.folder(config.folder) / "evaluation" for cell in done]
        mirror_benchmark(tracking, config.folder, places, score_rows(results))
    print_table(summary_rows(results))
    missing = Counter(
        (f.kind, "/".join(f.cell.name.split("/")[:2]), f.reason) for f in results.failures if f.kind != "open"
    )
    for (kind, where, reason), count in missing.items():
        say(f"{kind}: {where} ({count} cell{'s' if count > 1 else ''}): {reason}")
    say(f"scores: {config.folder / 'scores.csv'}")
    say(f"page:   {page}")
    return 0
