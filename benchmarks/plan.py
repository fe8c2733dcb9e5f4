"""How far `medloom plan` is off, on what any machine can measure: one and two CPU ranks, several batch sizes.

    python -m benchmarks.plan --shards FOLDER [--clock cpu]

A small ViT trains some steps (MAE, one thread a rank, gloo). Two of the runs on one rank give the pace, a
copy and an all-reduce give the memory and the links, and the model predicts the other runs. `--clock wall`
needs idle cores; `--clock cpu` counts the processor time of rank 0 (its exchange threads included), which
other programs disturb less; nothing hides behind anything then, and the model is told so (overlap 0).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

RUNS = ((1, 16), (1, 64), (1, 32), (1, 128), (2, 32), (2, 64), (2, 128))  # (ranks, global batch)
FITTED = 2  # the first so many give the pace
WARM = 3  # steps that are not counted
RECIPE = "tiny-mae-2d"


def main() -> None:
    """Measure, compare, write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, required=True, help="any folder of shards with pictures")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--out", type=Path, help="file without suffix; gets .md and .json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], json.loads(given.child[1]), given.clock)
        return
    with tempfile.TemporaryDirectory() as folder:
        text, values = compare(given, Path(folder))
    print(text)
    if given.out:
        given.out.with_suffix(".md").write_text(text)
        given.out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


def compare(given: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run everything; returns the page and its numbers."""
    import torch
    from medloom.pretrain.config import load_config
    from medloom.pretrain.plan.devices import Device
    from medloom.pretrain.plan.measured import read_measured
    from medloom.pretrain.plan.plan import make_plan

    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    launch(given, 2, "links", {"out": str(folder / "links.json")})
    link = json.loads((folder / "links.json").read_text())
    device = Device(
        name="cpu", fp32_tflops=1.0, memory_gb=8, memory_gb_s=copying(clock), link_gb_s=link["gb_s"],
        network_gb_s=link["gb_s"], link_us=link["us"], efficiency=1.0, overlap=0.0,
    )  # fmt: skip
    measured = []
    for ranks, batch in RUNS:
        out = folder / f"{ranks}-{batch}"
        options = [f"data.shards={given.shards}", f"data.batch_size={batch}", "data.workers=1", f"out={out}",
                   f"trainer.steps={given.steps}", "trainer.log_every=1", "trainer.accelerator=cpu",
                   "trainer.checkpoint_every_steps=1000000", "probe.every_steps=0", "panels.samples=1",
                   "tracking.tracker=none", f"name=rank{ranks}-batch{batch}"]  # fmt: skip
        launch(given, ranks, "run", {"options": options, "out": str(out) + ".json"})
        steps = json.loads(Path(str(out) + ".json").read_text())[WARM:]
        run = replace(read_measured(out), name=f"{ranks} x {batch // ranks}")
        measured.append(replace(run, seconds=statistics.median(steps), data_wait=0.0))
    config = load_config(RECIPE, [f"data.shards={given.shards}"])
    plan = make_plan(config, device, nodes=1, per_node=2, precision="32-true", measured=measured[:FITTED])
    pace = plan.assumptions.pace
    rows = [fixed_pace(config, device, run, pace) for run in measured]
    lines = [
        "# Predicted and measured steps", "", " ".join((__doc__ or "").split("\n\n")[2].split()), "",
        f"Clock: {given.clock}; {os.cpu_count()} cores, load of the machine meanwhile "
        f"{os.getloadavg()[2]:.0f}; copying {device.memory_gb_s:.1f} GB/s; all-reduce of two ranks "
        f"{link['gb_s']:.2f} GB/s, {link['us']:.0f} µs; pace {pace.rate / 1e9:.1f} GFLOP/s and "
        f"{1000 * pace.fixed:.1f} ms a micro-batch.", "",
        "| ranks | batch | measured, ms | predicted, ms | error | |", "|--:|--:|--:|--:|--:|---|",
    ]  # fmt: skip
    for (ranks, batch), run, predicted in zip(RUNS, measured, rows, strict=True):
        note = "gives the pace" if measured.index(run) < FITTED else ""
        lines.append(f"| {ranks} | {batch} | {1000 * run.working:.0f} | {1000 * predicted:.0f} | "
                     f"{100 * (predicted / run.working - 1):+.0f} % | {note} |")  # fmt: skip
    runs = [{"ranks": r, "batch": b, "measured": m.working, "predicted": p}
            for (r, b), m, p in zip(RUNS, measured, rows, strict=True)]  # fmt: skip
    machine = {"clock": given.clock, "cores": os.cpu_count(), "load": os.getloadavg()[2]}
    model = {"link": link, "memory_gb_s": device.memory_gb_s, "rate": pace.rate, "fixed": pace.fixed}
    return "\n".join(lines) + "\n", {**machine, **model, "runs": runs}


def fixed_pace(config: Any, device: Any, run: Any, pace: Any) -> float:
    """Seconds that the model gives a run at a pace that was fitted elsewhere."""
    from medloom.pretrain.plan.count import count
    from medloom.pretrain.plan.spread import Model

    model = Model(run.config, count(run.config, precision="32-true"), device, "32-true")
    return model.times(model.layouts(run.ranks, 2, "ddp", 1), pace).step


def copying(clock: Any) -> float:
    """10^9 bytes a second that a copy in memory reads and writes."""
    import torch

    a = torch.zeros(2**26)
    b, best = torch.empty_like(a), float("inf")
    for _ in range(5):
        begin = clock()
        b.copy_(a)
        best = min(best, clock() - begin)
    return 2 * 4 * a.numel() / best / 1e9


def launch(given: argparse.Namespace, ranks: int, what: str, values: dict[str, Any]) -> None:
    """Start `child` on so many ranks and wait."""
    base = [sys.executable, "-m"]
    if ranks > 1 or what == "links":
        base += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    words = ["benchmarks.plan", f"--shards={given.shards}", f"--clock={given.clock}", "--child", what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*base, *words, json.dumps(values)], check=True, env=environment)


def child(what: str, values: dict[str, Any], clock_name: str) -> None:
    """One rank of a measurement; rank 0 writes `values["out"]`."""
    import torch

    torch.set_num_threads(1)
    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    if what == "links":
        import torch.distributed as dist

        from .links import fitted, measure

        dist.init_process_group("gloo", timeout=timedelta(minutes=10))
        sizes = tuple(2**power for power in range(14, 25))  # what gradients of a small network are
        rate, latency = fitted(measure(sizes, clock=clock), dist.get_world_size())
        if dist.get_rank() == 0:
            Path(values["out"]).write_text(json.dumps({"gb_s": rate, "us": latency}))
        dist.destroy_process_group()
        return
    from medloom.pretrain.config import load_config
    from medloom.pretrain.run import pretrain

    ticks: list[float] = []
    pretrain(load_config(RECIPE, values["options"]), progress=lambda *_: ticks.append(clock()))
    if int(os.environ.get("RANK", "0")) == 0:
        steps = [after - before for before, after in itertools.pairwise(ticks)]
        Path(values["out"]).write_text(json.dumps(steps))


if __name__ == "__main__":
    main()
