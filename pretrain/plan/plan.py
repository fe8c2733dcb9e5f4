"""`make_plan`: from a configuration and a device to one line for each number of devices.

The global batch stays what the configuration says, so that every line is the same run. For each number of
devices the fewest micro-batches are taken with which a step fits `FILL` of the memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...data.errors import ConfigError, nearest
from ..config import PretrainConfig
from .count import Cost, count
from .demand import Samples, checkpoint_bytes
from .devices import Device
from .measured import Measured
from .model import Pace, Times
from .pace import Check, calibrate
from .spread import Model

SHARE = 0.35  # of the device's peak that is assumed without a measurement
MOST = 512
STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the plan takes for granted."""

    device: Device
    precision: str
    strategy: str
    per_node: int
    pace: Pace
    pace_from: str  # where it comes from, in words
    store_gb_s: float  # checkpoints written, fsynced and read back
    store_from: str
    price: float | None = None  # of a device and hour
    pue: float = 1.3  # power of the building over that of the devices


@dataclass(frozen=True, kw_only=True)
class Line:
    """The run on so many devices."""

    ranks: int
    nodes: int
    micro: int
    accumulate: int
    times: Times
    efficiency: float  # samples a second and device against one device
    memory: dict[str, float]
    fits: bool
    samples_per_s: float
    hours: float
    kwh: float
    cost: float | None
    node_samples_per_s: float
    node_mb_per_s: float | None  # read from the shards
    node_shards_per_s: float | None
    cores: float | None  # a device needs, at the time of a crop measured here


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `medloom plan` shows."""

    config: PretrainConfig
    assumptions: Assumptions
    costs: list[Cost]
    lines: list[Line]
    skipped: list[str]
    samples: Samples | None
    checkpoint_bytes: float
    checks: list[Check] = field(default_factory=list)


def make_plan(
    config: PretrainConfig, device: Device, *, nodes: int, per_node: int, precision: str,
    strategy: str | None = None, share: float = SHARE, measured: Sequence[Measured] = (),
    samples: Samples | None = None, store_gb_s: float | None = None, price: float | None = None,
) -> Plan:  # fmt: skip
    """Predict the run from one device to `MOST`, and on `nodes` x `per_node`.

    Args:
        strategy: ddp | fsdp2; None: as the configuration says, and ddp for auto.
        share: of the device's peak, where nothing was measured.
        measured: run folders; those with the fewest ranks give the pace, all are compared with the model.
        store_gb_s: of a checkpoint; None: measured, else 1.

    Raises:
        ConfigError: see `count`; an unknown strategy; no device fits the batch or `trainer.shard_size`.
    """
    strategy = strategy or ("ddp" if config.trainer.strategy == "auto" else config.trainer.strategy)
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy {strategy}{nearest(strategy, STRATEGIES)}")
    costs = count(config, precision=precision)
    model = Model(config, costs, device, precision)
    pace, pace_from, checks = calibrate(model, device, precision, share, measured, per_node)
    told = next((m.store_gb_s for m in measured if m.store_gb_s), None)
    assumptions = Assumptions(
        device=device, precision=precision, strategy=strategy, per_node=per_node, pace=pace,
        pace_from=pace_from, store_gb_s=store_gb_s or told or 1.0, price=price,
        store_from="given" if store_gb_s else "measured" if told else "assumed",
    )  # fmt: skip
    wanted = sorted({2**n for n in range(int(math.log2(MOST)) + 1)} | {nodes * per_node})
    faults = {n: model.why_not(n, strategy) for n in wanted}
    if reason := faults[nodes * per_node]:
        raise ConfigError(f"{nodes} nodes x {per_node} devices: {reason}; change one of them")
    skipped = [f"{n}: {reason}" for n, reason in faults.items() if reason]
    lines = [_line(model, assumptions, n, samples) for n, reason in faults.items() if not reason]
    alone = lines[0].samples_per_s / lines[0].ranks
    lines = [replace(line, efficiency=line.samples_per_s / line.ranks / alone) for line in lines]
    size = checkpoint_bytes(costs, moments=model.moments)
    return Plan(config=config, assumptions=assumptions, costs=costs, lines=lines, skipped=skipped,
                samples=samples, checkpoint_bytes=size, checks=checks)  # fmt: skip


def _line(model: Model, given: Assumptions, ranks: int, samples: Samples | None) -> Line:
    accumulate, fits = model.accumulation(ranks, given.per_node, given.strategy)
    layouts = model.layouts(ranks, given.per_node, given.strategy, accumulate)
    found = model.times(layouts, given.pace)
    rate = model.config.data.step_samples / found.step
    hours = found.step * model.config.steps / 3600
    node = rate * min(ranks, given.per_node) / ranks
    crop = None if samples is None else samples.crop_ms
    return Line(
        ranks=ranks, nodes=layouts[0].nodes, micro=max(layout.micro for layout in layouts),
        accumulate=accumulate, times=found, efficiency=1.0, memory=model.memory(layouts), fits=fits,
        samples_per_s=rate, hours=hours, kwh=hours * ranks * given.device.watts * given.pue / 1000,
        cost=None if given.price is None else hours * ranks * given.price, node_samples_per_s=node,
        node_mb_per_s=None if samples is None else node * samples.sample_bytes / 1e6,
        node_shards_per_s=None if samples is None else node / samples.shard_samples,
        cores=None if crop is None else rate / ranks * crop / 1000,
    )  # fmt: skip


def as_json(plan: Plan) -> dict[str, Any]:
    """Plain values, in seconds, bytes and shares; no folder of this machine."""
    given = dataclasses.asdict(plan.assumptions)
    lines = [{**dataclasses.asdict(line), "step_seconds": line.times.step} for line in plan.lines]
    return {
        "name": plan.config.name, "steps": plan.config.steps, "batch_size": plan.config.data.step_samples,
        "assumptions": given, "costs": [dataclasses.asdict(cost) for cost in plan.costs], "lines": lines,
        "skipped": plan.skipped,
        "samples": None if plan.samples is None else dataclasses.asdict(plan.samples),
        "checkpoint_bytes": plan.checkpoint_bytes,
        "checks": [{**dataclasses.asdict(check), "error": check.error} for check in plan.checks],
    }  # fmt: skip
