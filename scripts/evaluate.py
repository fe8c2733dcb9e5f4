"""`medloom evaluate RUN`: test-split scores with intervals, a per-case table and a report."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom evaluate`."""
    parser.epilog = "example:\n  medloom evaluate runs/busi --pretrain-run runs/mae-2d"
    parser.add_argument(
        "run_folder", type=Path, nargs="+", metavar="RUN",
        help="run folder of `medloom finetune`; several (fold=0 .. 4) are scored as one",
    )  # fmt: skip
    parser.add_argument("--split", choices=("test", "val"), default="test", help="default: test")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/evaluation)")
    parser.add_argument(
        "--pretrain-run", type=Path, action="append", default=[], help="pretraining run to show in the report"
    )
    robust = parser.add_argument_group("robustness", "score corrupted images too: see docs/robustness.md")
    robust.add_argument("--robustness", action="store_true", help="35 to 50 further evaluations; resumes")
    robust.add_argument("--corruptions", type=_words, help="such as blur,motion (default: by modality)")
    robust.add_argument("--severities", type=_numbers, default=[1, 2, 3, 4, 5], help="default: 1,2,3,4,5")
    parser.add_argument("--mirror", action="store_true", help="average segmentations over mirror images")
    parser.add_argument("--tracker", help="show it in wandb, tensorboard or mlflow (default: as the run)")
    parser.add_argument(
        "--save-predictions", action="store_true", help="write label maps in the geometry of the source"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate every arm of the run and print the table."""
    from ..data.errors import ConfigError
    from ..finetune.evaluation import evaluate
    from .console import print_table, progress_bar, say

    if len(arguments.run_folder) > 1 and (arguments.robustness or arguments.corruptions):
        raise ConfigError("--robustness is of one run: leave it out, or give a single RUN")
    with progress_bar() as progress:
        folder = evaluate(
            arguments.run_folder, split=arguments.split, out=arguments.out, progress=progress,
            pretrain_runs=arguments.pretrain_run, mirror=arguments.mirror, save=arguments.save_predictions,
            tracker=arguments.tracker,
        )  # fmt: skip
        if arguments.robustness or arguments.corruptions:
            from ..finetune.robustness.study import study

            study(
                arguments.run_folder[0], folder, split=arguments.split, corruptions=arguments.corruptions,
                severities=arguments.severities, pretrain_runs=arguments.pretrain_run, progress=progress,
            )  # fmt: skip
    print_table(summary_rows(folder))
    if arguments.robustness or arguments.corruptions:
        print_table(robustness_rows(folder / "robustness" / "robustness.json"))
    say(f"cases:  {folder / 'cases.csv'}")
    say(f"report: {folder / 'report.html'}")
    return 0


def robustness_rows(path: Path) -> list[dict[str, object]]:
    """Rows `corruption, loss of METRIC in ARM ...` of the task's first metric, all corruptions first."""
    import json

    found = json.loads(path.read_text())
    metric = found["metrics"][0]
    rows: dict[str, dict[str, object]] = {}
    for row in [{"corruption": "all", **row} for row in found["overall"]] + found["by_corruption"]:
        if row["metric"] == metric:
            line = rows.setdefault(row["corruption"], {"corruption": row["corruption"]})
            line[f"loss of {metric}, {row['arm']}"] = _loss(row)
    return list(rows.values())


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}"


def _loss(row: dict[str, float | None]) -> str:
    """`0.087 (0.062 to 0.112) 11 %`: the loss, its interval, its share of the clean score."""
    loss, low, high, share = (row[key] for key in ("loss", "loss_low", "loss_high", "relative"))
    span = "" if low is None else f" ({_rounded(low)} to {_rounded(high)})"
    return f"{_rounded(loss)}{span}" + ("" if share is None else f" {round(100 * share) + 0:d} %")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def summary_rows(folder: Path) -> list[dict[str, object]]:
    """Rows `task, arm, metric, structure, mean, 95 % interval, n` of an evaluation folder's summary.json."""
    import json

    summary = json.loads((folder / "summary.json").read_text())
    return [
        {
            "task": summary["task"],
            "arm": arm,
            "metric": row["metric"],
            "structure": row.get("structure") or "",
            "mean": f"{row['mean']:.3f}",
            "95 % interval": f"{row['low']:.3f} to {row['high']:.3f}",
            "n": row["n"],
        }
        for arm, rows in summary["arms"].items()
        for row in rows
    ]
