"""What diagnostics cost: rows, gradient norms by depth and probes, as shares of the training that they watch.

Each part is timed alone, beside the same steps in the same process and turn by turn, because the difference
of two whole runs of seconds is smaller than their noise. On a CPU the clock is that of the process, one
thread, so that a busy machine does no harm; on a GPU it is the wall, after the device is done. The method is
MAE, whose step is the cheapest there is: for every other method the shares are smaller.

    python -m benchmarks.diagnostics --shards shards/realdata --out benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from medloom.data.stream.config import StreamConfig
from medloom.pretrain.alarms import Watch
from medloom.pretrain.config import ProbeConfig, TrainerConfig
from medloom.pretrain.diagnostics import describe
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.gradients import GradientNorms
from medloom.pretrain.objectives import Batch
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.probes import Probe, cadence

RUN_STEPS = 100_000  # of the run whose cadence of probes is taken
LIMIT = 0.02


def main() -> None:
    """Measure and write a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True, help="labelled shards for the probes")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="timm's name of the encoder")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=256, help="global batch of the run; rows describe it")
    parser.add_argument("--micro", type=int, default=32, help="images a timed step; scaled to the batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments)
    stem = f"{datetime.now(UTC):%Y-%m-%d}-diagnostics-{arguments.device}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / f"{stem}.md").write_text(table(found))
    print(table(found))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part, and its share of training at the default cadence."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    encoder = build_encoder({"name": "vit", "model": arguments.model, "img_size": arguments.size,
                             "in_channels": 3}).to(device)  # fmt: skip
    objective = MAE(MAE.Config(decoder_dim=192, decoder_depth=2, decoder_heads=3), encoder).to(device)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    image = torch.randn(arguments.micro, 3, arguments.size, arguments.size, device=device)
    batch = Batch(image=image, position=torch.arange(arguments.micro, device=device), seed=0)
    norms = GradientNorms(encoder, objective)
    spread = torch.randn(arguments.batch, encoder.embed_dim)

    def step() -> None:
        optimiser.zero_grad()
        objective.step(batch, encoder).loss.backward()
        optimiser.step()

    step()
    row = {"step": 1, "samples": arguments.batch, "loss": 1.0, "grad_norm": 1.0}
    watch, config = Watch(), ProbeConfig(shards=arguments.shards)
    data = StreamConfig(shards=arguments.shards, crop=[arguments.size] * 2)
    probe = Probe(config, data)
    probe(encoder, device)  # chooses its samples
    parts: dict[str, Callable[[], object]] = {
        "step": step,
        "clip": lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0),
        "norms": lambda: norms.clip(1.0),
        "row": lambda: watch.see(row | describe(spread)),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(arguments.repeats):
        for name, part in parts.items():
            times[name].append(clock(part, device))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    seconds["probe"] = clock(lambda: probe(encoder, device), device)
    whole = seconds["step"] * arguments.batch / arguments.micro
    every = cadence(config, probe.images, RUN_STEPS, arguments.batch)
    log_every = TrainerConfig().log_every
    shares = {
        "norms": max(0.0, seconds["norms"] - seconds["clip"]) / whole,
        "row": seconds["row"] / (log_every * whole),
        "probe": seconds["probe"] / (every * whole) if every else 0.0,
    }
    return {
        "seconds": seconds, "step_of_batch": whole, "shares": shares, "total": sum(shares.values()),
        "log_every": log_every, "probe_every": every, "probe_images": probe.images,
        "setting": {key: str(v) for key, v in vars(arguments).items() if key not in ("out", "shards")},
        "torch": torch.__version__, "machine": platform.machine(),
    }  # fmt: skip


def clock(part: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of this process on a CPU, of the wall on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        part()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    part()
    return time.process_time() - start


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    seconds, shares, setting = found["seconds"], found["shares"], found["setting"]
    head = (
        f"# What diagnostics cost\n\nMAE, {setting['model']}, {setting['size']} pixels, global batch "
        f"{setting['batch']}, {setting['device']}, one thread, torch {found['torch']}; a step takes "
        f"{found['step_of_batch']:.2f} s. Shares of the training time at the default cadence.\n\n"
        "| part | when | seconds | share |\n|---|---|---|---|\n"
    )
    rows = [
        ("gradient norms by depth, beyond plain clipping", "each step", seconds["norms"] - seconds["clip"],
         shares["norms"]),
        ("row: spread, ranks, spectrum, alarms", f"every {found['log_every']} steps", seconds["row"],
         shares["row"]),
        (f"probes: kNN, linear, dense on {found['probe_images']} images",
         f"every {found['probe_every']} steps", seconds["probe"], shares["probe"]),
    ]  # fmt: skip
    lines = [f"| {name} | {when} | {cost:.4f} | {share:.3%} |\n" for name, when, cost, share in rows]
    verdict = "within" if found["total"] <= LIMIT else "ABOVE"
    return head + "".join(lines) + f"\nTogether {found['total']:.2%}: {verdict} the {LIMIT:.0%} aimed at.\n"


if __name__ == "__main__":
    main()
