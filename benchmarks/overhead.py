"""What watching a run costs: rows with their diagnostics, the tracker, checkpoints, as shares of its steps.

A real run of `pretrain` with W&B offline, in which every part is timed alone by the clock of its thread: the
difference of two runs of minutes is smaller than their noise. Work of other threads (tracker, checkpoint)
counts in full, although it only competes for Python's lock. A CPU step is long, so that its share flatters;
therefore the table also says the milliseconds a step at the default cadence, and of which step they are 2 %:
a GPU whose steps take longer is within it. Waiting for a disk is no CPU time: the fsync of a row is timed by
the wall, and a checkpoint waits in its own thread. What gradient norms by depth cost, diagnostics.py says.

    python -m benchmarks.overhead --shards shards/realdata --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LIMIT = 0.02
LOG_EVERY, SAVE_EVERY = 20, 1000  # defaults of trainer.log_every and trainer.checkpoint_every_steps
RUN_STEPS = 100_000  # over which what happens once is spread


def main() -> None:
    """Measure and write a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True, help="shards with pictures")
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm's name of the encoder")
    parser.add_argument("--batch", type=int, default=4, help="pictures a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    os.environ |= {"WANDB_MODE": "offline", "OMP_WAIT_POLICY": "PASSIVE"}
    said = summary(run(arguments), arguments)
    stem = f"{datetime.now(UTC):%Y-%m-%d}-overhead-cpu"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(said, indent=1) + "\n")
    (arguments.out / f"{stem}.md").write_text(table(said))
    print(table(said))


def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a step without what watches it, and of each part when it happens."""
    import torch
    from medloom.data.config import structured
    from medloom.pretrain.config import PretrainConfig, complete
    from medloom.pretrain.fault_tolerance import saving
    from medloom.pretrain.recorder import Recorder
    from medloom.pretrain.run import pretrain
    from medloom.pretrain.tracking import Journal, Tracker
    from medloom.pretrain.tracking.wandb_backend import Wandb

    torch.set_num_threads(1)
    spent: dict[str, list[float]] = {}
    steps = timed_steps()
    timed(Recorder, "_record", "row", spent, time.thread_time)
    timed(Journal, "sync", "sync", spent, time.perf_counter)
    timed(Tracker, "_put", "put", spent, time.thread_time)
    timed(Wandb, "start", "start", spent, time.thread_time)
    timed(Wandb, "row", "mirror", spent, time.thread_time)
    timed(saving.Checkpointing, "on_train_batch_end", "save", spent, time.thread_time)
    timed(saving, "store", "store", spent, time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        config = complete(structured(PretrainConfig, {
            "name": "overhead", "out": f"{folder}/run",
            "data": {"shards": arguments.shards, "ndim": 2, "crop": [224, 224], "channels": 3,
                     "batch_size": arguments.batch, "workers": 0},
            "encoder": {"name": "vit", "model": arguments.model}, "objective": {"name": "mae"},
            "trainer": {"steps": arguments.steps, "log_every": 2, "accelerator": "cpu",
                        "checkpoint_every_steps": arguments.steps // 2},
            "probe": {"every_steps": 0}, "tracking": {"wandb": "offline"},
        }))  # fmt: skip
        pretrain(config)
    saves = [seconds for seconds in spent["save"] if seconds > 0.01]  # the other steps only look at the clock
    return {
        "step": statistics.median(steps),
        **{key: statistics.median(spent[key]) for key in ("row", "sync", "put", "mirror", "start", "store")},
        "save": sum(spent["save"]) / max(1, len(saves)),
        "describe": described(256) - described(arguments.batch),
    }


def described(pictures: int) -> float:
    """CPU seconds of the diagnostics of so many pictures."""
    import torch
    from medloom.pretrain.diagnostics import describe

    features, seconds = torch.randn(pictures, 384), []
    for _ in range(7):
        begin = time.thread_time()
        describe(features)
        seconds.append(time.thread_time() - begin)
    return statistics.median(seconds)


def timed_steps() -> list[float]:
    """CPU seconds of each step, from its batch to the first callback after it; filled while a run goes on."""
    from medloom.pretrain.module import PretrainModule
    from medloom.pretrain.recorder import Recorder

    begun, seconds = [0.0], []
    start, end = PretrainModule.on_train_batch_start, Recorder.on_train_batch_end

    def starts(*values: Any) -> None:
        begun[0] = time.thread_time()
        start(*values)

    def ends(*values: Any) -> None:
        seconds.append(time.thread_time() - begun[0])
        end(*values)

    PretrainModule.on_train_batch_start, Recorder.on_train_batch_end = starts, ends
    return seconds


def timed(kind: type, name: str, key: str, spent: dict[str, list[float]], clock: Callable[[], float]) -> None:
    """Make `kind.name` add its seconds to `spent[key]`."""
    plain = getattr(kind, name)

    def measured(*values: Any, **named: Any) -> Any:
        begin = clock()
        try:
            return plain(*values, **named)
        finally:
            spent.setdefault(key, []).append(clock() - begin)

    setattr(kind, name, measured)


def summary(found: dict[str, float], arguments: argparse.Namespace) -> dict[str, Any]:
    """What a step pays at the default cadence."""
    parts = {
        "row: means, diagnostics, alarms, line of metrics.jsonl": ("row", LOG_EVERY),
        f"its diagnostics of 256 pictures, beyond those of {arguments.batch}": ("describe", LOG_EVERY),
        "its fsync (wall)": ("sync", LOG_EVERY),
        "row handed to the tracker": ("put", LOG_EVERY),
        "row in the tracker's thread": ("mirror", LOG_EVERY),
        "tracker started, in its thread": ("start", RUN_STEPS),
        "checkpoint: state copied": ("save", SAVE_EVERY),
        "checkpoint written and verified, in its thread": ("store", SAVE_EVERY),
    }
    rows = [{"part": name, "every": every, "seconds": found[key], "a_step": found[key] / every}
            for name, (key, every) in parts.items()]  # fmt: skip
    together = sum(row["a_step"] for row in rows)
    return {
        "model": arguments.model, "batch": arguments.batch,
        "step": found["step"], "parts": rows, "a_step": together, "share": together / found["step"],
        "two_percent_at": together / LIMIT,
    }  # fmt: skip


def table(said: dict[str, Any]) -> str:
    """The results as Markdown."""
    import torch

    setting = f"MAE, {said['model']}, 224 pixels, {said['batch']} pictures a step, CPU, one thread"
    lines = [
        "# What watching a run costs", "",
        f"{setting}, torch {torch.__version__}; a step takes {said['step']:.2f} s of CPU time.", "",
        "| part | every | ms each | ms a step |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in said["parts"]:
        each, step = 1e3 * row["seconds"], 1e3 * row["a_step"]
        lines.append(f"| {row['part']} | {row['every']:,} steps | {each:.1f} | {step:.3f} |")
    least = f"{LIMIT:.0%} of a step of {1e3 * said['two_percent_at']:.0f} ms"
    share = f"{said['share']:.2%} of this step, and {least}"
    lines += ["", f"Together {1e3 * said['a_step']:.2f} ms a step: {share}. Aim: at most {LIMIT:.0%}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
