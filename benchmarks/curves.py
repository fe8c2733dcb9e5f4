"""Curves of short real runs, one column a method: the picture of docs/diagnostics.md.

Each method trains its `tiny` recipe on phantoms, cut to few steps of small batches; a run that is finished
is not made again. What is to be seen is the shape of curves, not how good a method is: nothing is probed.

    medloom phantoms --out phantoms && medloom shards build phantoms/collection.yaml --out shards/phantoms
    python -m benchmarks.curves --shards shards/phantoms --work runs/curves --out docs/pictures/curves.png
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

METHODS = ("mae", "simclr", "lejepa", "dinov2")
CURVES = {
    "loss": ("loss",),
    "feature_std": ("feature_std",),
    "effective rank": ("rankme", "rank_centred", "lidar"),
    "entropy / log K": ("teacher_entropy", "marginal_entropy"),
}


def main() -> None:
    """Train what is missing and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, kept for the next time")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/curves.png"))
    arguments = parser.parse_args()
    runs = {name: train(name, arguments) for name in METHODS}
    draw(runs, arguments.out)


def train(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a run of this method."""
    from medloom.pretrain.config import load_config
    from medloom.pretrain.run import pretrain
    from medloom.pretrain.tracking import METRICS, read_rows

    folder = arguments.work / name
    if not (folder / "encoder.json").exists():
        given = {
            "data.shards": arguments.shards, "out": str(folder), "trainer.steps": arguments.steps,
            "data.batch_size": 16, "data.workers": 0, "trainer.log_every": 4, "trainer.accelerator": "cpu",
            "probe.every_steps": 0,
            "panels.every_steps": 0, "tracking.wandb": "disabled", "resume": "true",
        }  # fmt: skip
        pretrain(load_config(f"tiny-{name}-2d", [f"{key}={value}" for key, value in given.items()]))
    return read_rows(folder / METRICS)


def draw(runs: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """Small multiples: a row a curve, a column a method."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(CURVES), len(runs), figsize=(2.6 * len(runs), 1.7 * len(CURVES)))
    for column, (method, rows) in enumerate(runs.items()):
        for line, (title, keys) in enumerate(CURVES.items()):
            panel = axes[line][column]
            for key in keys:
                points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float)]
                points = [(x, y) for x, y in points if math.isfinite(y)]
                if points:
                    label = key if len(keys) > 1 else None
                    panel.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
            if panel.has_data():
                if title == "entropy / log K":
                    panel.set_ylim(-0.03, 1.03)
                if len(keys) > 1:
                    panel.legend(fontsize=6, frameon=False)
            else:
                panel.set_axis_off()
            panel.tick_params(labelsize=6)
            panel.spines[["top", "right"]].set_visible(False)
            if line == 0:
                panel.set_title(method, fontsize=10)
            if column == 0:
                panel.set_ylabel(title, fontsize=8)
    figure.supxlabel("step", fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
