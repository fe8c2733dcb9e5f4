"""`medloom plan CONFIG --nodes N --gpus M`: what a run would take on machines that are not here."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..pretrain.plan.plan import Line, Plan

EXAMPLE = """examples:
  medloom plan large-mae-2d --nodes 64
  medloom plan base-dinov2-2d --nodes 2 --device a100-80gb --strategy fsdp2 data.shards=shards/realdata
  medloom plan base-mae-2d --measured runs/one-gpu --measured runs/eight-gpus --json

Operations, memory and sizes are counted; times follow a model (docs/scale.md)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medloom plan`."""
    parser.epilog = EXAMPLE
    parser.add_argument("config", help="YAML of the run (a path, or the name of a shipped one)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `medloom pretrain`")
    parser.add_argument("--nodes", type=int, help="nodes to look at closely (default: as the config says)")
    parser.add_argument("--gpus", type=int, default=8, help="devices of a node (default: 8)")
    parser.add_argument(
        "--device", default="h100", help="name in configs/plan/devices.yaml, or a YAML file (default: h100)"
    )
    parser.add_argument("--strategy", help="ddp | fsdp2 (default: as the config says)")
    parser.add_argument("--share", type=float, help="share of the peak that is assumed (default: 0.35)")
    parser.add_argument(
        "--measured", type=Path, action="append", default=[], metavar="RUN",
        help="a run on this kind of device: it gives the speed; several are compared",
    )  # fmt: skip
    parser.add_argument("--storage", type=float, metavar="GB/s",
                        help="at which a checkpoint is written (default: measured, else 1)")  # fmt: skip
    parser.add_argument("--price", type=float, help="of a device and hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print everything as one object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table for 1 to 512 devices, then the wanted number in detail."""
    import json

    from ..data.errors import ConfigError
    from ..pretrain.config import load_config
    from ..pretrain.plan.demand import open_samples
    from ..pretrain.plan.devices import load_device
    from ..pretrain.plan.measured import read_measured
    from ..pretrain.plan.plan import SHARE, as_json, make_plan
    from ..pretrain.run import resolve_classes, resolve_steps

    config = load_config(arguments.config, arguments.overrides)
    for name in ("nodes", "gpus", "share", "storage", "price"):
        if (given := getattr(arguments, name)) is not None and given <= 0:
            raise ConfigError(f"--{name} is {given}: it must be above 0")
    device = load_device(arguments.device)
    opened = open_samples(config)
    if opened is not None:
        resolve_steps(config, opened[0])
        resolve_classes(config, opened[0])
    elif config.trainer.steps is None:
        raise ConfigError("trainer.epochs needs data.shards: give them, or trainer.steps=N")
    wanted = config.trainer.precision
    if wanted == "auto":
        wanted = "bf16-mixed" if device.bf16_tflops else "32-true"
    plan = make_plan(
        config, device, nodes=arguments.nodes or config.trainer.num_nodes, per_node=arguments.gpus,
        precision=wanted, strategy=arguments.strategy, share=arguments.share or SHARE,
        measured=[read_measured(folder) for folder in arguments.measured],
        samples=None if opened is None else opened[1], store_gb_s=arguments.storage, price=arguments.price,
    )  # fmt: skip
    if arguments.json:
        print(json.dumps(as_json(plan), indent=1))
        return 0
    _show(plan, (arguments.nodes or config.trainer.num_nodes) * arguments.gpus)
    return 0


def _show(plan: Plan, ranks: int) -> None:
    from .console import print_table, say

    given, config = plan.assumptions, plan.config
    cost = plan.costs[0]
    frozen = f" and {cost.frozen / 1e6:.1f} M of a teacher" if cost.frozen else ""
    operations = ", ".join(f"{c.operations.sample / 1e9:,.0f}" for c in plan.costs)
    say(
        f"{config.name}: {config.steps:,} steps of {config.data.step_samples:,.0f} samples; "
        f"{cost.trained / 1e6:.1f} M parameters are trained{frozen}; {operations} GFLOP a sample"
    )
    say(
        f"{given.device.name}: {given.device.source}; {given.strategy}, {given.precision}; "
        f"pace: {given.pace_from}"
    )
    say()
    print_table([_row(plan, line) for line in plan.lines])
    for line in plan.skipped:
        say(f"left out: {line}")
    line = next(line for line in plan.lines if line.ranks == ranks)
    say()
    print_table(list(_memory(plan, line)), title=f"memory of a device, GB, {ranks} devices")
    say()
    print_table([{"": name, "what": text} for name, text in _details(plan, line)],
                title=f"{ranks} devices on {line.nodes} nodes")  # fmt: skip
    if plan.checks:
        say()
        print_table(list(_checks(plan)), title="measured runs beside the model, seconds of a step")


def _row(plan: Plan, line: Line) -> dict[str, object]:
    given, memory = plan.assumptions, sum(line.memory.values())
    row: dict[str, object] = {
        "devices": line.ranks, "batch of one": f"{line.accumulate} × {line.micro}",
        "step, ms": f"{1000 * line.times.step:,.0f}", "waits for links": f"{100 * _waits(line):.0f} %",
        "samples/s": f"{line.samples_per_s:,.0f}", "efficiency": f"{100 * line.efficiency:.0f} %",
        "GB": f"{memory / 1e9:.1f}" + ("" if line.fits else f" > {given.device.memory_gb:.0f}"),
        "samples/s a node": f"{line.node_samples_per_s:,.0f}",
    }  # fmt: skip
    if line.node_mb_per_s is not None:
        row["MB/s a node"] = f"{line.node_mb_per_s:,.0f}"
        row["shards/s"] = f"{line.node_shards_per_s:.2g}"
    if line.cores is not None:
        short = line.cores > max(1, plan.config.data.workers)
        row["cores a device"] = f"{line.cores:.1f}" + (" !" if short else "")
    row["hours"] = f"{line.hours:,.1f}"
    row["device hours"] = f"{line.hours * line.ranks:,.0f}"
    row["kWh"] = f"{line.kwh:,.0f}"
    if line.cost is not None:
        row["cost"] = f"{line.cost:,.0f}"
    return {name: str(value) for name, value in row.items()}


def _waits(line: Line) -> float:
    return line.times.exposed / line.times.step


def _memory(plan: Plan, line: Line) -> Iterator[dict[str, object]]:
    """The two strategies side by side, with the micro-batches of this line."""
    from ..pretrain.plan.spread import Model

    given = plan.assumptions
    model = Model(plan.config, plan.costs, given.device, given.precision)
    for strategy in ("ddp", "fsdp2"):
        layouts = model.layouts(line.ranks, given.per_node, strategy, line.accumulate)
        parts = model.memory(layouts)
        names = ("weights", "gradients", "optimiser", "teacher", "buffers", "activations", "gathered")
        yield {
            "strategy": strategy,
            **{name: f"{parts.get(name, 0) / 1e9:.2f}" for name in names},
            "together": f"{sum(parts.values()) / 1e9:.2f}",
            "step, ms": f"{1000 * model.times(layouts, given.pace).step:,.0f}",
        }


def _details(plan: Plan, line: Line) -> Iterator[tuple[str, str]]:
    from .console import duration

    given, times = plan.assumptions, line.times
    yield (
        "step",
        (
            f"{1000 * times.step:,.1f} ms = computing {1000 * times.compute:,.1f} + optimiser "
            f"{1000 * times.optimiser:.1f} + waiting for links {1000 * times.exposed:.1f} (of "
            f"{1000 * times.communication:.1f} that the exchanges take)"
        ),
    )
    shares, parts = plan.config.data.shares, plan.config.data.each()
    counted = zip(shares, plan.costs, parts, strict=True)
    work = sum(share * cost.operations.at(part.batch_size) for share, cost, part in counted) / sum(shares)
    yield "computing", f"{work / times.step / line.ranks / 1e12:,.1f} TFLOP/s a device over the whole step"
    yield "loader", _loader(plan, line)
    yield "checkpoint", _checkpoint(plan, line)
    trainer = plan.config.trainer
    every = min(trainer.checkpoint_every_steps * times.step, 60 * trainer.checkpoint_every_minutes)
    yield "lost by a kill", f"{duration(every / 2)} on average, {duration(every)} at most"
    price = "give --price" if line.cost is None else f"{line.cost:,.0f}"
    yield (
        "whole run",
        (
            f"{line.hours:,.1f} h, {line.hours * line.ranks:,.0f} device hours, {line.kwh:,.0f} kWh "
            f"(devices at {given.device.watts:.0f} W × {given.pue:g}); cost: {price}"
        ),
    )


def _loader(plan: Plan, line: Line) -> str:
    from .console import size

    text = f"{line.node_samples_per_s:,.0f} samples/s a node"
    found = plan.samples
    if found is None or line.node_mb_per_s is None or line.node_shards_per_s is None:
        return f"{text}; give data.shards=FOLDER for bytes and shards a second"
    text += (
        f", {line.node_mb_per_s:,.1f} MB/s ({line.node_mb_per_s * line.nodes:,.1f} over all nodes), "
        f"{line.node_shards_per_s:.3g} shards/s; {found.count:,} samples in {found.shards} shards, "
        f"{size(found.bytes)}, {size(found.sample_bytes)} a sample of this mix"
    )
    if found.crop_ms is None or line.cores is None:
        return text
    workers = plan.config.data.workers
    short = f", more than data.workers={workers}" if line.cores > max(1, workers) else ""
    crop = f"a crop takes a core of this machine {found.crop_ms:.2f} ms"
    return f"{text}; {crop}: {line.cores:.1f} cores a device{short}"


def _checkpoint(plan: Plan, line: Line) -> str:
    from ..pretrain.scale.split import KEPT
    from .console import size

    given, trainer, whole = plan.assumptions, plan.config.trainer, plan.checkpoint_bytes
    write, copy = whole / given.store_gb_s / 1e9, whole / given.device.host_gb_s / 1e9
    if trainer.checkpoint_split and given.strategy == "fsdp2":
        return (
            f"{size(whole)} in parts of {line.ranks} ranks: a step waits {write:.1f} s until all are written "
            f"and checked at {given.store_gb_s:.3g} GB/s ({given.store_from}); {KEPT} are kept, and the last "
            f"step whole: {size((KEPT + 1) * whole)}"
        )
    copies = max(2, trainer.keep_last)
    if trainer.keep_every_steps:
        copies += plan.config.steps // trainer.keep_every_steps
    return (
        f"{size(whole)}: {write:.1f} s to write and check at {given.store_gb_s:.3g} GB/s "
        f"({given.store_from}); written aside, a step waits {copy:.2f} s for the copy; {copies} are kept: "
        f"{size(copies * whole)}"
    )


def _checks(plan: Plan) -> Iterator[dict[str, object]]:
    for check in plan.checks:
        yield {
            "run": check.run, "ranks": check.ranks, "batch": check.batch, "micro-batch": check.micro,
            "measured": f"{check.measured:.4g}", "predicted": f"{check.predicted:.4g}",
            "error": f"{100 * check.error:+.1f} %", "": "the pace is from here" if check.fitted else "",
        }  # fmt: skip
